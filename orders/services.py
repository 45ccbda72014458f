"""What people do with orders: submit, decide, cancel, retry, and keep the stock. Each change is one
transaction: compare-and-set on the state, the record of it, and the message that carries it on."""

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
from worker import contracts

log = logging.getLogger(__name__)

SUBJECT: Final = "order"
DECIDE: Final = "orders.decide_order"
SUBMIT: Final = "orders.submit_order"
OPERATE: Final = "orders.operate_order"
CARRY: Final = "orders.carry_order"

# What the constraint on Order.total can hold.
LARGEST_TOTAL: Final = Decimal("999999999999.99")
# Orders in a list or a snapshot.
LISTED: Final = 1000
TIMED_OUT: Final = "approval timed out"
PRICE_NEEDS_REASON: Final = "A price change needs a reason; say why."
_SIGNAL_OF = {
    Verdict.APPROVED: contracts.APPROVE_ORDER,
    Verdict.REJECTED: contracts.REJECT_ORDER,
}


class AlreadyExists(Exception):
    """An order has this id, or this workflow id, already: `field` says which."""

    def __init__(self, field: str, text: str) -> None:
        self.field = field
        super().__init__(text)


class SignalRefused(approvals.Refused):
    """No signal decides on this order; somebody who signs in does."""


