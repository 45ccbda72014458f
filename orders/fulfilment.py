"""The steps that an order's workflow asks of the site (requirements O2-O5).

Each step calls its integration outside of any transaction and records the result once; a repeat is
answered with the record. A compare-and-set decides how an order ends: `complete_order` and
`begin_compensation` exclude each other.
"""

import contextlib
import logging
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from django.db import DatabaseError, transaction
from django.db.models import F
from django.db.models.functions import Greatest

from access import actors
from approvals import services as approvals
from approvals.models import AuditEntry, Route, Verdict
from orders import integrations, services
from orders.models import UNDONE, Order, OrderStep, State
from outbox import services as outbox
from temporal import client, inspection, loop
from worker import contracts

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
    order: Order,
    step: str,
    *,
    attempt: int,
    details: dict[str, Any],
    actor: actors.Actor,
    now: datetime,
) -> dict[str, Any]:
    """Carry out a step for the workflow of an attempt, once, and return the answer to the workflow.
    Not within a transaction.

    Raises UnknownStep, NotNow, and integrations.Declined where another system refuses. After
    OutcomeUnknown or an error of the database the workflow asks again.
    """
    if step in _FORWARD:
        return _do(order, step, attempt=attempt, now=now)
    if step in _UNDO:
        return _undo(order, step, attempt=attempt, now=now)
    if step not in _DECISIONS:
        raise UnknownStep(f"There is no step {step}.")
    if attempt == order.attempt:
        _DECISIONS[step](order, details, actor, now)
    answer = current_state(order, now)
    if attempt != order.attempt:
        # The run was started twice, or repeats a request late. It fails, like its attempt.
        reason = f"{order.order_id} is in attempt {order.attempt}, not {attempt}."
        return {"state": State.FAILED, "verdict": "", "approval_reason": "", "reason": reason}
    if step == contracts.BEGIN_COMPENSATION:
        answer["begun"] = [begun for begun, _ in contracts.SAGA[: order.steps_begun]]
    return answer


def current_state(order: Order, now: datetime) -> dict[str, Any]:
    """Return `{"state", "verdict", "approval_reason", "reason"}` for the workflow; `reason` is why
    the order failed or was cancelled.

    A pending order also has `"seconds_left"`: after how many whole seconds, at least 1, the
    workflow asks again.
    """
    order.refresh_from_db()
    decision = order.decision
    answer: dict[str, Any] = {
        "state": order.state,
        "verdict": decision.verdict if decision else "",
        "approval_reason": decision.reason if decision else "",
        "reason": order.failure_reason,
    }
    if order.state == State.PENDING:
        left = (order.expires_at or _end_of_window(order, now)) - now
        answer["seconds_left"] = max(1, math.ceil(left.total_seconds()))
    return answer


# Steps and their undoing.


def _do(order: Order, step: str, *, attempt: int, now: datetime) -> dict[str, Any]:
    done = order.steps.filter(attempt=attempt, name=step, status=OrderStep.Status.COMPLETED).first()
    allowed = (
        (State.RUNNING, State.COMPLETED) if done else _ALLOWED_STATES.get(step, (State.RUNNING,))
    )
    # Compare-and-set: a compensation either finds that this step was begun, or prevents it.
    if not Order.objects.filter(pk=order.pk, attempt=attempt, state__in=allowed).update(
        steps_begun=Greatest("steps_begun", _POSITION.get(step, 0))
    ):
        order.refresh_from_db()
        raise NotNow(f"{order.order_id} is {order.get_state_display()} in attempt {order.attempt}.")
    if done:
        return {**done.result, "message": done.message}
    result = _called(lambda: _FORWARD[step](order, order.idempotency_key(attempt)))
    message = result.pop("message")
    _note(order, attempt, step, OrderStep.Status.COMPLETED, message, now=now, result=result)
    return {**result, "message": message}


def _undo(order: Order, step: str, *, attempt: int, now: datetime) -> dict[str, Any]:
    order.refresh_from_db()
    # An undo is permanent, so never undo an attempt that can still run.
    if attempt > order.attempt or (
        attempt == order.attempt and order.state in (State.PENDING, State.RUNNING, State.COMPLETED)
    ):
        raise NotNow(f"{order.order_id} is {order.get_state_display()}; nothing of it is undone.")
    if attempt == order.attempt and _UNDONE_POSITION[step] > order.steps_begun:
        return {"message": "The step was never begun; nothing is undone"}
    undo, message = _UNDO[step]
    _called(lambda: undo(order.idempotency_key(attempt)))
    _note(order, attempt, step, OrderStep.Status.COMPENSATED, message, now=now)
    return {"message": message}


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
    *,
    now: datetime,
    result: dict[str, Any] | None = None,
) -> None:
    """Add a line to the order's timeline, unless it is there already."""
    _, is_new = order.steps.get_or_create(
        attempt=attempt,
        name=step,
        status=status,
        defaults={"message": message, "result": result or {}, "at": now},
    )
    if is_new:
        log.info("%s: %s %s: %s", order.order_id, step, status, message)


