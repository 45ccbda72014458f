"""Compare the records with Temporal, and queue again what can be delivered (docs/adr/0007).

A domain registers what it compares. `manage.py reconcile` compares every record; the relay compares
each minute the records that the visibility store makes suspect.
"""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from asgiref.sync import sync_to_async
from django.db import DatabaseError, close_old_connections
from django.db.models import QuerySet

from outbox import relay, services
from temporal import client, inspection

log = logging.getLogger(__name__)

# Younger changes are still under way: a registration, an attempt, the next step of a workflow.
GRACE: Final = timedelta(seconds=30)
# How far back the relay looks for workflows that were completed.
COMPLETED_WITHIN: Final = timedelta(minutes=10)
BATCH: Final = 256
AT_A_TIME: Final = 32
# How many suspects of a page of workflows the relay compares. There are more only while workers are
# down or after a disaster. The relay picks them at random, so each is compared eventually.
SAMPLE: Final = 32
EVERY_SECONDS: Final = 60.0
# However many workflows run, the comparison takes a tenth of the time at most.
PAUSE_PER_LOOK: Final = 9
ALARM_EVERY: Final = timedelta(hours=1)
_NAMED_IN_ALARM = 10


@dataclass(frozen=True)
class Difference:
    """A record that differs from its workflow: the states of both, and the remedy in words.

    `enqueue` queues the remedy, and returns False where it is queued already; None where a person
    has to act. Where `automatic`, the relay queues it without being asked.
    """

    subject: str
    record: str
    workflow: str
    remedy: str
    enqueue: Callable[[], bool] | None = None
    automatic: bool = False

    def __str__(self) -> str:
        return f"{self.subject}: {self.record} here, in Temporal {self.workflow}"


class Finding(NamedTuple):
    """How a workflow differs from its record, and the remedy, in words."""

    workflow: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the database says of a subject that belongs to a workflow."""

    pk: uuid.UUID
    subject: str
    workflow_id: str
    state: str
    # The time of the last change that concerns the workflow.
    since: datetime
    # The keys of the messages to the workflow, and whether one of these waits in the outbox.
    keys: tuple[str, ...]
    queued: bool = False

    def is_settling(self, now: datetime) -> bool:
        """Whether a change is under way, which alone can explain a difference."""
        return self.queued or now - self.since < GRACE


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Comparison(Generic[R]):
    """What a domain registers: how to read its records, and how to judge them.

    `rows()` are the rows that belong to a workflow, of a model with a UUID as its key,
    `workflow_id` and `state`; `read` makes records of some rows. `judge(record, run, now)` returns
    how a record that is not settling differs from the current run of its workflow. The run is None
    where Temporal knows none. The result is None where nothing differs, or where the run goes on
    without help. `results` are the results of a run that `judge` distinguishes. `remedies` maps
    the words of a remedy to the function that queues it for a row; the relay queues `automatic`
    without being asked.
    """

    rows: Callable[[], QuerySet[Any]]
    read: Callable[[QuerySet[Any]], list[R]]
    judge: Callable[[R, inspection.Run | None, datetime], Finding | None]
    remedies: Mapping[str, Callable[[Any], bool]]
    automatic: str
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
        """Compare each record, by one or two calls to Temporal. `progress` is called with the
        number of compared records. Raises client.Unreachable."""
        after = uuid.UUID(int=0)
        while records := await self._read(pk__gt=after, limit=BATCH):
            after = records[-1].pk
            for difference in await self._differences(temporal, records, now):
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

        async def compare(record: R) -> Finding | None:
            if record.is_settling(now):
                return None
            async with slots:
                run = await inspection.run_of(temporal, record.workflow_id, results=self.results)
            return self.judge(record, run, now)

        found = dict(zip(records, await asyncio.gather(*map(compare, records)), strict=True))
        differing = [record.pk for record in records if found[record] is not None]
        if not differing:
            return []
        # Read it again: a record that changed meanwhile is left to the next comparison.
        same = await self._read(pk__in=differing)
        return [
            self._difference(record, finding) for record in same if (finding := found.get(record))
        ]

    def _difference(self, record: R, finding: Finding) -> Difference:
        workflow, remedy = finding
        function = self.remedies.get(remedy)
        return Difference(
            subject=record.subject,
            record=record.state,
            workflow=workflow,
            remedy=remedy,
            enqueue=partial(self._call, function, record.pk) if function else None,
            automatic=remedy == self.automatic,
        )

    def _call(self, function: Callable[[Any], bool], pk: uuid.UUID) -> bool:
        return function(self.rows().model.objects.get(pk=pk))

    @sync_to_async
    def _read(self, limit: int | None = None, **which: Any) -> list[R]:
        close_old_connections()
        records = self.read(self.rows().filter(**which).order_by("pk")[:limit])
        waiting = services.waiting([key for record in records for key in record.keys])
        return [replace(record, queued=not waiting.isdisjoint(record.keys)) for record in records]


COMPARISONS: Final[dict[str, Comparison[Any]]] = {}


async def queue_remedy(difference: Difference) -> None:
    """Queue the remedy. Concurrent calls queue it once."""
    assert difference.enqueue is not None  # noqa: S101
    if await sync_to_async(difference.enqueue)():
        log.warning("%s; queued: %s", difference, difference.remedy)


class Reconciler:
    """The relay's comparison each minute: delivers lost messages again, and logs the other
    differences."""

    def __init__(self) -> None:
        self._temporal = client.Temporal()
        self._alarmed: dict[str, datetime] = {}

    async def run(self) -> None:
        """Compare until cancelled. A comparison that fails is made again in the next minute."""
        while True:
            began = time.monotonic()
            try:
                await self.step()
            except (client.Unreachable, DatabaseError) as error:
                # The relay, which asks more often, logs this error.
                log.debug("Not compared: %s", error)
            except Exception:  # a defect here must not end the delivery
                log.exception("The comparison with Temporal failed")
            await asyncio.sleep(max(EVERY_SECONDS, (time.monotonic() - began) * PAUSE_PER_LOOK))

    async def step(self) -> None:
        """Compare once. Raises client.Unreachable, DatabaseError."""
        now = await sync_to_async(_now)()
        left = []
        for comparison in COMPARISONS.values():
            async for difference in comparison.suspects(self._temporal, now):
                if difference.automatic:
                    await queue_remedy(difference)
                else:
                    left.append(difference)
        self._alarm(left, now)

    def _alarm(self, differences: list[Difference], now: datetime) -> None:
        self._alarmed = {
            subject: at for subject, at in self._alarmed.items() if now - at < ALARM_EVERY
        }
        new = [difference for difference in differences if difference.subject not in self._alarmed]
        if not new:
            return
        self._alarmed |= {difference.subject: now for difference in new}
        named = "; ".join(map(str, new[:_NAMED_IN_ALARM]))
        more = f"; and {len(new) - _NAMED_IN_ALARM} more" if len(new) > _NAMED_IN_ALARM else ""
        log.error("Differs from Temporal, see `manage.py reconcile`: %s%s", named, more)


def _now() -> datetime:
    close_old_connections()
    return relay.database_now()
