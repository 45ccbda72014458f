"""What people do with orders: submit, decide, cancel and retry them, and keep the stock.

Each change is one transaction: compare-and-set on the state, the audit entry, and the message to
the workflow.
"""

import contextlib
import dataclasses
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.db.models import Case, F, QuerySet, Value, When

from access import actors
from approvals import services as approvals
from approvals.models import AuditEntry, Route, Verdict
from orders import integrations
from orders.models import Order, OrderLine, State, StockItem
from outbox import handlers
from outbox import services as outbox
from outbox.models import Message
from rest import idempotency
from temporal import client, inspection, loop
from worker import contracts

log = logging.getLogger(__name__)

SUBJECT: Final = "order"
DECIDE: Final = "orders.decide_order"
SUBMIT: Final = "orders.submit_order"
OPERATE: Final = "orders.operate_order"
CARRY: Final = "orders.carry_order"
VIEW_STOCK: Final = "orders.view_stockitem"
VIEW_CHARGES: Final = "orders.view_charge"
VIEW_WAREHOUSE: Final = "orders.view_warehouserecord"
SNAPSHOT_PERMISSIONS: Final = ("orders.view_order", VIEW_STOCK, VIEW_CHARGES, VIEW_WAREHOUSE)

# The largest value that the column Order.total holds.
LARGEST_TOTAL: Final = Decimal("999999999999.99")
# The number of orders in a list at the root or in a snapshot.
LISTED: Final = 1000
_CANCELLABLE: Final = (State.PENDING, State.RUNNING)
TIMED_OUT: Final = "approval timed out"
PRICE_NEEDS_REASON: Final = "A price change needs a reason; say why."
_SIGNAL_OF = {
    Verdict.APPROVED: contracts.APPROVE_ORDER,
    Verdict.REJECTED: contracts.REJECT_ORDER,
}


class NotSubmitted(Exception):
    """The submission is refused. `field` names the field at fault; the text is a sentence for the
    person."""

    def __init__(self, field: str, text: str) -> None:
        self.field = field
        super().__init__(text)


class IdInUse(NotSubmitted):
    """Another order or workflow already has this order id or workflow id."""


class SignalRefused(approvals.Refused):
    """Signals may not decide this order; a person who signs in may."""


@dataclass(frozen=True, kw_only=True)
class Customer:
    """Who orders, where the order is sent, and how it is paid."""

    customer_id: str
    payment_method: str
    customer_name: str = ""
    customer_email: str = ""
    shipping_address: str = ""


CUSTOMER_FIELDS: Final = tuple(field.name for field in dataclasses.fields(Customer))


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What somebody orders. The site chooses each id that is "". `fail_at` is "" or a key of
    contracts.FAIL_AT."""

    items: Sequence[integrations.Item]
    customer: Customer
    order_id: str = ""
    workflow_id: str = ""
    fail_at: str = ""


def visible_to(actor: actors.Actor) -> QuerySet[Order]:
    """Return the orders that the actor sees, on every route: all with the permission to view or to
    carry out orders, otherwise the actor's own (requirements X10)."""
    orders = Order.objects.select_related("submitter", "decision")
    if actor.may("orders.view_order") or actor.may(CARRY):
        return orders
    return orders.filter(submitter=actor.user)


def check_may_submit(actor: actors.Actor) -> None:
    """Raise approvals.NotPermitted unless the actor may submit orders.

    Call this before parsing the body, so that a person without the permission gets 403, not 400.
    """
    if not actor.may(SUBMIT):
        raise approvals.NotPermitted(
            f"{actor.name} may not submit orders; ask for the Employee group."
        )


