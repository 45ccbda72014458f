"""Make what tests start from: people, tokens, expenses and orders in each state, addresses."""

import itertools
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.contrib.auth.models import Group, User
from django.db.models import Model

from access import actors, groups
from access.models import Token
from approvals import services as approvals
from approvals.models import Approval, Route, Verdict
from expenses import services
from expenses.models import CallbackAddress, Expense, LedgerEntry, State
from orders import examples, fulfilment, integrations
from orders import models as order_models
from orders import services as order_services
from outbox.models import Message
from temporal.addresses import Address
from temporal.outcomes import Outcome
from worker import contracts

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DETAILS = services.ExpenseDetails(amount=Decimal("12.50"), currency="EUR", merchant="Café")
_serial = itertools.count(1)


def user(*group_names: str, **fields: Any) -> User:
    """Create a staff member in these groups."""
    fields.setdefault("username", f"{'-'.join(group_names).lower() or 'nobody'}-{next(_serial)}")
    created = User.objects.create_user(is_staff=True, **fields)
    created.groups.set(Group.objects.filter(name__in=group_names))
    return created


def token(owner: User, *, days: int = 1) -> str:
    return Token.objects.create(owner, expiry=timedelta(days=days))[1]


def bearer(owner: User) -> dict[str, str]:
    """Return the headers of a request by `owner`."""
    return {"Authorization": f"Bearer {token(owner)}"}


def expense(
    expense_id: str = "exp-1",
    state: State = State.CREATED,
    *,
    submitter: User | None = None,
    workflow_id: str | None = None,
    callback: Address | None = None,
    now: datetime = NOW,
) -> Expense:
    """Create an expense in `state`.

    With a submitter it is submitted with an amount; otherwise a plain client creates it. A
    withdrawn expense always has a submitter.
    """
    if state == State.WITHDRAWN and submitter is None:
        submitter = user(groups.EMPLOYEE)
    by_submitter = act(submitter, at=now)
    if submitter:
        made = services.submit_expense(expense_id, details=DETAILS, act=by_submitter)
    else:
        made = services.create_expense(expense_id, workflow_id=workflow_id, act=by_submitter)
    if callback:
        services.register_callback(made, callback, by_submitter)
    if state != State.CREATED:
        verdict = Verdict.APPROVED if state == State.COMPLETED else Verdict(state.value)
        person = submitter if state == State.WITHDRAWN else None
        approvals.decide(made.approval, verdict, act(person, at=now, reason="as made"))
    if state == State.COMPLETED:
        services.record_payment(made, act(at=now))
    made.refresh_from_db()
    return made


def act(
    person: User | None = None,
    route: Route = Route.PROTOCOL,
    *,
    at: datetime = NOW,
    reason: str = "",
) -> approvals.Act:
    """Return an act of the person, or of the anonymous person of a local installation."""
    actor = actors.Actor.of(person) if person else actors.LOCAL
    return approvals.Act(actor, route, at, reason)


def task_token(workflow_id: str, *, activity_id: str = "2", attempt: int = 1) -> bytes:
    """Return a token in the server's format: namespace, workflow and run id, scheduled event,
    attempt, activity id."""

    def text(number: int, value: str) -> bytes:
        size = len(value.encode())
        length = [size] if size < 128 else [size & 127 | 128, size >> 7]
        return bytes([number << 3 | 2, *length]) + value.encode()

    ids = text(1, "e0b9c8de-namespace") + text(2, workflow_id) + text(3, "5f3f0d57-run")
    return ids + bytes([4 << 3, 5, 5 << 3, attempt]) + text(6, activity_id)


def address(workflow_id: str, *, attempt: int = 1, named: bool = True) -> Address:
    """Return the address of a waiting activity; with `named`, its ids are beside the token."""
    ids = {"workflow_id": workflow_id, "run_id": "5f3f0d57-run", "activity_id": "2"}
    return Address(task_token(workflow_id, attempt=attempt), **(ids if named else {}))


def form(callback: Address) -> dict[str, str]:
    """Return the body with which a worker registers the callback."""
    ids = {name: getattr(callback, name) for name in ("workflow_id", "run_id", "activity_id")}
    given = {name: value for name, value in ids.items() if value}
    return {"task_token": callback.token.hex()} | given


