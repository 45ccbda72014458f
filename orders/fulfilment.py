"""The steps that an order's workflow asks of the site (requirements O2-O5).

Each step calls its integration outside of any transaction and records the result once; a repeat is
answered with the record. A compare-and-set decides how an order ends: `complete_order` and
`begin_compensation` exclude each other.
"""

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from django.db import DatabaseError, transaction
from django.db.models import F
from django.db.models.functions import Greatest

from access.actors import Actor
from approvals import services as approvals
from approvals.models import Approval, AuditEntry, Route, Verdict
from approvals.services import Act
from orders import integrations, services
from orders.models import UNDONE, Order, OrderStep, State
from outbox import services as outbox
from temporal import client, inspection, loop
from worker import contracts
from worker.contracts import StepKind

log = logging.getLogger(__name__)

T = TypeVar("T")

_VERDICT_OF: Final = {
    contracts.APPROVE_ORDER: Verdict.APPROVED,
    contracts.REJECT_ORDER: Verdict.REJECTED,
}
UNSTATED_REASON: Final = "rejected by signal"
CANCELLED_IN_TEMPORAL: Final = "cancelled in Temporal"
# How long an order waits, after its approval window, for Temporal to report the signals.
PATIENCE: Final = timedelta(seconds=30)
# The longest part of an actor's name that a client of Temporal chooses.
_CLAIM_LENGTH: Final = 130
_EVENT_OF_END = {State.CANCELLED: AuditEntry.Event.CANCELLED, State.FAILED: AuditEntry.Event.FAILED}


class NotNow(Exception):
    """The order's state does not allow this step; the workflow must not continue with it."""


class UnknownStep(Exception):
    """No step has this name."""


class OutcomeUnknown(Exception):
    """Another system did not report a result; the workflow must ask again."""


def carry_out(
    order: Order, step: str, request: contracts.CompensationRequest, act: Act
) -> contracts.StepResult | contracts.OrderState:
    """Carry out a step for the workflow of an attempt, once, and return the answer to the workflow.
    Not within a transaction.

    Raises UnknownStep, NotNow, and integrations.Declined where another system refuses. After
    OutcomeUnknown or an error of the database the workflow asks again.
    """
    if step not in contracts.STEPS:
        raise UnknownStep(f"There is no step {step}.")
    if contracts.STEPS[step].kind is StepKind.UNDO:
        return _undo(order, step, request, act)
    if step in _INTEGRATION_CALLS:
        return _do(order, step, request, act)
    if request.attempt == order.attempt:
        _TRANSITIONS[step](order, request, act)
        order.refresh_from_db(from_queryset=services.with_approval())
    if request.attempt != order.attempt:
        # The run was started twice, or repeats a request late. It fails, like its attempt.
        reason = f"{order.order_id} is in attempt {order.attempt}, not {request.attempt}."
        return contracts.OrderState(State.FAILED.value, "", "", reason)
    begun = order.step_names[: order.steps_begun] if step == contracts.BEGIN_COMPENSATION else None
    return replace(current_state(order, act.at), begun=begun)


def current_state(order: Order, now: datetime) -> contracts.OrderState:
    """Return the state of the order for its workflow."""
    approval, verdict, why, left = order.approval, "", "", None
    if approval is not None and approval.decision is not None:
        verdict, why = str(approval.verdict), approval.decision.reason
    if order.state == State.PENDING:
        end = order.expires_at or _end_of_window(order, now)
        left = max(1, math.ceil((end - now).total_seconds()))
    return contracts.OrderState(order.state, verdict, why, order.failure_reason, left)


# Steps and their undoing.