def submit_order(
    submission: Submission,
    *,
    actor: actors.Actor,
    route: Route,
    now: datetime,
    may_inject_failure: bool = False,
    key: str = "",
) -> Order:
    """Record an order at the current prices and queue the start of its workflow (requirements O1).

    A total above the threshold needs a decision. Only a local installation may inject failures
    (O6). `key` is the request's idempotency key, or "": a repeat of the same submission with its
    key returns the order of the first request.
    Raises NotSubmitted, IdInUse, approvals.TooManySubmissions.
    """
    if submission.fail_at and not may_inject_failure:
        raise NotSubmitted("fail_at", "Failures are injected in the local mode only; leave it out.")
    order_id = submission.order_id or _new_order_id(actor.user, key)
    workflow_id = submission.workflow_id or (
        contracts.command_workflow_id(order_id)
        if route == Route.COMMAND
        else contracts.order_workflow_id(order_id)
    )
    order = Order(
        order_id=order_id,
        workflow_id=workflow_id,
        submitter=actor.user,
        approval_seconds=settings.ORDERS_APPROVAL_SECONDS,
        fail_at=submission.fail_at,
        created_at=now,
        **vars(submission.customer),
    )
    if key and (earlier := _identical(order, submission)):
        return earlier
    try:
        # Only a chosen id is checked here. For an id that the site made, the start reports a
        # conflict.
        if submission.workflow_id:
            _check_is_free(workflow_id)
        _insert(order, submission, actor=actor, route=route)
    except IdInUse as error:
        # The first of two identical requests may have been stored meanwhile.
        if key and (earlier := _identical(order, submission)):
            return earlier
        if key and not submission.order_id and error.field == "order_id":
            raise IdInUse("Idempotency-Key", idempotency.KEY_REUSED) from None
        raise
    log.info("%s submitted by %s", order_id, actor.name)
    return order


def _new_order_id(user: User | None, key: str) -> str:
    """Return an order id that was never used, or the one that belongs to this key of the user."""
    unique = idempotency.digest(user, key) if key else uuid.uuid4().hex
    return f"ord_{unique[:12]}"


def _identical(order: Order, submission: Submission) -> Order | None:
    """Return the stored order that was submitted by the same person with the same content."""
    stored = Order.objects.filter(
        order_id=order.order_id,
        workflow_id=order.workflow_id,
        submitter=order.submitter,
        **vars(submission.customer),
    ).first()
    if stored is None:
        return None
    ordered = dict(stored.lines.values_list("product_id", "quantity"))
    return stored if ordered == _quantities(submission.items) else None


def _check_is_free(workflow_id: str) -> None:
    """Raise IdInUse for the id of a workflow in Temporal, or of one that is yet to start there.

    While Temporal does not answer, the id counts as free.
    """
    # A later expense or job with this workflow id would find the order's workflow (X7).
    if workflow_id.startswith(contracts.OTHERS_WORKFLOW_IDS):
        raise IdInUse(
            "workflow_id",
            f"The workflow id {workflow_id} is kept for another kind. Choose another, or leave it "
            "out.",
        )
    with contextlib.suppress(client.Unreachable):
        if loop.ask(
            lambda temporal: inspection.run_of(temporal, workflow_id), seconds=client.CALL_SECONDS
        ):
            raise _workflow_id_in_use(workflow_id)


def _workflow_id_in_use(workflow_id: str) -> IdInUse:
    return IdInUse(
        "workflow_id", f"The workflow id {workflow_id} is in use. Choose another, or leave it out."
    )


def _insert(order: Order, submission: Submission, *, actor: actors.Actor, route: Route) -> None:
    """Price and store the order with its lines, its audit entry and the start of its workflow."""
    lines, order.currency = _lines(submission.items)
    order.total = sum((line.unit_price * line.quantity for line in lines), Decimal(0))
    if not 0 < order.total <= LARGEST_TOTAL:
        raise NotSubmitted(
            "lines", f"The total is {order.total}; it must be positive, up to {LARGEST_TOTAL}."
        )
    order.needs_approval = order.total > settings.ORDERS_APPROVAL_THRESHOLD
    order.state = State.PENDING if order.needs_approval else State.RUNNING
    try:
        with transaction.atomic():
            order.save(force_insert=True)
            for line in lines:
                line.order = order
            OrderLine.objects.bulk_create(lines)
            approvals.record_submission(
                SUBJECT, order.order_id, actor=actor, route=route, now=order.created_at
            )
            outbox.enqueue(handlers.START_WORKFLOW, start_key(order.order_id), _start(order))
    except IntegrityError:
        if Order.objects.filter(order_id=order.order_id).exists():
            raise IdInUse(
                "order_id", f"There is an order {order.order_id} already. Choose another ID."
            ) from None
        raise _workflow_id_in_use(order.workflow_id) from None