class NotOrderable(Exception):
    """The lines cannot be ordered as they are."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """Who orders, where to, and how it is paid."""

    customer_id: str
    payment_method: str
    customer_name: str = ""
    customer_email: str = ""
    shipping_address: str = ""


def visible_to(user: User) -> QuerySet[Order]:
    """The orders that a person sees on every route: all with the permission to view or to carry
    them, else their own (requirements X10)."""
    orders = Order.objects.select_related("submitter", "decision")
    if user.has_perm("orders.view_order") or user.has_perm(CARRY):
        return orders
    return orders.filter(submitter=user.pk)


def new_order_id() -> str:
    """An id for an order that named none (O8)."""
    return f"ord_{uuid.uuid4().hex[:12]}"


def submit_order(
    order_id: str,
    *,
    workflow_id: str,
    items: Sequence[integrations.Item],
    details: Details,
    actor: actors.Actor,
    route: Route,
    now: datetime,
    fail_at: str = "",
) -> Order:
    """Record an order at the prices of now, and have its workflow started (O1).

    A total above the threshold needs a decision. `fail_at` is a key of contracts.FAIL_AT or "";
    where it is allowed is the caller's rule (O6). Raises NotOrderable, AlreadyExists,
    approvals.TooManySubmissions.
    """
    # What is submitted later under it would find its workflow running (X7).
    if workflow_id.startswith(contracts.OTHERS_WORKFLOW_IDS):
        raise AlreadyExists(
            "workflow_id",
            f"The workflow id {workflow_id} is kept for another kind. Choose another, or leave it "
            "out.",
        )
    lines, currency = _lines(items)
    total = sum((line.unit_price * line.quantity for line in lines), Decimal(0))
    if not 0 < total <= LARGEST_TOTAL:
        raise NotOrderable(f"The total is {total}; it must be positive, up to {LARGEST_TOTAL}.")
    needs_approval = total > settings.ORDERS_APPROVAL_THRESHOLD
    try:
        with transaction.atomic():
            order = Order.objects.create(
                order_id=order_id,
                workflow_id=workflow_id,
                state=State.PENDING if needs_approval else State.RUNNING,
                submitter=actor.user,
                total=total,
                currency=currency,
                needs_approval=needs_approval,
                approval_seconds=settings.ORDERS_APPROVAL_SECONDS,
                fail_at=fail_at,
                created_at=now,
                **vars(details),
            )
            for line in lines:
                line.order = order
            OrderLine.objects.bulk_create(lines)
            approvals.record_submission(SUBJECT, order_id, actor=actor, route=route, now=now)
            outbox.enqueue(handlers.START_WORKFLOW, start_key(order_id), _start(order))
    except IntegrityError:
        if Order.objects.filter(order_id=order_id).exists():
            raise AlreadyExists(
                "order_id", f"There is an order {order_id} already. Choose another ID."
            ) from None
        raise AlreadyExists(
            "workflow_id",
            f"The workflow id {workflow_id} is in use. Choose another, or leave it out.",
        ) from None
    log.info("%s submitted by %s", order_id, actor.name)
    return order


def _lines(items: Sequence[integrations.Item]) -> tuple[list[OrderLine], str]:
    """The lines of an order that is yet to come, one for each product, and the currency of their
    prices. Raises NotOrderable."""
    wanted = quantities(items)
    if not wanted:
        raise NotOrderable("An order needs at least one line.")
    products = integrations.inventory().products(list(wanted))
    if unknown := sorted(wanted.keys() - products.keys()):
        raise NotOrderable(f"There is no product {', '.join(unknown)}.")
    if any(round(product.unit_price, 2) != product.unit_price for product in products.values()):
        raise NotOrderable("A product has a price with more than two decimals.")
    currency, *others = {product.currency for product in products.values()}
    if others:
        raise NotOrderable("The products have prices in several currencies; order them apart.")
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


def quantities(items: Sequence[integrations.Item]) -> dict[str, int]:
    """The pieces of each product, in the order of the lines."""
    pieces: dict[str, int] = {}
    for item in items:
        pieces[item.product_id] = pieces.get(item.product_id, 0) + item.quantity
    return pieces


def _start(order: Order) -> dict[str, Any]:
    """Payload of the message that starts the workflow of the order's attempt."""
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
    """By which the run of the order's attempt is told from others under the same id."""
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
    """Take the one decision on `order` (design rule 1, O3, O4).

    Approved, it runs; rejected or expired, it is cancelled. Returns the message that tells the
    workflow; None where the workflow itself asks, and is answered.
    Raises approvals.Refused where the actor may not (audited, but for a missing reason),
    SignalRefused where a signal may not (not audited: its receiver does it once a signal),
    approvals.AlreadyDecided where somebody was first, approvals.WrongState where it needs no
    decision or was cancelled; either way nothing changes.
    """
    if route == Route.SIGNAL:
        _check_signals_decide(order)
    approvals.check_may_decide(
        actor,
        verdict=verdict,
        permission=DECIDE,
        subject=SUBJECT,
        subject_id=order.order_id,
        submitter_id=order.submitter_id,
        reason=reason,
        route=route,
        now=now,
    )
    if verdict == Verdict.APPROVED:
        change: dict[str, Any] = {"state": State.RUNNING}
    else:
        change = _cancelled(reason, now)
    message = None
    with transaction.atomic(durable=True):
        decision_id = uuid.uuid4()
        # Of the attempt that was asked about: a late expiry is not that of the next one.
        if not Order.objects.filter(pk=order.pk, state=State.PENDING, attempt=order.attempt).update(
            decision_id=decision_id, **change
        ):
            _raise_not_pending(order)
        approvals.record_decision(
            decision_id,
            verdict=verdict,
            subject=SUBJECT,
            subject_id=order.order_id,
            actor=actor,
            route=route,
            reason=reason,
            now=now,
        )
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

    A signal names no user, so it would pass the rule of approvals: access to Temporal is its
    permission, where the settings grant that (docs/adr/0008).
    """
    if not settings.ORDERS_SIGNAL_DECISIONS:
        raise SignalRefused(
            "Signals decide no orders here (ORDERS_SIGNAL_DECISIONS); an approver decides in the "
            "admin or over the API."
        )
    if order.total > settings.ORDERS_SIGNAL_LIMIT:
        raise SignalRefused(
            f"Signals decide orders of up to {settings.ORDERS_SIGNAL_LIMIT} (ORDERS_SIGNAL_LIMIT), "
            f"and this one is {order.money()}; an approver decides in the admin or over the API."
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


def cancel_order(
    order: Order, *, actor: actors.Actor, route: Route, now: datetime, reason: str = ""
) -> None:
    """Cancel an order that has not ended: its submitter may, and whoever has the permission.

    One of which no step was begun is cancelled at once; else what was done is undone first. Asking
    again changes nothing. The relay tells the workflow.
    Raises approvals.NotPermitted (audited), approvals.WrongState.
    """
    own = actor.user is not None and actor.user.pk == order.submitter_id
    if not own and not actor.may(OPERATE):
        _refuse(order, "cancel", actor=actor, route=route, now=now)
    said = f"cancelled by {actor.name}" + (f": {reason}" if reason else "")
    this = Order.objects.filter(pk=order.pk)
    with transaction.atomic(durable=True):
        untouched = this.filter(state__in=[State.PENDING, State.RUNNING], steps_begun=0)
        if not untouched.update(**_cancelled(said, now)) and not this.filter(
            state=State.RUNNING
        ).update(state=State.COMPENSATING, ends_as=State.CANCELLED, failure_reason=said):
            order.refresh_from_db()
            if order.ends_as == State.CANCELLED:
                return
            raise approvals.WrongState(
                f"{order.order_id} cannot be cancelled: it is {order.get_state_display()}."
            )
        _record(AuditEntry.Event.CANCELLED, order, actor=actor, route=route, now=now, reason=reason)
        # There is one from before where the workflow of an earlier attempt had to be told.
        outbox.enqueue_again(handlers.CANCEL_WORKFLOW, cancel_key(order.order_id), _to(order))
    log.info("%s cancelled by %s", order.order_id, actor.name)


def retry_order(
    order: Order, *, actor: actors.Actor, route: Route, now: datetime, reason: str = ""
) -> None:
    """Have a failed order carried out anew, as its next attempt; an injected failure is over.

    A decision that was taken stands. The relay has the workflow started.
    Raises approvals.NotPermitted (audited), approvals.WrongState.
    """
    if not actor.may(OPERATE):
        _refuse(order, "retry", actor=actor, route=route, now=now)
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
        _record(AuditEntry.Event.RETRIED, order, actor=actor, route=route, now=now, reason=reason)
        # That of the failed attempt may not be noted as delivered yet.
        outbox.settle([start_key(order.order_id)], why="Its attempt has failed.")
        start_again(order)
    log.info("%s retried by %s", order.order_id, actor.name)


def start_again(order: Order) -> bool:
    """Queue the start of the workflow of an order that Temporal lost, or that was ended there;
    False where it is queued already.

    What was done is answered as done. It asks how the order stands, so that a message that found
    nobody needs no attention any more.
    """
    with transaction.atomic():
        outbox.supersede(decision_key(order.order_id))
        outbox.supersede(cancel_key(order.order_id))
        return outbox.enqueue_again(
            handlers.START_WORKFLOW, start_key(order.order_id), _start(order)
        )


def tell_again(order: Order) -> bool:
    """Queue the decision, or else the cancellation, once more for a workflow that still waits;
    False where it is queued already. The workflow then asks how the order stands."""
    decision = order.decision
    if decision is not None and decision.verdict in _SIGNAL_OF:
        signal = _signal(order, Verdict(decision.verdict), decision.reason)
        return outbox.enqueue_again(handlers.SIGNAL_WORKFLOW, decision_key(order.order_id), signal)
    return outbox.enqueue_again(handlers.CANCEL_WORKFLOW, cancel_key(order.order_id), _to(order))


def adjust_stock(
    item: StockItem, *, by: int, actor: actors.Actor, route: Route, now: datetime
) -> None:
    """Add pieces, or (negative) take some away; what is reserved is not touched. Raises
    approvals.WrongState."""
    with transaction.atomic():
        if not StockItem.objects.filter(pk=item.pk, available__gte=-by).update(
            available=F("available") + by
        ):
            raise approvals.WrongState(f"Fewer than {-by} pieces of {item} are available.")
        approvals.record_event(
            AuditEntry.Event.ADJUSTED,
            subject="stock",
            subject_id=item.product_id,
            actor=actor,
            route=route,
            now=now,
            reason=f"{by:+d} pieces",
        )
    log.info("%s: %+d pieces by %s", item.product_id, by, actor.name)


def change_price(
    item: StockItem,
    *,
    unit_price: Decimal,
    currency: str,
    actor: actors.Actor,
    route: Route,
    now: datetime,
    reason: str,
) -> None:
    """Give a product another price, from the one that `item` has; orders keep the price that they
    were submitted at.

    Raises approvals.ReasonMissing, and approvals.WrongState where the price was changed meanwhile.
    """
    if not reason:
        raise approvals.ReasonMissing(PRICE_NEEDS_REASON)
    before = {"unit_price": item.unit_price, "currency": item.currency}
    changed = f"{item.unit_price} {item.currency} → {unit_price} {currency}"
    with transaction.atomic():
        if not StockItem.objects.filter(pk=item.pk, **before).update(
            unit_price=unit_price, currency=currency
        ):
            raise approvals.WrongState(
                f"The price of {item} was changed meanwhile; look at it and change it again."
            )
        approvals.record_event(
            AuditEntry.Event.ADJUSTED,
            subject="stock",
            subject_id=item.product_id,
            actor=actor,
            route=route,
            now=now,
            reason=f"price {changed}: {reason}",
        )
    log.info("%s: price %s by %s", item.product_id, changed, actor.name)


class Snapshot(NamedTuple):
    """The newest orders, and what the integrations tell, as orders.integrations describes it."""

    orders: list[Order]
    inventory: list[dict[str, Any]]
    payments: list[dict[str, Any]]
    warehouse: list[dict[str, Any]]


def snapshot() -> Snapshot:
    """All of one moment, as far as the integrations keep theirs in this database (O7). Not within
    a transaction."""
    with connection.cursor() as cursor:
        # A reader's: Django's own takes SQLite's one write lock.
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


# Product, name, unit price in USD, pieces: the samples' own, those of the example orders of
# `startorder` (O8), and the two beside the threshold (O1).
EXAMPLES: Final = (
    ("SKU-001", "Desk lamp", "24.50", 25),
    ("SKU-002", "Office chair", "699.00", 10),
    ("SKU-003", "Notebook", "9.95", 50),
    ("PROD-101", "Wireless mouse", "29.99", 100),
    ("PROD-102", "USB cable", "9.99", 100),
    ("PROD-201", "Laptop computer", "1299.99", 100),
    ("PROD-202", "External monitor", "299.99", 100),
    ("SKU-1000", "At the threshold", "1000.00", 100),
    ("SKU-1001", "A cent above the threshold", "1000.01", 100),
)


def stock_examples() -> None:
    """Have the example products in the stock; those that are there stay as they are."""
    for product_id, name, price, pieces in EXAMPLES:
        StockItem.objects.get_or_create(
            product_id=product_id,
            defaults={"name": name, "unit_price": Decimal(price), "available": pieces},
        )


def _cancelled(reason: str, now: datetime) -> dict[str, Any]:
    """The change that cancels an order for which nothing was done."""
    return {
        "state": State.CANCELLED,
        "ends_as": State.CANCELLED,
        "failure_reason": reason,
        "ended_at": now,
    }


def _refuse(order: Order, verb: str, *, actor: actors.Actor, route: Route, now: datetime) -> None:
    refusal = approvals.NotPermitted(f"{actor.name} has no permission to {verb} orders.")
    approvals.record_refusal(
        SUBJECT, order.order_id, f"{verb}: {refusal}", actor=actor, route=route, now=now
    )
    raise refusal


def _to(order: Order) -> dict[str, Any]:
    """The workflow, as messages to it name it."""
    return {
        "workflow_id": order.workflow_id,
        "memo": memo(order),
        "started": not outbox.waiting([start_key(order.order_id)]),
    }


def _signal(order: Order, verdict: Verdict, reason: str) -> dict[str, Any]:
    """Payload of the message that tells the workflow the decision."""
    return {**_to(order), "signal": _SIGNAL_OF[verdict], "argument": reason}


def _record(
    event: AuditEntry.Event,
    order: Order,
    *,
    actor: actors.Actor,
    route: Route,
    now: datetime,
    reason: str = "",
) -> None:
    approvals.record_event(
        event,
        subject=SUBJECT,
        subject_id=order.order_id,
        actor=actor,
        route=route,
        now=now,
        reason=reason,
    )


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