def delivered_messages(count: int) -> None:
    """Create delivered messages, as an outbox holds after a long time."""
    past = {"payload": {}, "created_at": NOW, "due_at": NOW, "settled_at": NOW}
    Message.objects.bulk_create(
        Message(kind="complete_activity", key=f"past:{n}", outcome=Outcome.DELIVERED, **past)
        for n in range(count)
    )


def records() -> dict[type[Model], list[dict[str, Any]]]:
    """Return every row that operations on expenses and orders write, without the audit trail."""
    models: tuple[type[Model], ...] = (Approval, Expense, LedgerEntry, CallbackAddress, Message)
    models += (order_models.Order, order_models.OrderLine, order_models.OrderStep)
    models += (order_models.StockItem, order_models.Reservation, order_models.ReservedItem)
    models += (order_models.Charge, order_models.WarehouseRecord, order_models.Shipment)
    models += (order_models.Mail,)
    return {model: list(model._base_manager.order_by("pk").values()) for model in models}


def stock() -> None:
    """Stock the products of `make up`, once."""
    if not order_models.StockItem.objects.exists():
        examples.stock_examples()


CUSTOMER = order_services.Customer(customer_id="cust-42", payment_method="tok_visa")
# A desk lamp and two notebooks: 44.40. A cent above the threshold: 1000.01.
SMALL = (integrations.Item("SKU-001", 1), integrations.Item("SKU-003", 2))
LARGE = (integrations.Item("SKU-1001", 1),)
STEPS = (
    contracts.CHECK_INVENTORY,
    contracts.RESERVE_INVENTORY,
    contracts.PROCESS_PAYMENT,
    contracts.UPDATE_WAREHOUSE,
)
UNDOES = (
    contracts.REVERT_WAREHOUSE,
    contracts.REFUND_PAYMENT,
    contracts.RELEASE_INVENTORY,
)


def order(
    order_id: str = "ord-1",
    state: order_models.State = order_models.State.RUNNING,
    *,
    large: bool = False,
    submitter: User | None = None,
    workflow_id: str | None = None,
    customer: order_services.Customer = CUSTOMER,
    now: datetime = NOW,
) -> order_models.Order:
    """Create an order in `state`, with the steps and undoes that lead to that state.

    A pending order is large. A large order that is not pending was approved. A cancelled order
    was cancelled while it ran.
    """
    states = order_models.State
    stock()
    large = large or state == states.PENDING
    local = act(at=now, reason="as made")
    made = order_services.submit_order(
        order_services.Submission(
            items=LARGE if large else SMALL,
            customer=customer,
            order_id=order_id,
            workflow_id=workflow_id or "",
        ),
        act(submitter, at=now),
    )
    if made.approval and state != states.PENDING:
        approvals.decide(made.approval, Verdict.APPROVED, local)
    if state in (states.COMPLETED, states.COMPENSATING, *order_models.UNDONE):
        carry(made, *STEPS, now=now)
    if state == states.COMPLETED:
        carry(made, contracts.COMPLETE_ORDER, now=now)
    elif state == states.CANCELLED:
        order_services.cancel_order(made, local)
    elif state in (states.COMPENSATING, states.FAILED):
        failure = {"failed_step": contracts.UPDATE_WAREHOUSE, "reason": "as made"}
        carry(made, contracts.BEGIN_COMPENSATION, now=now, **failure)
    if state in order_models.UNDONE:
        carry(made, *UNDOES, contracts.CLOSE_ORDER, now=now)
    made.refresh_from_db()
    return made


def carry(
    order: order_models.Order, *steps: str, attempt: int = 1, now: datetime = NOW, **details: Any
) -> dict[str, Any]:
    """Carry out steps for the workflow of an attempt; return the answer to the last step, as the
    site sends it."""
    answer: dict[str, Any] = {}
    for step in steps:
        request = contracts.CompensationRequest(str(order.pk), attempt, **details)
        said = fulfilment.carry_out(order, step, request, act(route=Route.WORKFLOW, at=now))
        answer = {name: value for name, value in asdict(said).items() if value is not None}
    return answer