def _lines(items: Sequence[integrations.Item]) -> tuple[list[OrderLine], str]:
    """Return the lines to be stored, one for each product, and the currency of their prices.

    Raises NotSubmitted.
    """
    wanted = _quantities(items)
    if not wanted:
        raise NotSubmitted("lines", "An order needs at least one line.")
    products = integrations.inventory().products(list(wanted))
    if unknown := sorted(wanted.keys() - products.keys()):
        raise NotSubmitted("lines", f"There is no product {', '.join(unknown)}.")
    if any(round(product.unit_price, 2) != product.unit_price for product in products.values()):
        raise NotSubmitted("lines", "A product has a price with more than two decimals.")
    currency, *others = {product.currency for product in products.values()}
    if others:
        raise NotSubmitted(
            "lines", "The products have prices in several currencies; order them apart."
        )
    lines = [
        OrderLine(
            product_id=product_id,
            name=products[product_id].name,
            quantity=quantity,
            unit_price=products[product_id].unit_price,
        )
        for product_id, quantity in wanted.items()
    ]
    return lines, currency


def _quantities(items: Sequence[integrations.Item]) -> dict[str, int]:
    """Return the number of pieces of each product, in the order of the lines."""
    pieces: dict[str, int] = {}
    for item in items:
        pieces[item.product_id] = pieces.get(item.product_id, 0) + item.quantity
    return pieces


def _start(order: Order) -> dict[str, Any]:
    """Return the payload of the message that starts the workflow of the order's attempt."""
    argument = contracts.Order(
        order=str(order.pk),
        order_id=order.order_id,
        attempt=order.attempt,
        needs_approval=order.needs_approval,
        fail_at=order.fail_at,
    )
    return {
        "workflow": contracts.ORDER_WORKFLOW,
        "argument": dataclasses.asdict(argument),
        "workflow_id": order.workflow_id,
        "queue": contracts.ORDER_QUEUE,
        "memo": memo(order),
    }


def memo(order: Order) -> dict[str, Any]:
    """Return the memo that marks the run of the order's attempt among runs of the same id."""
    return {"order": str(order.pk), "attempt": order.attempt}


def decide_order(
    order: Order,
    *,
    verdict: Verdict,
    actor: actors.Actor,
    route: Route,
    now: datetime,
    reason: str = "",
) -> Message | None:
    """Take the one decision on `order` (requirements O3, O4).

    An approved order runs; a rejected or expired one is cancelled. Returns the message to the
    workflow, or None where the workflow itself asks and gets the decision as its answer.
    Raises approvals.Refused where the actor may not decide (audited, except for a missing reason),
    SignalRefused where signals may not (its caller audits each signal once),
    approvals.AlreadyDecided where somebody was first, and approvals.WrongState where the order
    needs no decision or was cancelled. Nothing changes then.
    """
    if route == Route.SIGNAL:
        _check_signals_decide(order)
    decision: dict[str, Any] = {
        "verdict": verdict,
        "subject": SUBJECT,
        "subject_id": order.order_id,
        "actor": actor,
        "route": route,
        "reason": reason,
        "now": now,
    }
    approvals.check_may_decide(**decision, permission=DECIDE, submitter_id=order.submitter_id)
    if verdict == Verdict.APPROVED:
        change: dict[str, Any] = {"state": State.RUNNING}
    else:
        change = _cancelled(reason, now)
    message = None
    with transaction.atomic(durable=True):
        decision_id = uuid.uuid4()
        # Only the attempt that the actor has read: a decision never applies to the next one.
        if not Order.objects.filter(pk=order.pk, state=State.PENDING, attempt=order.attempt).update(
            decision_id=decision_id, **change
        ):
            _raise_not_pending(order)
        approvals.record_decision(decision_id, **decision)
        if route not in (Route.SIGNAL, Route.WORKFLOW):
            message = outbox.enqueue(
                handlers.SIGNAL_WORKFLOW,
                decision_key(order.order_id),
                _signal(order, verdict, reason),
            )
    log.info("%s %s by %s", order.order_id, verdict.label, actor.name)
    return message


