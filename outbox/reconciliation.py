"""Compare the records with Temporal, and queue again what can be delivered (docs/adr/0007).

A domain registers what it compares; this module runs it: all of it for `manage.py reconcile`, what
a look at the visibility store makes suspect each minute in the relay.
"""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from asgiref.sync import sync_to_async
from django.db import DatabaseError, close_old_connections
from django.db.models import QuerySet

from outbox import delivery
from temporal import client, inspection

log = logging.getLogger(__name__)

# What is younger is under way: a registration, an attempt, the next step of a workflow.
GRACE: Final = timedelta(seconds=30)
# How far back the relay's look goes for workflows that were completed.
COMPLETED_WITHIN: Final = timedelta(minutes=10)
BATCH: Final = 256
AT_A_TIME: Final = 32
# Of a page of workflows so many are asked about in the relay's look. There are more suspects only
# while the workers are down, or after a disaster; chosen at random, each has its turn.
SAMPLE: Final = 32
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
class Record:
    """What the database says of a subject that belongs to a workflow."""

    pk: uuid.UUID
    workflow_id: str
    state: str
    # When it changed last, as far as that concerns its workflow.
    since: datetime
    # A message to its workflow waits in the outbox.
    queued: bool

    def is_settling(self, now: datetime) -> bool:
        """Whether it may differ for no other reason than that its change is under way."""
        return self.queued or now - self.since < GRACE


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Comparison(Generic[R]):
    """What a domain registers: how its records are read and judged.

    `rows()` are those that belong to a workflow, of a model with a UUID as its key, `workflow_id`
    and `state`; `read` makes records of some. `judge(record, run, now)` is how a record that is
    not settling differs from the current run of its workflow, which is None where Temporal knows
    none; and None where it does not differ, or where the run goes on by itself. `results` are what
    the run may return that `judge` tells apart.
    """

    rows: Callable[[], QuerySet[Any]]
    read: Callable[[QuerySet[Any]], list[R]]
    judge: Callable[[R, inspection.Run | None, datetime], Difference | None]
    results: Sequence[str] = ()
    # The type of the workflows, and the states of the records that are suspect in the relay's
    # look: where the workflow runs, where it ended without a result, where it completed lately.
    workflow: str
    suspect_while_running: Sequence[str]
    suspect_after_failure: Sequence[str]
    suspect_after_completion: Sequence[str]

    def count(self) -> int:
        """How many records :meth:`everything` compares."""
        return self.rows().count()

    async def everything(
        self, temporal: client.Temporal, now: datetime, progress: Callable[[int], None]
    ) -> AsyncIterator[Difference]:
        """Compare each record, by a call or two of Temporal; `progress` is called with the number
        of those that are done. Raises client.Unreachable."""
        after = uuid.UUID(int=0)
        while records := await self._read(pk__gt=after, limit=BATCH):
            after = records[-1].pk
            at_rest = [record for record in records if not record.is_settling(now)]
            for difference in await self._differences(temporal, at_rest, now):
                yield difference
            progress(len(records))

    async def suspects(self, temporal: client.Temporal, now: datetime) -> AsyncIterator[Difference]:
        """Compare the records that the visibility store makes suspect: cheap enough for each
        minute. Raises client.Unreachable."""
        status = f"WorkflowType = '{self.workflow}' AND ExecutionStatus"
        since = (now - COMPLETED_WITHIN).isoformat()
        for query, states in (
            (f"{status} = 'Running'", self.suspect_while_running),
            (
                f"{status} IN ('Failed', 'Canceled', 'Terminated', 'TimedOut')",
                self.suspect_after_failure,
            ),
            (f"{status} = 'Completed' AND CloseTime > '{since}'", self.suspect_after_completion),
        ):
            async for workflow_ids in inspection.workflow_ids(temporal, query):
                records = await self._read(workflow_id__in=workflow_ids, state__in=states)
                suspected = [record for record in records if not record.is_settling(now)]
                sample = random.sample(suspected, min(len(suspected), SAMPLE))
                for difference in await self._differences(temporal, sample, now):
                    yield difference

    async def _differences(
        self, temporal: client.Temporal, records: Sequence[R], now: datetime
    ) -> list[Difference]:
        slots = asyncio.Semaphore(AT_A_TIME)

        async def difference(record: R) -> Difference | None:
            async with slots:
                run = await inspection.run_of(temporal, record.workflow_id, results=self.results)
            return self.judge(record, run, now)

        found = dict(zip(records, await asyncio.gather(*map(difference, records)), strict=True))
        differing = [record.pk for record in records if found[record] is not None]
        if not differing:
            return []
        # The record was read before the run. Where it reads the same after, the two did not cross.
        same = await self._read(pk__in=differing)
        return [one for record in same if (one := found.get(record)) is not None]

    @sync_to_async
    def _read(self, limit: int | None = None, **which: Any) -> list[R]:
        close_old_connections()
        return self.read(self.rows().filter(**which).order_by("pk")[:limit])


COMPARISONS: Final[dict[str, Comparison[Any]]] = {}


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
