"""Where orders and their workflows differ, and what can be done about it (docs/adr/0007).

By itself the relay only tells a workflow again what it waits to be told. Starting one again is left
to a person, for the reasons in the ADR, although an open order without a workflow keeps its stock,
and perhaps money: the relay names it in an error once an hour.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from django.db.models import QuerySet

from orders import services
from orders.models import FINAL, Order, State
from outbox import reconciliation
from outbox import services as outbox
from outbox.reconciliation import Comparison, Difference
from temporal import inspection
from worker import contracts

_OPEN: Final = (State.PENDING, State.RUNNING, State.COMPENSATING)
# How the workflow of an order ends that has ended; a cancelled one may be told so while it runs.
_ENDS_OF: Final[dict[str, tuple[str, ...]]] = {
    State.COMPLETED: ("completed",),
    State.FAILED: ("failed",),
    State.CANCELLED: ("completed", "canceled"),
}

_TELL: Final = "tell the workflow again"
_START: Final = "start the workflow again"
# Temporal starts no workflow again that was completed.
_RESET: Final = "none; reset the workflow (docs/operations.md), or cancel the order"
_FIXES: Final = {_TELL: services.tell_again, _START: services.start_again}


@dataclass(frozen=True)
class Record(reconciliation.Record):
    """What the database says of an order: since when it is created, decided, or ended."""

    order_id: str


def judge(record: Record, run: inspection.Run | None, now: datetime) -> Difference | None:
    """How an order that is not settling differs from the current run of its workflow; None where it
    does not, or where the run goes on by itself.

    A run that has anything to do goes on: its next step tells it how the order stands. One that
    waits for a decision that was taken, or for one that is not needed any more, would wait until
    its window is over. Of an order that has ended the run may have gone by retention.
    """
    if run is None:
        ended = record.state in FINAL
        return None if ended else _difference(record, "its workflow is unknown", _START)
    if run.status in ("running", "paused"):
        if run.idle and record.state != State.PENDING:
            return _difference(record, "its workflow waits for the decision", _TELL)
        return None
    if run.status in _ENDS_OF.get(record.state, ()):
        return None
    remedy = _RESET if run.status == "completed" else _START
    return _difference(record, f"its workflow ended: {run.status}", remedy)


def _difference(record: Record, workflow: str, remedy: str) -> Difference:
    fix = _FIXES.get(remedy)
    return Difference(
        subject=f"{services.SUBJECT} {record.order_id}",
        record=record.state,
        workflow=workflow,
        remedy=remedy,
        fix=partial(_fix, fix, record.pk) if fix else None,
        by_itself=remedy == _TELL,
    )


def _fix(fix: Callable[[Order], bool], pk: uuid.UUID) -> bool:
    return fix(Order.objects.get(pk=pk))


def _records(orders: QuerySet[Order]) -> list[Record]:
    found = list(orders.select_related("decision"))
    waiting = outbox.waiting(
        [key for order in found for key in services.message_keys(order.order_id)]
    )
    return [
        Record(
            pk=order.pk,
            workflow_id=order.workflow_id,
            state=order.state,
            since=order.ended_at or (order.decision.at if order.decision else order.created_at),
            queued=not waiting.isdisjoint(services.message_keys(order.order_id)),
            order_id=order.order_id,
        )
        for order in found
    ]


COMPARISON: Final = Comparison(
    rows=Order.objects.all,
    read=_records,
    judge=judge,
    workflow=contracts.ORDER_WORKFLOW,
    suspect_while_running=[state for state in State if state != State.PENDING],
    # The workflow of a failed order fails, and those are many.
    suspect_after_failure=(*_OPEN, State.COMPLETED),
    suspect_after_completion=_OPEN,
)