def _check_signals_decide(order: Order) -> None:
    """Raise SignalRefused where the settings leave this order to people.

    A signal names no user, so the rule of approvals cannot judge it. Its permission is the access
    to Temporal, if the settings grant that (docs/adr/0008).
    """
    if not settings.ORDERS_SIGNAL_DECISIONS:
        raise SignalRefused(
            "Signals decide no orders here (ORDERS_SIGNAL_DECISIONS); an approver decides in the "
            "admin or over the API."
        )
    if order.total > settings.ORDERS_SIGNAL_LIMIT:
        raise SignalRefused(
            f"Signals decide orders of up to {settings.ORDERS_SIGNAL_LIMIT} (ORDERS_SIGNAL_LIMIT), "
            f"and the total is {order.money()}; an approver decides in the admin or over the API."
        )


def _raise_not_pending(order: Order) -> None:
    order.refresh_from_db()
    if order.decision is not None:
        raise approvals.AlreadyDecided(order.order_id, order.decision)
    if order.state == State.PENDING:
        raise approvals.WrongState(f"{order.order_id} was retried meanwhile; decide once more.")
    raise approvals.WrongState(
        f"{order.order_id} waits for no decision: it is {order.get_state_display()}."
    )


def may_cancel(order: Order, actor: actors.Actor) -> bool:
    """Return whether :func:`cancel_order` would let the actor cancel the order, so that pages offer
    it."""
    return order.state in _CANCELLABLE and _submitted_or_operates(order, actor)


def _submitted_or_operates(order: Order, actor: actors.Actor) -> bool:
    own = actor.user is not None and actor.user.pk == order.submitter_id
    return own or actor.may(OPERATE)


def cancel_order(
    order: Order, *, actor: actors.Actor, route: Route, now: datetime, reason: str = ""
) -> None:
    """Cancel an order that has not ended. Its submitter may, and everybody who operates orders.

    An order without a begun step is cancelled at once; otherwise the begun steps are undone first.
    A repeat changes nothing. The relay notifies the workflow.
    Raises approvals.NotPermitted (audited), approvals.WrongState.
    """
    permitted = _submitted_or_operates(order, actor)
    _check_permitted(permitted, order, "cancel", actor=actor, route=route, now=now)
    why = f"cancelled by {actor.name}" + (f": {reason}" if reason else "")
    # Only the attempt that the actor has read: a cancellation never applies to the next one.
    rows = Order.objects.filter(pk=order.pk, attempt=order.attempt)
    with transaction.atomic(durable=True):
        untouched = rows.filter(state__in=_CANCELLABLE, steps_begun=0)
        if not untouched.update(**_cancelled(why, now)) and not rows.filter(
            state=State.RUNNING
        ).update(state=State.COMPENSATING, ends_as=State.CANCELLED, failure_reason=why):
            order.refresh_from_db()
            if order.ends_as == State.CANCELLED:
                return
            if order.state in _CANCELLABLE:
                raise approvals.WrongState(
                    f"{order.order_id} was retried meanwhile; cancel once more."
                )
            raise approvals.WrongState(
                f"{order.order_id} cannot be cancelled: it is {order.get_state_display()}."
            )
        record(AuditEntry.Event.CANCELLED, order, actor=actor, route=route, now=now, reason=reason)
        # An earlier attempt may have left a settled message with this key.
        outbox.enqueue_again(handlers.CANCEL_WORKFLOW, cancel_key(order.order_id), _address(order))
    log.info("%s cancelled by %s", order.order_id, actor.name)


