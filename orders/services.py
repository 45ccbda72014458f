"""What people do with orders: submit, cancel and retry them, and keep the stock; and what follows
from a decision.

Each change is one transaction: compare-and-set on the state, the audit entry, and the message to
the workflow. It locks the order's approval first.
"""

import contextlib
import dataclasses
import logging
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import F, QuerySet

from access.actors import Actor
from approvals import services as approvals
from approvals.kinds import Kind
from approvals.models import Approval, AuditEntry, Route, Verdict
from approvals.services import Act
from orders import integrations
from orders.models import Order, OrderLine, OrderStep, State, StockItem
from outbox import handlers
from outbox import services as outbox
from outbox.models import Message
from rest import idempotency
from temporal import client, inspection, loop
from worker import contracts

log = logging.getLogger(__name__)

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
# How often a snapshot is read while orders change meanwhile.
SNAPSHOT_READS: Final = 3
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


def visible_to(actor: Actor) -> QuerySet[Order]:
    """Return the orders that the actor sees, on every route: all with the permission to view or to
    carry out orders, otherwise the actor's own (requirements X10)."""
    orders = with_approval()
    return orders if KIND.is_seen_by(actor) else orders.filter(submitter=actor.user)


def with_approval() -> QuerySet[Order]:
    return Order.objects.select_related("submitter", "approval__entry")


def check_may_submit(actor: Actor) -> None:
    """Raise approvals.NotPermitted unless the actor may submit orders.

    Call this before parsing the body, so that a person without the permission gets 403, not 400.
    """
    if not actor.may(SUBMIT):
        raise approvals.NotPermitted(
            f"{actor.name} may not submit orders; ask for the Employee group."
        )


