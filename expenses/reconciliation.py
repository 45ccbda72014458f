"""Where expenses and their workflows differ, and what can be done about it (docs/adr/0007)."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.db.models import Exists, OuterRef, Q, QuerySet

from expenses import services
from expenses.models import Expense, State
from outbox import client
from outbox import services as outbox
from outbox.reconciliation import Comparison, Difference
from worker import contracts

# What is younger is under way: a registration, an attempt, the next step of a workflow.
GRACE: Final = timedelta(seconds=30)
# How far back the relay's look goes for workflows that were completed.
COMPLETED_WITHIN: Final = timedelta(minutes=10)
BATCH: Final = 256
AT_A_TIME: Final = 32
# Of a page of workflows so many are asked about in the relay's look. There are more suspects only
# while the workers are down, or after a disaster; chosen at random, each has its turn.
SAMPLE: Final = 32

_NOT_PAID: Final = ""
_RESULTS: Final = (contracts.COMPLETED, _NOT_PAID)
# What the workflow of a settled expense returns (W2); those of others have not ended.
_RESULT_OF: Final = {
    State.COMPLETED: contracts.COMPLETED,
    State.REJECTED: _NOT_PAID,
    State.WITHDRAWN: _NOT_PAID,
}
_OPEN: Final = (State.CREATED, State.APPROVED)
_DECIDED: Final = (State.APPROVED, State.REJECTED, State.WITHDRAWN, State.COMPLETED)

_TYPE = f"WorkflowType = '{contracts.EXPENSE_WORKFLOW}' AND ExecutionStatus"
_RUNNING = f"{_TYPE} = 'Running'"
_ENDED_WITHOUT_RESULT = f"{_TYPE} IN ('Failed', 'Canceled', 'Terminated', 'TimedOut')"
_COMPLETED_SINCE = _TYPE + " = 'Completed' AND CloseTime > '{}'"

_DELIVER: Final = "deliver the decision again"
_START: Final = "start the workflow again"
_RESET: Final = "none; reset the workflow (docs/operations.md)"
_ITS_CLIENT: Final = "none; who started the workflow can start it again"
_LOOK_INTO: Final = "none; find out why the ledger has no payment"
_FIXES: Final = {_DELIVER: services.deliver_again, _START: services.start_again}


@dataclass(frozen=True)
class Record:
    """What the database says of an expense that belongs to a workflow."""

    pk: uuid.UUID
    expense_id: str
    workflow_id: str
    # False where a plain client's workflow was only named in a registration.
    owned: bool
    state: State
    # When it was decided, or else created.
    since: datetime
    # The activity that was registered, and its run; "" for none.
    activity_id: str
    run_id: str
    # Its decision or its workflow's start waits in the outbox.
    queued: bool

    def is_settling(self, now: datetime) -> bool:
        """Whether it may differ for no other reason than that its change is under way."""
        return self.queued or now - self.since < GRACE


def judge(record: Record, run: client.Run | None, now: datetime) -> Difference | None:
    """How an expense that is not settling differs from the current run of its workflow; None
    where it does not, or where the run goes on by itself.

    A workflow that Temporal does not know is a difference while the expense is not settled; after
    that its history may have gone by retention (design rule 3).
    """
    if run is not None and run.status in ("running", "paused"):
        if record.state != State.CREATED and _waits(record, run, now):
            return _difference(record, "its workflow waits for the decision", _DELIVER)
        return None
    settled = record.state in _RESULT_OF
    if not record.owned and (run is None or record.state != State.APPROVED):
        # A plain client's workflow may end as it likes, but for one that was to be paid.
        return None
    if run is None:
        return None if settled else _difference(record, "its workflow is unknown", _START)
    if run.status != "completed":
        return _difference(record, f"its workflow ended: {run.status}", _START)
    if settled and run.returned == _RESULT_OF[record.state]:
        return None
    returned = "something else" if run.returned is None else f'"{run.returned}"'
    unpaid = run.returned == contracts.COMPLETED and record.state != State.COMPLETED
    return _difference(
        record, f"its workflow returned {returned}", _LOOK_INTO if unpaid else _RESET
    )


def _waits(record: Record, run: client.Run, now: datetime) -> bool:
    """Whether the run waits for the decision with nothing under way that would tell it."""
    return any(
        (
            activity.type == contracts.WAIT_FOR_DECISION
            if record.owned
            else (run.id, activity.id) == (record.run_id, record.activity_id)
        )
        and now - activity.scheduled_at >= GRACE
        for activity in run.waits_for
    )


def _difference(record: Record, workflow: str, remedy: str) -> Difference:
    ours = record.owned and record.workflow_id == contracts.expense_workflow_id(record.expense_id)
    if remedy == _START and not ours:
        remedy = _ITS_CLIENT
    fix = _FIXES.get(remedy)
    return Difference(
        subject=f"{services.SUBJECT} {record.expense_id}",
        record=record.state,
        workflow=workflow,
        remedy=remedy,
        fix=partial(_fix, fix, record.pk) if fix else None,
        by_itself=remedy == _DELIVER,
    )


def _fix(fix: Callable[[Expense], bool], pk: uuid.UUID) -> bool:
    return fix(Expense.objects.get(pk=pk))


async def everything(
    temporal: client.Temporal, now: datetime, progress: Callable[[int], None]
) -> AsyncIterator[Difference]:
    """Compare each expense that belongs to a workflow, by a call or two of Temporal for each."""
    after = uuid.UUID(int=0)
    while records := await sync_to_async(_records)(
        _compared().filter(pk__gt=after).order_by("pk")[:BATCH]
    ):
        after = records[-1].pk
        at_rest = [record for record in records if not record.is_settling(now)]
        for difference in await _differences(temporal, at_rest, now):
            yield difference
        progress(len(records))


async def suspects(temporal: client.Temporal, now: datetime) -> AsyncIterator[Difference]:
    """Compare the decided expenses whose workflows run, the expenses whose workflows ended without
    a result, and the open ones whose workflows were completed lately."""
    completed = _COMPLETED_SINCE.format((now - COMPLETED_WITHIN).isoformat())
    for query, states in (
        (_RUNNING, _DECIDED),
        (_ENDED_WITHOUT_RESULT, State.values),
        (completed, _OPEN),
    ):
        async for workflow_ids in temporal.workflow_ids(query):
            records = await sync_to_async(_records)(
                _compared().filter(workflow_id__in=workflow_ids, state__in=states)
            )
            suspected = [record for record in records if not record.is_settling(now)]
            sample = random.sample(suspected, min(len(suspected), SAMPLE))
            for difference in await _differences(temporal, sample, now):
                yield difference


COMPARISON: Final = Comparison(
    count=lambda: _compared().count(), everything=everything, suspects=suspects
)


async def _differences(
    temporal: client.Temporal, records: Sequence[Record], now: datetime
) -> list[Difference]:
    slots = asyncio.Semaphore(AT_A_TIME)

    async def difference(record: Record) -> Difference | None:
        async with slots:
            run = await temporal.run_of(record.workflow_id, results=_RESULTS)
        return judge(record, run, now)

    found = dict(zip(records, await asyncio.gather(*map(difference, records)), strict=True))
    differing = [record.pk for record in records if found[record] is not None]
    if not differing:
        return []
    # The record was read before the run. Where it reads the same after, the two did not cross.
    same = await sync_to_async(_records)(_compared().filter(pk__in=differing))
    return [one for record in same if (one := found.get(record)) is not None]


def _compared() -> QuerySet[Expense]:
    """The expenses that belong to a workflow. Where its id served several: the one that it serves
    now, else the newest."""
    others = Expense.objects.filter(
        workflow_id=OuterRef("workflow_id"), owns_workflow=True
    ).exclude(pk=OuterRef("pk"))
    served = Q(owns_workflow=True, state__in=_OPEN)
    return Expense.objects.filter(
        served
        | ~Exists(others.filter(Q(state__in=_OPEN) | Q(created_at__gt=OuterRef("created_at")))),
        workflow_id__isnull=False,
    )


def _records(expenses: QuerySet[Expense]) -> list[Record]:
    close_old_connections()
    rows: list[Any] = list(
        expenses.values_list(
            "pk",
            "expense_id",
            "workflow_id",
            "owns_workflow",
            "state",
            "created_at",
            "decision__at",
            "callback__activity_id",
            "callback__run_id",
        )
    )
    waiting = outbox.waiting([key for _, expense_id, *_ in rows for key in _keys(expense_id)])
    return [
        Record(
            pk,
            expense_id,
            workflow_id,
            owned,
            State(state),
            since=decided_at or created_at,
            activity_id=activity_id or "",
            run_id=run_id or "",
            queued=not waiting.isdisjoint(_keys(expense_id)),
        )
        for (
            pk,
            expense_id,
            workflow_id,
            owned,
            state,
            created_at,
            decided_at,
            activity_id,
            run_id,
        ) in rows
    ]


def _keys(expense_id: str) -> tuple[str, str]:
    return services.decision_key(expense_id), services.start_key(expense_id)