def _do(order: Order, step: str, request: contracts.StepRequest, act: Act) -> contracts.StepResult:
    attempt, place = request.attempt, 0
    done = order.steps.filter(attempt=attempt, name=step, status=OrderStep.Status.COMPLETED).first()
    begins_in = State.RUNNING
    if contracts.STEPS[step].kind is StepKind.FOLLOW_UP:
        # Nothing can be undone any more.
        begins_in = State.COMPLETED
    elif step in order.step_names:
        place = order.step_names.index(step) + 1
    else:
        raise NotNow(f"{order.order_id} began without the step {step}.")
    allowed = (State.RUNNING, State.COMPLETED) if done else (begins_in,)
    # Compare-and-set: a compensation either finds that this step was begun, or prevents it.
    if not Order.objects.filter(pk=order.pk, attempt=attempt, state__in=allowed).update(
        steps_begun=Greatest("steps_begun", place)
    ):
        order.refresh_from_db()
        raise NotNow(f"{order.order_id} is {order.get_state_display()} in attempt {order.attempt}.")
    if done:
        answer_type: Any = contracts.STEPS[step].answer
        recorded: contracts.StepResult = answer_type(message=done.message, **done.result)
        return recorded
    answer = _called(lambda: _INTEGRATION_CALLS[step](order, order.idempotency_key(attempt)))
    result = asdict(answer)
    message = result.pop("message")
    _note(order, attempt, step, OrderStep.Status.COMPLETED, message, act.at, result)
    return answer


def _undo(
    order: Order, step: str, request: contracts.StepRequest, act: Act
) -> contracts.StepResult:
    order.refresh_from_db()
    attempt = request.attempt
    # An undo is permanent, so never undo an attempt that can still run.
    if attempt > order.attempt or (
        attempt == order.attempt and order.state in (State.PENDING, State.RUNNING, State.COMPLETED)
    ):
        raise NotNow(f"{order.order_id} is {order.get_state_display()}; nothing of it is undone.")
    begun = [contracts.STEPS[name].undo for name in order.step_names[: order.steps_begun]]
    if attempt == order.attempt and step not in begun:
        return contracts.StepResult("The step was never begun; nothing is undone")
    answer = _called(lambda: _INTEGRATION_CALLS[step](order, order.idempotency_key(attempt)))
    _note(order, attempt, step, OrderStep.Status.COMPENSATED, answer.message, act.at)
    return answer


def _called(call: Callable[[], T]) -> T:
    """Call an integration. Raises OutcomeUnknown for every error except Declined and the
    database's."""
    try:
        return call()
    except (integrations.Declined, DatabaseError):
        raise
    except Exception as error:
        log.exception("An integration failed")
        raise OutcomeUnknown("Another system failed; it is asked again. See the log.") from error


def _note(
    order: Order,
    attempt: int,
    step: str,
    status: OrderStep.Status,
    message: str,
    at: datetime,
    result: dict[str, Any] | None = None,
) -> None:
    """Add a line to the order's timeline, unless it is there already."""
    _, is_new = order.steps.get_or_create(
        attempt=attempt,
        name=step,
        status=status,
        defaults={"message": message, "result": result or {}, "at": at},
    )
    if is_new:
        log.info("%s: %s %s: %s", order.order_id, step, status, message)


def _items(order: Order) -> list[integrations.Item]:
    return [integrations.Item(line.product_id, line.quantity) for line in order.lines.all()]


def _check_inventory(order: Order, key: str) -> contracts.StepResult:
    integrations.inventory().check(_items(order))
    return contracts.StepResult("All items are available")


def _reserve_inventory(order: Order, key: str) -> contracts.ReservationResult:
    items = _items(order)
    reservation_id = integrations.inventory().reserve(key, items)
    return contracts.ReservationResult(
        f"Reserved {len(items)} item(s) successfully", reservation_id
    )


def _process_payment(order: Order, key: str) -> contracts.PaymentResult:
    charge_id = integrations.payments().charge(
        key, amount=order.total, currency=order.currency, method=order.payment_method
    )
    return contracts.PaymentResult(
        f"Payment of {order.sample_money()} processed successfully", charge_id
    )


def _update_warehouse(order: Order, key: str) -> contracts.DeliveryResult:
    delivery = integrations.warehouse().update(
        key, order_id=order.order_id, items=_items(order), address=order.shipping_address
    )
    arrives = delivery.estimated_delivery.isoformat()
    return contracts.DeliveryResult("Delivery scheduled", delivery.tracking_number, arrives)


def _send_confirmation(order: Order, key: str) -> contracts.StepResult:
    if not order.customer_email:
        return contracts.StepResult("No e-mail address, no confirmation")
    integrations.mailer().send(
        key,
        recipient=order.customer_email,
        subject=f"Your order {order.order_id}",
        body=f"Thank you. Your order {order.order_id} over {order.money()} is on its way.",
    )
    return contracts.StepResult("Confirmation sent")