def _items(order: Order) -> list[integrations.Item]:
    return [integrations.Item(line.product_id, line.quantity) for line in order.lines.all()]


def _check_inventory(order: Order, key: str) -> dict[str, Any]:
    integrations.inventory().check(_items(order))
    return {"message": "All items are available"}


def _reserve_inventory(order: Order, key: str) -> dict[str, Any]:
    items = _items(order)
    reservation_id = integrations.inventory().reserve(key, items)
    return {
        "reservation_id": reservation_id,
        "message": f"Reserved {len(items)} item(s) successfully",
    }


def _process_payment(order: Order, key: str) -> dict[str, Any]:
    charge_id = integrations.payments().charge(
        key, amount=order.total, currency=order.currency, method=order.payment_method
    )
    return {
        "charge_id": charge_id,
        "message": f"Payment of {order.sample_money()} processed successfully",
    }


def _update_warehouse(order: Order, key: str) -> dict[str, Any]:
    delivery = integrations.warehouse().update(
        key, order_id=order.order_id, items=_items(order), address=order.shipping_address
    )
    return {
        "tracking_number": delivery.tracking_number,
        "estimated_delivery": delivery.estimated_delivery.isoformat(),
        "message": "Delivery scheduled",
    }


def _send_confirmation(order: Order, key: str) -> dict[str, Any]:
    if not order.customer_email:
        return {"message": "No e-mail address, no confirmation"}
    integrations.mailer().send(
        key,
        recipient=order.customer_email,
        subject=f"Your order {order.order_id}",
        body=f"Thank you. Your order {order.order_id} over {order.money()} is on its way.",
    )
    return {"message": "Confirmation sent"}


_FORWARD: Final[dict[str, Callable[[Order, str], dict[str, Any]]]] = {
    contracts.CHECK_INVENTORY: _check_inventory,
    contracts.RESERVE_INVENTORY: _reserve_inventory,
    contracts.PROCESS_PAYMENT: _process_payment,
    contracts.UPDATE_WAREHOUSE: _update_warehouse,
    contracts.SEND_CONFIRMATION: _send_confirmation,
}
_POSITION: Final = {step: place for place, (step, _) in enumerate(contracts.SAGA, start=1)}
_UNDONE_POSITION: Final = {undo: place for place, (_, undo) in enumerate(contracts.SAGA, start=1)}
# The confirmation is sent after the order is complete, when nothing can be undone any more.
_ALLOWED_STATES: Final = {contracts.SEND_CONFIRMATION: (State.COMPLETED,)}
# Each undo takes the idempotency key; its message is for the timeline.
_UNDO: Final[dict[str, tuple[Callable[[str], None], str]]] = {
    contracts.RELEASE_INVENTORY: (
        lambda key: integrations.inventory().release(key),
        "Reservation released",
    ),
    contracts.REFUND_PAYMENT: (
        lambda key: integrations.payments().refund(key),
        "Payment refunded",
    ),
    contracts.REVERT_WAREHOUSE: (
        lambda key: integrations.warehouse().revert(key),
        "Delivery called off",
    ),
}


# The steps that change the order's state; `current_state` makes the answer to each. The row may
# have moved to the next attempt since `order` was read.


def _await_approval(
    order: Order, details: dict[str, Any], actor: actors.Actor, now: datetime
) -> None:
    """Begin the approval window when the workflow waits for the first time."""
    Order.objects.filter(
        pk=order.pk, state=State.PENDING, attempt=order.attempt, expires_at=None
    ).update(expires_at=_end_of_window(order, now))


def _end_of_window(order: Order, now: datetime) -> datetime:
    return now + timedelta(seconds=order.approval_seconds)


def _settle_approval(
    order: Order, details: dict[str, Any], actor: actors.Actor, now: datetime
) -> None:
    """Decide by the first signal, or let the order expire at the end of its window (O3, O4).

    Nothing that the caller says decides. `now` is taken before the signals are read, so a signal
    that came in time is among them when the order expires. While Temporal does not answer, the
    workflow asks again, but for no longer than PATIENCE after the end of the window.
    """
    if order.state != State.PENDING:
        return
    end = order.expires_at
    signals = _signals(order)
    with contextlib.suppress(approvals.WrongState):
        if signals.found and _is_decided_by(signals, order, now):
            return
        if not signals.complete and (end is None or now < end + PATIENCE):
            raise OutcomeUnknown("Temporal does not report the signals; ask again.")
        if end is not None and now >= end:
            services.decide_order(
                order,
                verdict=Verdict.EXPIRED,
                actor=actor,
                route=Route.WORKFLOW,
                reason=services.TIMED_OUT,
                now=now,
            )


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


