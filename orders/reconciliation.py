"""How orders and their workflows can differ, and the remedies (docs/adr/0007).

The relay notifies a workflow again of a decision that it waits for. Only a person starts a workflow
again, for the reasons in the ADR, although an open order without a workflow keeps its stock, and
perhaps money. The relay logs such an order as an error once an hour.
"""

from datetime import datetime
from typing import Final

from django.db.models import F, QuerySet

from orders import services
from orders.models import FINAL, Order, State
from outbox.reconciliation import Comparison, Finding, Record
from temporal import inspection
from worker import contracts

_OPEN: Final = (State.PENDING, State.RUNNING, State.COMPENSATING)
# How the workflow of an ended order ends. A cancelled order may end while its workflow still runs;
# that workflow then ends as cancelled.
_ENDS_OF: Final[dict[str, tuple[str, ...]]] = {
    State.COMPLETED: ("completed",),
    State.FAILED: ("failed",),
    State.CANCELLED: ("completed", "canceled"),
}

_NOTIFY: Final = "notify the workflow again"
_START: Final = "start the workflow again"
# Temporal starts no workflow again that was completed.
_RESET: Final = "none; reset the workflow (docs/operations.md), or cancel the order"


def judge(record: Record, run: inspection.Run | None, now: datetime) -> Finding | None:
    """How an order that is not settling differs from the current run of its workflow.

    A run that has anything to do goes on: its next step learns the state of the order. A run that
    waits for a decision that was taken, or is not needed any more, would wait until its window is
    over. Retention may have deleted the run of an order that has ended.
    """
    if run is None:
        return None if record.state in FINAL else Finding("its workflow is unknown", _START)
    if run.status in ("running", "paused"):
        if run.idle and record.state != State.PENDING:
            return Finding("its workflow waits for the decision", _NOTIFY)
        return None
    if run.status in _ENDS_OF.get(record.state, ()):
        return None
    remedy = _RESET if run.status == "completed" else _START
    return Finding(f"its workflow ended: {run.status}", remedy)


def _records(orders: QuerySet[Order]) -> list[Record]:
    return [
        Record(
            pk=order.pk,
            subject=f"{services.KIND.name} {order.order_id}",
            workflow_id=order.workflow_id,
            state=order.state,
            since=order.ended_at or order.decided_at or order.created_at,
            keys=tuple(services.KIND.keys(order.order_id)),
        )
        for order in orders.annotate(decided_at=F("approval__entry__at"))
    ]


COMPARISON: Final = Comparison(
    rows=Order.objects.all,
    read=_records,
    judge=judge,
    remedies={_NOTIFY: services.notify_again, _START: services.start_again},
    automatic=_NOTIFY,
    workflow=contracts.ORDER_WORKFLOW,
    suspect_while_running=[state for state in State if state != State.PENDING],
    # The workflow of a failed order fails, and those are many.
    suspect_after_failure=(*_OPEN, State.COMPLETED),
    suspect_after_completion=_OPEN,
)