def retry_order(
    order: Order, *, actor: actors.Actor, route: Route, now: datetime, reason: str = ""
) -> None:
    """Carry out a failed order again, as its next attempt and without an injected failure.

    A decision stays. The relay starts the workflow.
    Raises approvals.NotPermitted (audited), approvals.WrongState.
    """
    _check_permitted(actor.may(OPERATE), order, "retry", actor=actor, route=route, now=now)
    with transaction.atomic(durable=True):
        undecided = When(needs_approval=True, decision=None, then=Value(State.PENDING))
        if not Order.objects.filter(pk=order.pk, state=State.FAILED, attempt=order.attempt).update(
            state=Case(undecided, default=Value(State.RUNNING)),
            attempt=F("attempt") + 1,
            steps_begun=0,
            ends_as="",
            failure_reason="",
            fail_at="",
            ended_at=None,
            expires_at=None,
        ):
            order.refresh_from_db()
            raise approvals.WrongState(
                f"Only a failed order is retried; {order.order_id} is {order.get_state_display()}."
            )
        order.refresh_from_db()
        record(AuditEntry.Event.RETRIED, order, actor=actor, route=route, now=now, reason=reason)
        # The start of the failed attempt was delivered, but that may not be noted yet.
        outbox.mark_obsolete([start_key(order.order_id)], why="Its attempt has failed.")
        start_again(order)
    log.info("%s retried by %s", order.order_id, actor.name)


def start_again(order: Order) -> bool:
    """Queue the start of the workflow once more, after Temporal lost or ended it; return False
    where the start is queued already.

    The new run gets the recorded answer for each step that was done. It also asks for the order's
    state, so a decision or cancellation that could not be delivered needs no more attention.
    """
    with transaction.atomic():
        outbox.supersede(decision_key(order.order_id))
        outbox.supersede(cancel_key(order.order_id))
        return outbox.enqueue_again(
            handlers.START_WORKFLOW, start_key(order.order_id), _start(order)
        )


def notify_again(order: Order) -> bool:
    """Queue the decision, or without one the cancellation, once more for a workflow that still
    waits; return False where it is queued already. The workflow then asks for the order's state."""
    decision = order.decision
    if decision is not None and decision.verdict in _SIGNAL_OF:
        signal = _signal(order, Verdict(decision.verdict), decision.reason)
        return outbox.enqueue_again(handlers.SIGNAL_WORKFLOW, decision_key(order.order_id), signal)
    return outbox.enqueue_again(
        handlers.CANCEL_WORKFLOW, cancel_key(order.order_id), _address(order)
    )


def add_product(
    item: StockItem, *, pieces: int, actor: actors.Actor, route: Route, now: datetime
) -> None:
    """Insert `item`, a product that is not stored yet, with its available pieces."""
    item.available = pieces
    act: dict[str, Any] = {"actor": actor, "route": route, "now": now}
    with transaction.atomic():
        item.save(force_insert=True)
        what = f"{item.name} at {item.unit_price} {item.currency}, {pieces} pieces"
        _record_stock(AuditEntry.Event.CREATED, item, reason=what, **act)


def change_product(
    item: StockItem,
    *,
    name: str,
    unit_price: Decimal,
    currency: str,
    pieces: int,
    actor: actors.Actor,
    route: Route,
    now: datetime,
    reason: str = "",
) -> None:
    """Replace the name and the price that `item` has, and add pieces to the available ones or take
    some away where `pieces` is negative. Reserved pieces stay, and orders keep the price at which
    they were submitted. Without a difference nothing happens.

    Raises approvals.ReasonMissing for a price change without a reason, and approvals.WrongState
    where the name or the price was changed meanwhile or too few pieces are available. Nothing
    changes then.
    """
    changes = []
    if name != item.name:
        changes.append(f"name {item.name} → {name}")
    if (unit_price, currency) != (item.unit_price, item.currency):
        if not reason:
            raise approvals.ReasonMissing(PRICE_NEEDS_REASON)
        changes.append(f"price {item.unit_price} {item.currency} → {unit_price} {currency}")
    if pieces:
        changes.append(f"{pieces:+d} pieces")
    if not changes:
        return
    what = ", ".join(changes) + (f": {reason}" if reason else "")
    act: dict[str, Any] = {"actor": actor, "route": route, "now": now}
    unchanged = StockItem.objects.filter(
        pk=item.pk, name=item.name, unit_price=item.unit_price, currency=item.currency
    )
    with transaction.atomic():
        if not unchanged.filter(available__gte=-pieces).update(
            name=name,
            unit_price=unit_price,
            currency=currency,
            available=F("available") + pieces,
        ):
            if unchanged.exists():
                raise approvals.WrongState(f"Fewer than {-pieces} pieces of {item} are available.")
            raise approvals.WrongState(
                f"{item} was changed meanwhile; look at it and change it again."
            )
        _record_stock(AuditEntry.Event.ADJUSTED, item, reason=what, **act)


