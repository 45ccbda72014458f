"""Where expenses and their workflows differ, and what can be done about it (docs/adr/0007)."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

from django.db.models import Exists, OuterRef, Q, QuerySet

from expenses import services
from expenses.models import Expense, State
from outbox import reconciliation
from outbox import services as outbox
from outbox.reconciliation import Comparison, Difference
from temporal import inspection
from worker import contracts

_NOT_PAID: Final = ""
_RESULTS: Final = (contracts.COMPLETED, _NOT_PAID)
# What the workflow of a settled expense returns (W2); those of others have not ended.
_RESULT_OF: Final[dict[str, str]] = {
    State.COMPLETED: contracts.COMPLETED,
    State.REJECTED: _NOT_PAID,
    State.WITHDRAWN: _NOT_PAID,
}
_OPEN: Final = (State.CREATED, State.APPROVED)
_DECIDED: Final = (State.APPROVED, State.REJECTED, State.WITHDRAWN, State.COMPLETED)

_DELIVER: Final = "deliver the decision again"
_START: Final = "start the workflow again"
_RESET: Final = "none; reset the workflow (docs/operations.md)"
_ITS_CLIENT: Final = "none; who started the workflow can start it again"
_LOOK_INTO: Final = "none; find out why the ledger has no payment"
_FIXES: Final = {_DELIVER: services.deliver_again, _START: services.start_again}


@dataclass(frozen=True)
class Record(reconciliation.Record):
    """What the database says of an expense that belongs to a workflow: since when it is created,
    or decided."""

    expense_id: str
    # False where a plain client's workflow was only named in a registration.
    owned: bool
    # The activity that was registered, and its run; "" for none.
    activity_id: str
    run_id: str


def judge(record: Record, run: inspection.Run | None, now: datetime) -> Difference | None:
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


def _waits(record: Record, run: inspection.Run, now: datetime) -> bool:
    """Whether the run waits for the decision with nothing under way that would tell it."""
    return any(
        (
            activity.type == contracts.WAIT_FOR_DECISION
            if record.owned
            else (run.id, activity.id) == (record.run_id, record.activity_id)
        )
        and now - activity.scheduled_at >= reconciliation.GRACE
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
            pk=pk,
            workflow_id=workflow_id,
            state=state,
            since=decided_at or created_at,
            queued=not waiting.isdisjoint(_keys(expense_id)),
            expense_id=expense_id,
            owned=owned,
            activity_id=activity_id or "",
            run_id=run_id or "",
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


COMPARISON: Final = Comparison(
    rows=_compared,
    read=_records,
    judge=judge,
    results=_RESULTS,
    workflow=contracts.EXPENSE_WORKFLOW,
    suspect_while_running=_DECIDED,
    suspect_after_failure=State.values,
    suspect_after_completion=_OPEN,
)
