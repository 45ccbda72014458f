"""Compare the records with Temporal, and queue again what can be delivered (docs/adr/0007).

A domain registers what it compares; this module runs it: all of it for `manage.py reconcile`, what
a look at the visibility store makes suspect each minute in the relay.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from asgiref.sync import sync_to_async
from django.db import DatabaseError, close_old_connections

from outbox import client, delivery

log = logging.getLogger(__name__)

EVERY_SECONDS: Final = 60.0
# However many workflows run, the looks take a tenth of the time at most.
PAUSE_PER_LOOK: Final = 9
ALARM_EVERY: Final = timedelta(hours=1)
_NAMED_IN_ALARM = 10


@dataclass(frozen=True)
class Difference:
    """What the database says of a subject, what Temporal says, and what can be done.

    `fix` queues the remedy, and returns False where it is queued already; None where a person has
    to act. `by_itself` tells whether the relay may, without being asked.
    """

    subject: str
    record: str
    workflow: str
    remedy: str
    fix: Callable[[], bool] | None = None
    by_itself: bool = False

    def __str__(self) -> str:
        return f"{self.subject}: {self.record} here, in Temporal {self.workflow}"


@dataclass(frozen=True)
class Comparison:
    """What a domain registers.

    `everything(temporal, now, progress)` compares each record and calls `progress` with the
    number of those it has done, of `count()` in all. `suspects(temporal, now)` asks the visibility
    store which records may differ, and compares these: cheap enough for each minute. Both raise
    client.Unreachable, and never report what is merely under way.
    """

    count: Callable[[], int]
    everything: Callable[
        [client.Temporal, datetime, Callable[[int], None]], AsyncIterator[Difference]
    ]
    suspects: Callable[[client.Temporal, datetime], AsyncIterator[Difference]]


COMPARISONS: Final[dict[str, Comparison]] = {}


async def fix(difference: Difference) -> None:
    """Queue the remedy, once, however many ask for it. For differences that have one."""
    assert difference.fix is not None  # noqa: S101
    if await sync_to_async(difference.fix)():
        log.warning("%s; queued: %s", difference, difference.remedy)


class Reconciler:
    """The relay's look each minute: delivers again what is lost, and names the rest."""

    def __init__(self) -> None:
        self._temporal = client.Temporal()
        self._alarmed: dict[str, datetime] = {}

    async def run(self) -> None:
        """Until cancelled. A comparison that fails is made again in the next minute."""
        while True:
            began = time.monotonic()
            try:
                await self.step()
            except (client.Unreachable, DatabaseError) as error:
                # The relay, which asks more often, says it.
                log.debug("Not compared: %s", error)
            except Exception:  # a defect here must not end the delivery
                log.exception("The comparison with Temporal failed")
            await asyncio.sleep(max(EVERY_SECONDS, (time.monotonic() - began) * PAUSE_PER_LOOK))

    async def step(self) -> None:
        """One look. Raises client.Unreachable, DatabaseError."""
        now = await sync_to_async(_now)()
        left = []
        for comparison in COMPARISONS.values():
            async for difference in comparison.suspects(self._temporal, now):
                if difference.by_itself:
                    await fix(difference)
                else:
                    left.append(difference)
        self._alarm(left, now)

    def _alarm(self, differences: list[Difference], now: datetime) -> None:
        self._alarmed = {
            subject: at for subject, at in self._alarmed.items() if now - at < ALARM_EVERY
        }
        new = [one for one in differences if one.subject not in self._alarmed]
        if not new:
            return
        self._alarmed |= {one.subject: now for one in new}
        named = "; ".join(map(str, new[:_NAMED_IN_ALARM]))
        more = f"; and {len(new) - _NAMED_IN_ALARM} more" if len(new) > _NAMED_IN_ALARM else ""
        log.error("Differs from Temporal, see `manage.py reconcile`: %s%s", named, more)


def _now() -> datetime:
    close_old_connections()
    return delivery.database_now()
