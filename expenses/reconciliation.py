"""How expenses and their workflows can differ, and the remedies (docs/adr/0007)."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db.models import Exists, OuterRef, Q, QuerySet

from expenses import services
from expenses.models import Expense, State
from outbox import reconciliation
from outbox.reconciliation import Comparison, Finding
from temporal import inspection
from worker import contracts

_NOT_PAID: Final = ""
_RESULTS: Final = (contracts.COMPLETED, _NOT_PAID)
# The result of the workflow of a settled expense (W2); the workflows of others have not ended.
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


@dataclass(frozen=True, kw_only=True)
class ComparedExpense(reconciliation.Record):
    """An expense that belongs to a workflow, created or decided at `since`."""

    # False where a plain client's workflow was only named in a registration.
    owned: bool
    # Whether the site made the workflow's id, and so can start it.
    startable: bool
    # The activity that was registered, and its run; None for none.
    activity_id: str | None
    run_id: str | None


def judge(record: ComparedExpense, run: inspection.Run | None, now: datetime) -> Finding | None:
    """How an expense that is not settling differs from the current run of its workflow.

    A workflow that Temporal does not know is a difference while the expense is not settled. After
    that, retention may have deleted its history.
    """
    start = _START if record.startable else _ITS_CLIENT
    if run is not None and run.status in ("running", "paused"):
        if record.state != State.CREATED and _waits(record, run, now):
            return Finding("its workflow waits for the decision", _DELIVER)
        return None
    settled = record.state in _RESULT_OF
    if not record.owned and (run is None or record.state != State.APPROVED):
        # A plain client's workflow may end in any way, unless its expense is to be paid.
        return None
    if run is None:
        return None if settled else Finding("its workflow is unknown", start)
    if run.status != "completed":
        return Finding(f"its workflow ended: {run.status}", start)
    if settled and run.returned == _RESULT_OF[record.state]:
        return None
    returned = "something else" if run.returned is None else f'"{run.returned}"'
    unpaid = run.returned == contracts.COMPLETED and record.state != State.COMPLETED
    return Finding(f"its workflow returned {returned}", _LOOK_INTO if unpaid else _RESET)


def _waits(record: ComparedExpense, run: inspection.Run, now: datetime) -> bool:
    """Whether the run waits for the decision, and no registration is under way."""
    return any(
        (
            activity.type == contracts.WAIT_FOR_DECISION
            if record.owned
            else (run.id, activity.id) == (record.run_id, record.activity_id)
        )
        and now - activity.scheduled_at >= reconciliation.GRACE
        for activity in run.waits_for
    )


def _compared() -> QuerySet[Expense]:
    """The expenses that belong to a workflow. Where the workflow id served several expenses: the
    expense that it serves now, else the newest."""
    others = Expense.objects.filter(
        workflow_id=OuterRef("workflow_id"), owns_workflow=True
    ).exclude(pk=OuterRef("pk"))
    served = Q(owns_workflow=True, state__in=_OPEN)
    return Expense.objects.filter(
        served
        | ~Exists(others.filter(Q(state__in=_OPEN) | Q(created_at__gt=OuterRef("created_at")))),
        workflow_id__isnull=False,
    )


def _records(expenses: QuerySet[Expense]) -> list[ComparedExpense]:
    fields = (
        *("pk", "expense_id", "workflow_id", "owns_workflow", "state", "created_at"),
        *("approval__entry__at", "callback__activity_id", "callback__run_id"),
    )
    return [_record(row) for row in expenses.values(*fields)]


def _record(row: dict[str, Any]) -> ComparedExpense:
    expense_id, workflow_id, owned = row["expense_id"], row["workflow_id"], row["owns_workflow"]
    return ComparedExpense(
        pk=row["pk"],
        subject=f"{services.KIND.name} {expense_id}",
        workflow_id=workflow_id,
        state=row["state"],
        since=row["approval__entry__at"] or row["created_at"],
        keys=tuple(services.KIND.keys(expense_id)),
        owned=owned,
        startable=owned and workflow_id == contracts.expense_workflow_id(expense_id),
        activity_id=row["callback__activity_id"],
        run_id=row["callback__run_id"],
    )


COMPARISON: Final = Comparison(
    rows=_compared,
    read=_records,
    judge=judge,
    remedies={_DELIVER: services.notify_again, _START: services.start_again},
    automatic=_DELIVER,
    results=_RESULTS,
    workflow=contracts.EXPENSE_WORKFLOW,
    suspect_while_running=_DECIDED,
    suspect_after_failure=State.values,
    suspect_after_completion=_OPEN,
)