def _release_inventory(order: Order, key: str) -> contracts.StepResult:
    integrations.inventory().release(key)
    return contracts.StepResult("Reservation released")


def _refund_payment(order: Order, key: str) -> contracts.StepResult:
    integrations.payments().refund(key)
    return contracts.StepResult("Payment refunded")


def _revert_warehouse(order: Order, key: str) -> contracts.StepResult:
    integrations.warehouse().revert(key)
    return contracts.StepResult("Delivery called off")


# Each takes the idempotency key of the attempt.
_INTEGRATION_CALLS: Final[dict[str, Callable[[Order, str], contracts.StepResult]]] = {
    contracts.CHECK_INVENTORY: _check_inventory,
    contracts.RESERVE_INVENTORY: _reserve_inventory,
    contracts.PROCESS_PAYMENT: _process_payment,
    contracts.UPDATE_WAREHOUSE: _update_warehouse,
    contracts.SEND_CONFIRMATION: _send_confirmation,
    contracts.RELEASE_INVENTORY: _release_inventory,
    contracts.REFUND_PAYMENT: _refund_payment,
    contracts.REVERT_WAREHOUSE: _revert_warehouse,
}


# The steps that change the order's state; `current_state` makes the answer to each. The row may
# have moved to the next attempt since `order` was read. Its approval is then VOID, or decided.


def _await_approval(order: Order, request: contracts.CompensationRequest, act: Act) -> None:
    """Begin the approval window when the workflow waits for the first time."""
    if order.approval_id is not None:
        undecided = Approval.objects.filter(pk=order.approval_id, verdict=None, expires_at=None)
        undecided.update(expires_at=_end_of_window(order, act.at))


def _end_of_window(order: Order, now: datetime) -> datetime:
    return now + timedelta(seconds=order.approval_seconds)


def _settle_approval(order: Order, request: contracts.CompensationRequest, act: Act) -> None:
    """Decide by the first signal, or let the order expire at the end of its window (O3, O4).

    Nothing that the caller says decides. `act` is timed before the signals are read, so a signal
    that came in time is among them when the order expires. While Temporal does not answer, the
    workflow asks again, but for no longer than PATIENCE after the end of the window.
    """
    approval = order.approval
    if order.state != State.PENDING or approval is None:
        return
    end = approval.expires_at
    signals = _signals(order)
    with contextlib.suppress(approvals.WrongState):
        if signals.found and _is_decided_by(signals, order, approval, act.at):
            return
        if not signals.complete and (end is None or act.at < end + PATIENCE):
            raise OutcomeUnknown("Temporal does not report the signals; ask again.")
        if end is not None and act.at >= end:
            approvals.decide(approval, Verdict.EXPIRED, replace(act, reason=services.TIMED_OUT))


def _signals(order: Order) -> inspection.Signals:
    """Return the signals to the run of the order's attempt that were not refused before."""
    try:
        return loop.ask(
            lambda temporal: inspection.signals_of(
                temporal,
                order.workflow_id,
                memo=services.memo(order),
                names=_VERDICT_OF.keys(),
                after=(order.signals_run, order.signals_event),
            ),
            seconds=client.CALL_SECONDS,
        )
    except client.Unreachable:
        return inspection.Signals(complete=False)


def _is_decided_by(
    signals: inspection.Signals, order: Order, approval: Approval, now: datetime
) -> bool:
    """Decide by the first signal and return True; or, where signals may not decide this order,
    audit each signal once and return False.

    The rule is about the order, so a refusal of the first signal holds for all of them.
    """
    first = signals.found[0]
    verdict = _VERDICT_OF[first.name]
    unstated = UNSTATED_REASON if verdict == Verdict.REJECTED else ""
    act = Act(_sender(first), Route.SIGNAL, now, first.reason.strip() or unstated)
    try:
        services.check_signals_decide(order)
    except services.SignalRefused as refusal:
        _audit_refused(signals, order, str(refusal), now)
        return False
    approvals.decide(approval, verdict, act)
    return True