def _record_stock(event: AuditEntry.Event, item: StockItem, **act: Any) -> None:
    approvals.record_event(event, subject="stock", subject_id=item.product_id, **act)
    log.info("%s %s: %s by %s", item.product_id, event.label, act["reason"], act["actor"].name)


class Snapshot(NamedTuple):
    """The newest orders, and the integrations' records as orders.integrations describes them."""

    orders: list[Order]
    inventory: list[dict[str, Any]]
    payments: list[dict[str, Any]]
    warehouse: list[dict[str, Any]]


def snapshot() -> Snapshot:
    """Return the records of one moment, as far as the integrations keep theirs in this database
    (requirements O7). Not within a transaction."""
    with connection.cursor() as cursor:
        # Django's own transactions take SQLite's only write lock.
        isolated = connection.vendor == "postgresql"
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ" if isolated else "BEGIN")
        try:
            return Snapshot(
                list(Order.objects.all()[:LISTED]),
                integrations.inventory().snapshot(),
                integrations.payments().snapshot(),
                integrations.warehouse().snapshot(),
            )
        finally:
            cursor.execute("ROLLBACK")


def _cancelled(reason: str, now: datetime) -> dict[str, Any]:
    """Return the columns of an order that is cancelled before its first step."""
    return {
        "state": State.CANCELLED,
        "ends_as": State.CANCELLED,
        "failure_reason": reason,
        "ended_at": now,
    }


def _check_permitted(
    permitted: bool,
    order: Order,
    verb: str,
    *,
    actor: actors.Actor,
    route: Route,
    now: datetime,
) -> None:
    """Raise approvals.NotPermitted, and audit it, unless the actor is `permitted`."""
    if permitted:
        return
    refusal = approvals.NotPermitted(f"{actor.name} has no permission to {verb} orders.")
    approvals.record_refusal(
        SUBJECT, order.order_id, f"{verb}: {refusal}", actor=actor, route=route, now=now
    )
    raise refusal


def _address(order: Order) -> dict[str, Any]:
    """Return the part of a message's payload that names the workflow."""
    return {
        "workflow_id": order.workflow_id,
        "memo": memo(order),
        "started": not outbox.waiting([start_key(order.order_id)]),
    }


def _signal(order: Order, verdict: Verdict, reason: str) -> dict[str, Any]:
    """Return the payload of the message that notifies the workflow of the decision."""
    return {**_address(order), "signal": _SIGNAL_OF[verdict], "argument": reason}


def record(event: AuditEntry.Event, order: Order, **act: Any) -> None:
    """Audit an event of the order; `act` is the actor, route, time and reason."""
    approvals.record_event(event, subject=SUBJECT, subject_id=order.order_id, **act)


# The prefixes of the keys of an order's messages, and the words for each message.
MESSAGES: Final = {
    "order-start:": "start of",
    "order-decision:": "decision on",
    "order-cancel:": "cancellation of",
}
_START, _DECISION, _CANCEL = MESSAGES


def start_key(order_id: str) -> str:
    """Return the key of the message that starts the workflow."""
    return _START + order_id


def decision_key(order_id: str) -> str:
    """Return the key of the message that carries the decision to the workflow."""
    return _DECISION + order_id


def cancel_key(order_id: str) -> str:
    """Return the key of the message that cancels the workflow."""
    return _CANCEL + order_id


def message_keys(order_id: str) -> list[str]:
    """Return the keys of all messages of an order."""
    return [prefix + order_id for prefix in MESSAGES]