def submit_order(
    submission: Submission,
    act: Act,
    *,
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
    order_id = submission.order_id or _new_order_id(act.actor.user, key)
    workflow_id = submission.workflow_id or (
        contracts.command_workflow_id(order_id)
        if act.route == Route.COMMAND
        else contracts.order_workflow_id(order_id)
    )
    order = Order(
        order_id=order_id,
        workflow_id=workflow_id,
        submitter=act.actor.user,
        approval_seconds=settings.ORDERS_APPROVAL_SECONDS,
        fail_at=submission.fail_at,
        created_at=act.at,
        **vars(submission.customer),
    )
    if key and (earlier := _identical(order, submission)):
        return earlier
    try:
        # Only a chosen id is checked here. For an id that the site made, the start reports a
        # conflict.
        if submission.workflow_id:
            _check_is_free(workflow_id)
        _insert(order, submission, act)
    except IdInUse as error:
        # The first of two identical requests may have been stored meanwhile.
        if key and (earlier := _identical(order, submission)):
            return earlier
        if key and not submission.order_id and error.field == "order_id":
            raise IdInUse("Idempotency-Key", idempotency.KEY_REUSED) from None
        raise
    log.info("%s submitted by %s", order_id, act.actor.name)
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


def _insert(order: Order, submission: Submission, act: Act) -> None:
    """Price and store the order with its approval where it needs one, its lines, its audit entry
    and the start of its workflow."""
    lines, order.currency = _lines(submission.items)
    order.total = sum((line.unit_price * line.quantity for line in lines), Decimal(0))
    if not 0 < order.total <= LARGEST_TOTAL:
        raise NotSubmitted(
            "lines", f"The total is {order.total}; it must be positive, up to {LARGEST_TOTAL}."
        )
    needs_approval = order.total > settings.ORDERS_APPROVAL_THRESHOLD
    order.state = State.PENDING if needs_approval else State.RUNNING
    try:
        with transaction.atomic():
            if needs_approval:
                order.approval = _open_approval(order, lines, act)
            order.save(force_insert=True)
            for line in lines:
                line.order = order
            OrderLine.objects.bulk_create(lines)
            approvals.record_submission(KIND.name, order.order_id, act)
            outbox.enqueue(
                handlers.START_WORKFLOW, KIND.key("start", order.order_id), _start(order)
            )
    except IntegrityError as error:
        if not approvals.is_duplicate(error):
            raise
        if Order.objects.filter(order_id=order.order_id).exists():
            raise IdInUse(
                "order_id", f"There is an order {order.order_id} already. Choose another ID."
            ) from None
        raise _workflow_id_in_use(order.workflow_id) from None


def _open_approval(order: Order, lines: Iterable[OrderLine], act: Act) -> Approval:
    products = (word for line in lines for word in (line.product_id, line.name))
    return approvals.open_approval(
        KIND,
        order.order_id,
        at=act.at,
        submitter=order.submitter,
        amount=order.total,
        currency=order.currency,
        title=order.customer_name or order.customer_id,
        search=" ".join([order.workflow_id, order.customer_id, *products]),
    )


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
        needs_approval=order.approval_id is not None,
        steps=order.step_names,
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


def _decided(approval: Approval, act: Act) -> Message | None:
    """An approved order runs; a rejected or expired one is cancelled (requirements O3, O4).

    Returns the message to the workflow; None where the workflow itself asks, and gets the decision
    as its answer.
    """
    order = Order.objects.get(approval=approval)
    change = {"state": State.RUNNING}
    if approval.verdict != Verdict.APPROVED:
        change = _cancelled(act.reason, act)
    Order.objects.filter(pk=order.pk).update(**change)
    if act.route in (Route.SIGNAL, Route.WORKFLOW):
        return None
    signal = _signal(order, Verdict(str(approval.verdict)), act.reason)
    return outbox.enqueue(handlers.SIGNAL_WORKFLOW, KIND.key("decision", order.order_id), signal)


KIND: Final = Kind(
    name="order",
    model=Order,
    own_id="order_id",
    permission=DECIDE,
    seen_with=("orders.view_order", CARRY),
    verdicts=frozenset({Verdict.APPROVED, Verdict.REJECTED, Verdict.EXPIRED}),
    decided=_decided,
    messages={"start": "start of", "decision": "decision on", "cancel": "cancellation of"},
)


def check_signals_decide(order: Order) -> None:
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


def may_cancel(order: Order, actor: Actor) -> bool:
    """Return whether :func:`cancel_order` would let the actor cancel the order, so that pages offer
    it."""
    return order.state in _CANCELLABLE and _submitted_or_operates(order, actor)


def _submitted_or_operates(order: Order, actor: Actor) -> bool:
    own = actor.user is not None and actor.user.pk == order.submitter_id
    return own or actor.may(OPERATE)


def cancel_order(order: Order, act: Act) -> None:
    """Cancel an order that has not ended. Its submitter may, and everybody who operates orders.

    An order without a begun step is cancelled at once; otherwise the begun steps are undone first.
    A repeat changes nothing. The relay notifies the workflow.
    Raises approvals.NotPermitted (audited), approvals.WrongState.
    """
    _check_permitted(_submitted_or_operates(order, act.actor), order, "cancel", act)
    why = f"cancelled by {act.actor.name}" + (f": {act.reason}" if act.reason else "")
    # Only the attempt that the actor has read: a cancellation never applies to the next one.
    rows = Order.objects.filter(pk=order.pk, attempt=order.attempt)
    with transaction.atomic(durable=True):
        approvals.lock(order.approval_id)
        # The database takes the end of an order only after its approval is closed.
        approvals.void(order.approval_id, record(AuditEntry.Event.CANCELLED, order, act))
        untouched = rows.filter(state__in=_CANCELLABLE, steps_begun=0)
        if not untouched.update(**_cancelled(why, act)) and not rows.filter(
            state=State.RUNNING
        ).update(state=State.COMPENSATING, ends_as=State.CANCELLED, failure_reason=why):
            order.refresh_from_db()
            if order.ends_as == State.CANCELLED:
                transaction.set_rollback(True)
                return
            if order.state in _CANCELLABLE:
                raise approvals.WrongState(
                    f"{order.order_id} was retried meanwhile; cancel once more."
                )
            raise approvals.WrongState(
                f"{order.order_id} cannot be cancelled: it is {order.get_state_display()}."
            )
        # An earlier attempt may have left a settled message with this key.
        key = KIND.key("cancel", order.order_id)
        outbox.enqueue_again(handlers.CANCEL_WORKFLOW, key, _address(order))
    log.info("%s cancelled by %s", order.order_id, act.actor.name)


def retry_order(order: Order, act: Act) -> None:
    """Carry out a failed order again, as its next attempt, with the steps of today and without an
    injected failure.

    A decision stays; an order that nobody decided waits again, with another approval. The relay
    starts the workflow.
    Raises approvals.NotPermitted (audited), approvals.WrongState.
    """
    _check_permitted(act.actor.may(OPERATE), order, "retry", act)
    failed = Order.objects.filter(pk=order.pk, state=State.FAILED, attempt=order.attempt)
    change: dict[str, Any] = {"state": State.RUNNING}
    with transaction.atomic(durable=True):
        # Two retries of one attempt wait for each other here.
        approvals.lock(order.approval_id)
        if failed.filter(approval__verdict=Verdict.VOID).exists():
            approval = _open_approval(order, order.lines.all(), act)
            change = {"state": State.PENDING, "approval": approval}
        if not failed.update(
            attempt=F("attempt") + 1,
            step_names=contracts.saga_step_names(),
            steps_begun=0,
            ends_as="",
            failure_reason="",
            fail_at="",
            ended_at=None,
            **change,
        ):
            order.refresh_from_db()
            raise approvals.WrongState(
                f"Only a failed order is retried; {order.order_id} is {order.get_state_display()}."
            )
        order.refresh_from_db()
        record(AuditEntry.Event.RETRIED, order, act)
        # The start of the failed attempt was delivered, but that may not be noted yet.
        outbox.mark_obsolete([KIND.key("start", order.order_id)], why="Its attempt has failed.")
        start_again(order)
    log.info("%s retried by %s", order.order_id, act.actor.name)


def start_again(order: Order) -> bool:
    """Queue the start of the workflow once more, after Temporal lost or ended it; return False
    where the start is queued already.

    The new run gets the recorded answer for each step that was done. It also asks for the order's
    state, so a decision or cancellation that could not be delivered needs no more attention.
    """
    with transaction.atomic():
        outbox.supersede(KIND.key("decision", order.order_id))
        outbox.supersede(KIND.key("cancel", order.order_id))
        return outbox.enqueue_again(
            handlers.START_WORKFLOW, KIND.key("start", order.order_id), _start(order)
        )


def notify_again(order: Order) -> bool:
    """Queue the decision, or without one the cancellation, once more for a workflow that still
    waits; return False where it is queued already. The workflow then asks for the order's state."""
    approval = order.approval
    if approval is not None and approval.verdict in _SIGNAL_OF:
        assert approval.entry is not None  # noqa: S101 (the CHECK on the verdict)
        signal = _signal(order, Verdict(approval.verdict), approval.entry.reason)
        key = KIND.key("decision", order.order_id)
        return outbox.enqueue_again(handlers.SIGNAL_WORKFLOW, key, signal)
    key = KIND.key("cancel", order.order_id)
    return outbox.enqueue_again(handlers.CANCEL_WORKFLOW, key, _address(order))


def add_product(item: StockItem, act: Act, *, pieces: int) -> None:
    """Insert `item`, a product that is not stored yet, with its available pieces."""
    item.available = pieces
    with transaction.atomic():
        item.save(force_insert=True)
        what = f"{item.name} at {item.unit_price} {item.currency}, {pieces} pieces"
        _record_stock(AuditEntry.Event.CREATED, item, what, act)


def change_product(
    item: StockItem, act: Act, *, name: str, unit_price: Decimal, currency: str, pieces: int
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
        if not act.reason:
            raise approvals.ReasonMissing(PRICE_NEEDS_REASON)
        changes.append(f"price {item.unit_price} {item.currency} → {unit_price} {currency}")
    if pieces:
        changes.append(f"{pieces:+d} pieces")
    if not changes:
        return
    what = ", ".join(changes) + (f": {act.reason}" if act.reason else "")
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
        _record_stock(AuditEntry.Event.ADJUSTED, item, what, act)


def _record_stock(event: AuditEntry.Event, item: StockItem, what: str, act: Act) -> None:
    approvals.record(event, "stock", item.product_id, dataclasses.replace(act, reason=what))
    log.info("%s %s: %s by %s", item.product_id, event.label, what, act.actor.name)


class Snapshot(NamedTuple):
    """The newest orders, and the integrations' records as orders.integrations describes them."""

    orders: list[Order]
    inventory: list[dict[str, Any]]
    payments: list[dict[str, Any]]
    warehouse: list[dict[str, Any]]


def snapshot() -> Snapshot:
    """Return the newest orders and the records of the integrations (requirements O7).

    Each integration is asked by itself, since it may be another system. If an order or a step
    changed meanwhile, all are read again, SNAPSHOT_READS times at most.
    """
    orders, before = _newest_orders()
    for _ in range(SNAPSHOT_READS):
        found = Snapshot(
            orders,
            integrations.inventory().snapshot(),
            integrations.payments().snapshot(),
            integrations.warehouse().snapshot(),
        )
        orders, after = _newest_orders()
        if after == before:
            break
        before = after
    return found


def _newest_orders() -> tuple[list[Order], list[Any]]:
    """Return the orders of a snapshot, and values that differ after each step of an order."""
    orders = list(Order.objects.all()[:LISTED])
    last_step = OrderStep.objects.order_by("-pk").values_list("pk", flat=True).first()
    return orders, [last_step, *((o.pk, o.state, o.attempt, o.steps_begun) for o in orders)]


def _cancelled(reason: str, act: Act) -> dict[str, Any]:
    """Return the columns of an order that is cancelled before its first step."""
    return {
        "state": State.CANCELLED,
        "ends_as": State.CANCELLED,
        "failure_reason": reason,
        "ended_at": act.at,
    }


def _check_permitted(permitted: bool, order: Order, verb: str, act: Act) -> None:
    """Raise approvals.NotPermitted, and audit it, unless the actor is `permitted`."""
    if permitted:
        return
    refusal = approvals.NotPermitted(f"{act.actor.name} has no permission to {verb} orders.")
    approvals.record_refusal(KIND.name, order.order_id, f"{verb}: {refusal}", act)
    raise refusal


def _address(order: Order) -> dict[str, Any]:
    """Return the part of a message's payload that names the workflow."""
    return {
        "workflow_id": order.workflow_id,
        "memo": memo(order),
        "started": not outbox.waiting([KIND.key("start", order.order_id)]),
    }


def _signal(order: Order, verdict: Verdict, reason: str) -> dict[str, Any]:
    """Return the payload of the message that notifies the workflow of the decision."""
    return {**_address(order), "signal": _SIGNAL_OF[verdict], "argument": reason}


def record(event: AuditEntry.Event, order: Order, act: Act) -> AuditEntry:
    """Audit an event of the order."""
    return approvals.record(event, KIND.name, order.order_id, act)