def _audit_refused(signals: inspection.Signals, order: Order, refusal: str, now: datetime) -> None:
    with transaction.atomic(durable=True):
        # Another request with the same signals finds them refused. The site delivers a decision
        # by a signal too, so signals to a decided order are not judged.
        if Order.objects.filter(
            pk=order.pk,
            state=State.PENDING,
            attempt=order.attempt,
            signals_run=order.signals_run,
            signals_event=order.signals_event,
        ).update(signals_run=signals.run_id, signals_event=signals.found[-1].event_id):
            for signal in signals.found:
                approvals.record_refusal(
                    services.KIND.name,
                    order.order_id,
                    f"{_VERDICT_OF[signal.name].label}: {refusal}",
                    Act(_sender(signal), Route.SIGNAL, now),
                )


def _sender(signal: inspection.Signal) -> Actor:
    """Return the sender by the name that it claims: clients of Temporal choose their own name."""
    name = signal.sender[:_CLAIM_LENGTH]
    claimed = "".join(letter if letter.isprintable() else "?" for letter in name)
    return Actor(None, f"signal ({claimed})" if claimed else "signal")


def _complete_order(order: Order, request: contracts.CompensationRequest, act: Act) -> None:
    """RUNNING → COMPLETED: from here on nothing is undone."""
    rows = Order.objects.filter(pk=order.pk, attempt=order.attempt)
    with transaction.atomic(durable=True):
        if rows.filter(state=State.RUNNING, steps_begun=len(order.step_names)).update(
            state=State.COMPLETED, ended_at=act.at
        ):
            services.record(AuditEntry.Event.COMPLETED, order, act)
    if rows.filter(state=State.COMPLETED).exists():
        key = order.idempotency_key(order.attempt)
        _called(lambda: integrations.inventory().fulfil(key))


def _begin_compensation(order: Order, request: contracts.CompensationRequest, act: Act) -> None:
    """RUNNING → COMPENSATING, for the first reason that is given. A pending order, for which
    nothing was done, ends at once."""
    ends_as = State.CANCELLED if request.cancelled else State.FAILED
    # `cancel_order` names the person who cancels; a caller of this step cannot name one.
    reason = CANCELLED_IN_TEMPORAL if request.cancelled else contracts.storable(request.reason)
    rows = Order.objects.filter(pk=order.pk, attempt=order.attempt)
    # The site knows of no failure of a pending order, so the reason says who reports one.
    early = reason if request.cancelled else f"its workflow failed: {reason}"
    with transaction.atomic(durable=True):
        approvals.lock(order.approval_id)
        pending = rows.filter(state=State.PENDING)
        if pending.exists():
            # The database takes the end of an order only after its approval is closed.
            entry = services.record(_EVENT_OF_END[ends_as], order, replace(act, reason=early))
            approvals.void(order.approval_id, entry)
            pending.update(state=ends_as, ends_as=ends_as, failure_reason=early, ended_at=act.at)
        elif not rows.filter(state=State.RUNNING).update(
            state=State.COMPENSATING, ends_as=ends_as, failure_reason=reason
        ):
            return
        if request.failed_step and ends_as == State.FAILED:
            step, status = request.failed_step, OrderStep.Status.FAILED
            _note(order, order.attempt, step, status, reason, act.at)


def _close_order(order: Order, request: contracts.CompensationRequest, act: Act) -> None:
    """COMPENSATING → CANCELLED | FAILED: everything is undone. No workflow is left that needs the
    messages in the outbox."""
    rows = Order.objects.filter(pk=order.pk, attempt=order.attempt)
    with transaction.atomic(durable=True):
        if rows.filter(state=State.COMPENSATING).update(state=F("ends_as"), ended_at=act.at):
            order.refresh_from_db()
            event = _EVENT_OF_END[State(order.state)]
            services.record(event, order, replace(act, reason=order.failure_reason))
        if rows.filter(state__in=UNDONE).exists():
            outbox.mark_obsolete(
                [services.KIND.key(name, order.order_id) for name in ("decision", "cancel")],
                why="Its workflow has ended.",
            )


_TRANSITIONS: Final[dict[str, Callable[[Order, contracts.CompensationRequest, Act], None]]] = {
    contracts.AWAIT_APPROVAL: _await_approval,
    contracts.SETTLE_APPROVAL: _settle_approval,
    contracts.COMPLETE_ORDER: _complete_order,
    contracts.BEGIN_COMPENSATION: _begin_compensation,
    contracts.CLOSE_ORDER: _close_order,
}