def _is_decided_by(signals: inspection.Signals, order: Order, now: datetime) -> bool:
    """Decide by the first signal and return True; or, where signals may not decide this order,
    audit each signal once and return False.

    The rule is about the order, so a refusal of the first signal holds for all of them.
    """
    first = signals.found[0]
    verdict = _VERDICT_OF[first.name]
    unstated = UNSTATED_REASON if verdict == Verdict.REJECTED else ""
    try:
        services.decide_order(
            order,
            verdict=verdict,
            actor=_sender(first),
            route=Route.SIGNAL,
            reason=first.reason.strip() or unstated,
            now=now,
        )
    except services.SignalRefused as refusal:
        _audit_refused(signals, order, str(refusal), now)
        return False
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
                    services.SUBJECT,
                    order.order_id,
                    f"{_VERDICT_OF[signal.name].label}: {refusal}",
                    actor=_sender(signal),
                    route=Route.SIGNAL,
                    now=now,
                )


def _sender(signal: inspection.Signal) -> actors.Actor:
    """Return the sender by the name that it claims: clients of Temporal choose their own name."""
    name = signal.sender[:_CLAIM_LENGTH]
    claimed = "".join(letter if letter.isprintable() else "?" for letter in name)
    return actors.Actor(None, f"signal ({claimed})" if claimed else "signal")


def _complete_order(
    order: Order, details: dict[str, Any], actor: actors.Actor, now: datetime
) -> None:
    """RUNNING → COMPLETED: from here on nothing is undone."""
    rows = Order.objects.filter(pk=order.pk, attempt=order.attempt)
    with transaction.atomic(durable=True):
        if rows.filter(state=State.RUNNING, steps_begun=len(contracts.SAGA)).update(
            state=State.COMPLETED, ended_at=now
        ):
            _record(AuditEntry.Event.COMPLETED, order, actor=actor, now=now)
    if rows.filter(state=State.COMPLETED).exists():
        key = order.idempotency_key(order.attempt)
        _called(lambda: integrations.inventory().fulfil(key))


def _begin_compensation(
    order: Order, details: dict[str, Any], actor: actors.Actor, now: datetime
) -> None:
    """RUNNING → COMPENSATING, for the first reason that is given. A pending order, for which
    nothing was done, ends at once."""
    cancelled = bool(details.get("cancelled"))
    ends_as = State.CANCELLED if cancelled else State.FAILED
    # `cancel_order` names the person who cancels; a caller of this step cannot name one.
    reason = CANCELLED_IN_TEMPORAL if cancelled else contracts.storable(details.get("reason"))
    step = str(details.get("failed_step", ""))
    rows = Order.objects.filter(pk=order.pk, attempt=order.attempt)
    # The site knows of no failure of a pending order, so the reason says who reports one.
    early = reason if cancelled else f"its workflow failed: {reason}"
    with transaction.atomic(durable=True):
        if rows.filter(state=State.PENDING).update(
            state=ends_as, ends_as=ends_as, failure_reason=early, ended_at=now
        ):
            _record(_EVENT_OF_END[ends_as], order, actor=actor, now=now, reason=early)
        elif not rows.filter(state=State.RUNNING).update(
            state=State.COMPENSATING, ends_as=ends_as, failure_reason=reason
        ):
            return
        if step and ends_as == State.FAILED:
            _note(order, order.attempt, step, OrderStep.Status.FAILED, reason, now=now)


def _close_order(order: Order, details: dict[str, Any], actor: actors.Actor, now: datetime) -> None:
    """COMPENSATING → CANCELLED | FAILED: everything is undone. No workflow is left that needs the
    messages in the outbox."""
    rows = Order.objects.filter(pk=order.pk, attempt=order.attempt)
    with transaction.atomic(durable=True):
        if rows.filter(state=State.COMPENSATING).update(state=F("ends_as"), ended_at=now):
            order.refresh_from_db()
            event = _EVENT_OF_END[State(order.state)]
            _record(event, order, actor=actor, now=now, reason=order.failure_reason)
        if rows.filter(state__in=UNDONE).exists():
            outbox.mark_obsolete(
                [services.decision_key(order.order_id), services.cancel_key(order.order_id)],
                why="Its workflow has ended.",
            )


def _record(event: AuditEntry.Event, order: Order, **act: Any) -> None:
    services.record(event, order, route=Route.WORKFLOW, **act)


_DECISIONS: Final[dict[str, Callable[[Order, dict[str, Any], actors.Actor, datetime], None]]] = {
    contracts.AWAIT_APPROVAL: _await_approval,
    contracts.SETTLE_APPROVAL: _settle_approval,
    contracts.COMPLETE_ORDER: _complete_order,
    contracts.BEGIN_COMPENSATION: _begin_compensation,
    contracts.CLOSE_ORDER: _close_order,
}
# The names of all steps.
STEPS: Final = (*_DECISIONS, *_FORWARD, *_UNDO)
