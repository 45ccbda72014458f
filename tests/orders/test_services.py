"""What people do with orders: submit, decide, cancel, retry, and keep the stock."""

import re
import uuid
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from access import actors, groups
from approvals import services as approvals
from approvals.models import Approval, AuditEntry, Route, Verdict
from approvals.services import Act
from orders import examples, fulfilment, services
from orders.integrations import Item
from orders.models import Order, State, StockItem
from outbox.models import Message
from temporal.outcomes import Outcome
from tests import factories
from tests.conftest import Unchanged, at_once
from worker import contracts

# A submission that names its workflow asks Temporal whether the id is free.
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_temporal")]

ACT = factories.act()
LATER = factories.NOW + timedelta(minutes=1)
CUSTOMER = services.Customer(
    customer_id="cust-42",
    payment_method="tok_visa",
    customer_name="Alice Smith",
    customer_email="alice@example.org",
    shipping_address="123 Main St",
)


def by(*group_names: str) -> Act:
    """An act of a person in these groups."""
    return factories.act(factories.user(*group_names))


def submit(*items: Item, order_id: str = "ord-1", workflow_id: str = "", act: Act = ACT) -> Order:
    factories.stock()
    submission = services.Submission(
        items=items, customer=CUSTOMER, order_id=order_id, workflow_id=workflow_id
    )
    return services.submit_order(submission, act)


def decide(order: Order, verdict: Verdict, act: Act) -> Message | None:
    return approvals.decide(approvals.approval_of(services.KIND, order, verdict, act), verdict, act)


def product(product_id: str, price: str, currency: str = "USD") -> Item:
    """A piece of a product of its own."""
    StockItem.objects.create(
        product_id=product_id, name=product_id, unit_price=Decimal(price), currency=currency
    )
    return Item(product_id, 1)


def trail(order_id: str = "ord-1") -> list[tuple[str, str, str, str]]:
    """What happened after the submission, who and by which route, and why."""
    entries = AuditEntry.objects.filter(subject="order", subject_id=order_id).order_by("pk")
    return list(entries.values_list("event", "actor", "route", "reason"))[1:]


def messages() -> list[tuple[str, str]]:
    return list(Message.objects.order_by("pk").values_list("key", "kind"))


# Submission


def test_submission_stores_order_audit_entry_and_start() -> None:
    """O1, O8, X1, X5: one transaction stores the order at the current prices, its lines, its audit
    entry and the start of its workflow, whose memo marks the run."""
    person = factories.user(groups.EMPLOYEE)
    act = factories.act(person, Route.REST)
    order = submit(Item("SKU-003", 2), Item("SKU-001", 3), act=act)
    StockItem.objects.update(unit_price=1)
    order.refresh_from_db()
    assert (order.state, order.attempt, order.approval) == ("running", 1, None)
    assert (order.total, order.currency) == (Decimal("93.40"), "USD")
    assert (order.submitter, order.created_at) == (person, factories.NOW)
    assert {name: getattr(order, name) for name in vars(CUSTOMER)} == vars(CUSTOMER)
    assert list(order.lines.values_list("product_id", "name", "quantity", "unit_price")) == [
        ("SKU-003", "Notebook", 2, Decimal("9.95")),
        ("SKU-001", "Desk lamp", 3, Decimal("24.50")),
    ]
    entry = AuditEntry.objects.get()
    assert (entry.event, entry.subject, entry.subject_id) == ("submitted", "order", "ord-1")
    assert (entry.by, entry.route, entry.at) == (person, "rest", factories.NOW)
    message = Message.objects.get()
    assert (message.key, message.kind) == ("order-start:ord-1", "start_workflow")
    assert message.payload == {
        "workflow": "OrderWorkflow",
        "argument": {
            "order": str(order.pk),
            "order_id": "ord-1",
            "attempt": 1,
            "needs_approval": False,
            "steps": [
                "check_inventory",
                "reserve_inventory",
                "process_payment",
                "update_warehouse",
            ],
            "fail_at": "",
        },
        "workflow_id": "order-ord-1",
        "queue": "orders",
        "memo": {"order": str(order.pk), "attempt": 1},
    }


@pytest.mark.parametrize(
    ("items", "total", "needs_approval"),
    [
        ([Item("SKU-1000", 1)], "1000.00", False),
        ([Item("SKU-1001", 1)], "1000.01", True),
        ([Item("PROD-101", 2), Item("PROD-102", 3)], "89.95", False),
        ([Item("SKU-003", 50), Item("SKU-001", 20), Item("SKU-003", 1)], "997.45", False),
        ([Item("PROD-202", 2), Item("PROD-201", 1)], "1899.97", True),
    ],
    ids=str,
)
def test_total_above_the_threshold_needs_a_decision(
    items: list[Item], total: str, needs_approval: bool
) -> None:
    """O1: exactly 1000.00 needs nobody; a cent above does. Sums are exact."""
    order = submit(*items)
    order.refresh_from_db()
    assert (order.total, order.approval is not None) == (Decimal(total), needs_approval)
    assert order.state == ("pending" if needs_approval else "running")
    argument = Message.objects.get().payload["argument"]
    assert argument["needs_approval"] is needs_approval


def test_changed_settings_do_not_apply_to_submitted_orders(settings: Any) -> None:
    """O1: the threshold and the window are settings, those of the submission; a retry keeps
    them."""
    settings.ORDERS_APPROVAL_THRESHOLD, settings.ORDERS_APPROVAL_SECONDS = Decimal("9.94"), 7
    order = submit(Item("SKU-003", 1))
    assert (order.state, order.approval_seconds) == (State.PENDING, 7)
    settings.ORDERS_APPROVAL_SECONDS = 300
    answer = factories.carry(order, contracts.AWAIT_APPROVAL)
    assert answer["seconds_left"] == 7
    assert Approval.objects.get().expires_at == factories.NOW + timedelta(seconds=7)


def test_an_approval_says_what_is_to_be_decided() -> None:
    """O1, X3, X4: it is opened with the order, and has a copy of the total. A search finds it by
    the customer and the products."""
    person = factories.user(groups.EMPLOYEE)
    act = factories.act(person, Route.REST)
    order = submit(Item("SKU-1001", 2), act=act)
    approval = Approval.objects.get()
    assert (order.approval, approval.order) == (approval, order)
    assert (approval.kind, approval.reference, approval.verdict) == ("order", "ord-1", None)
    assert (approval.submitter, approval.opened_by) == (person, None)
    assert (order.total, approval.amount, approval.currency) == (*[Decimal("2000.02")] * 2, "USD")
    assert (approval.title, approval.category) == ("Alice Smith", "")
    assert (approval.opened_at, approval.expires_at) == (factories.NOW, None)
    words = ("ord-1", "alice smith", "order-ord-1", "cust-42", "sku-1001", "a cent above")
    assert all(word in approval.search_text for word in words)
    factories.order("ord-2", State.PENDING)
    assert Approval.objects.get(reference="ord-2").title == "cust-42"


def test_lines_of_one_product_become_one() -> None:
    """O1: they are one line."""
    order = submit(Item("SKU-003", 2), Item("SKU-001", 1), Item("SKU-003", 3))
    lines = list(order.lines.values_list("product_id", "quantity"))
    assert (lines, order.total) == ([("SKU-003", 5), ("SKU-001", 1)], Decimal("74.25"))


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([], "An order needs at least one line."),
        ([Item("nope", 1), Item("SKU-001", 1), Item("a", 1)], "There is no product a, nope."),
        ([Item("SKU-EUR", 1), Item("SKU-001", 1)], "The products have prices in several"),
        ([Item("free", 3)], "The total is 0.00; it must be positive"),
        ([Item("dear", 100)], "The total is 999999999999.00; it must be"),
    ],
    ids=str,
)
def test_lines_that_cannot_be_ordered_change_nothing(
    unchanged: Unchanged, items: list[Item], why: str
) -> None:
    """O1: unknown products, prices in several currencies, and totals out of range."""
    factories.stock()
    product("SKU-EUR", "1.00", "EUR")
    product("free", "0.00")
    product("dear", "9999999999.99")
    if items and items[0].product_id == "dear":
        items, why = [Item("dear", 101)], "The total is 1009999999998.99; it must be positive"
    with unchanged(), pytest.raises(services.NotSubmitted, match=f"^{re.escape(why)}"):
        submit(*items)


def test_largest_total_is_stored_exactly() -> None:
    """O1: as much as the records hold, to the cent."""
    product("dear", "9999999999.99")
    order = submit(Item("dear", 100))
    order.refresh_from_db()
    assert order.total == Decimal("999999999999.00")
    assert order.money() == "999,999,999,999.00 USD"


@pytest.mark.parametrize("field", ["order_id", "workflow_id"])
def test_taken_id_changes_nothing(unchanged: Unchanged, field: str) -> None:
    """O7, O8: an id is used once, even if its order has ended."""
    factories.order(state=State.FAILED, workflow_id="wf")
    changes = {"order_id": "ord-1"} if field == "order_id" else {"workflow_id": "wf"}
    with unchanged(), pytest.raises(services.IdInUse) as error:
        submit(Item("SKU-001", 1), **{"order_id": "ord-2", "workflow_id": "other", **changes})
    assert error.value.field == field
    assert (
        str(error.value)
        == {
            "order_id": "There is an order ord-1 already. Choose another ID.",
            "workflow_id": "The workflow id wf is in use. Choose another, or leave it out.",
        }[field]
    )


@pytest.mark.parametrize(
    "workflow_id",
    [contracts.expense_workflow_id("exp-1"), contracts.job_workflow_id(uuid.UUID(int=1))],
)
def test_workflow_id_of_another_kind_is_refused(unchanged: Unchanged, workflow_id: str) -> None:
    """X7: no order takes the workflow id of a later expense or job, whose start would find the
    order's workflow."""
    factories.stock()
    why = f"^The workflow id {workflow_id} is kept for another kind"
    with unchanged(), pytest.raises(services.IdInUse, match=why) as error:
        submit(*factories.SMALL, workflow_id=workflow_id)
    assert error.value.field == "workflow_id"


@pytest.mark.django_db(transaction=True)
def test_concurrent_submissions_of_one_id_make_one_order() -> None:
    """O7: of several orders with one id, or one workflow id, at the same time one is made."""
    factories.stock()

    def ask(number: int) -> str:
        try:
            return submit(Item("SKU-001", 1), **ids(number)).order_id
        except services.IdInUse as error:
            return error.field

    for field in ("order_id", "workflow_id"):
        same = {"order_id": "o", "workflow_id": "w"}[field]

        def ids(number: int, field: str = field, same: str = same) -> dict[str, str]:
            other = f"{field}-{number}"
            return {"order_id": other, "workflow_id": other, field: same}

        answers = at_once([partial(ask, number) for number in range(5)])
        assert answers.count(field) == 4
    assert (Order.objects.count(), Message.objects.count()) == (2, 2)


def test_new_order_ids_differ() -> None:
    """O8: `ord_` and 12 hexadecimal digits, each time others."""
    made = {submit(Item("SKU-001", 1), order_id="").order_id for _ in range(3)}
    assert len(made) == 3
    assert all(re.fullmatch("ord_[0-9a-f]{12}", order_id) for order_id in made)


# The decision


@pytest.mark.parametrize(
    ("verdict", "state", "signal"),
    [
        (Verdict.APPROVED, State.RUNNING, "approve_order"),
        (Verdict.REJECTED, State.CANCELLED, "reject_order"),
    ],
)
@pytest.mark.parametrize("started", [True, False])
def test_decision_stores_verdict_audit_entry_and_signal(
    verdict: Verdict, state: State, signal: str, started: bool
) -> None:
    """O3, O4, O10, X1, X5: the state, the verdict, its audit entry and the signal, at once; a
    rejected order is cancelled for the reason of the rejection, and has cost nothing."""
    person = factories.user(groups.APPROVER)
    order = factories.order(state=State.PENDING)
    if started:
        Message.objects.update(outcome=Outcome.DELIVERED, settled_at=factories.NOW)
    message = decide(order, verdict, factories.act(person, Route.REST, reason="as read"))
    order.refresh_from_db()
    cancelled = state == State.CANCELLED
    assert (order.state, order.ended_at) == (state, factories.NOW if cancelled else None)
    assert order.failure_reason == ("as read" if cancelled else "")
    approval = Approval.objects.get()
    assert (order.approval, approval.verdict) == (approval, verdict)
    assert approval.entry == AuditEntry.objects.latest("pk")
    assert approval.entry.by == person
    assert trail() == [(verdict.lower(), person.username, "rest", "as read")]
    assert message is not None
    assert messages()[1:] == [("order-decision:ord-1", "signal_workflow")]
    assert message.payload == {
        "workflow_id": "order-ord-1",
        "memo": {"order": str(order.pk), "attempt": 1},
        "started": started,
        "signal": signal,
        "argument": "as read",
    }


def test_approval_needs_no_reason() -> None:
    order = factories.order(state=State.PENDING)
    decide(order, Verdict.APPROVED, ACT)
    assert trail() == [("approved", "local", "protocol", "")]


def test_only_approvers_decide(unchanged: Unchanged) -> None:
    """X3, O10: the rule of approvals: nobody without the permission, nobody on their own order,
    superusers included; no rejection without a reason; refusals are audited, but the last."""
    owner = factories.user(groups.EMPLOYEE, groups.APPROVER, is_superuser=True)
    order = factories.order(state=State.PENDING, submitter=owner)
    for verdict in (Verdict.APPROVED, Verdict.REJECTED):
        for person, refusal in (
            (owner, approvals.SelfApproval),
            *(
                (factories.user(*names), approvals.NotPermitted)
                for names in ROLES_THAT_DO_NOT_DECIDE
            ),
        ):
            with unchanged(refusals=1), pytest.raises(refusal):
                decide(order, verdict, factories.act(person, reason="r"))
            row = AuditEntry.objects.latest("pk")
            assert (row.subject, row.subject_id, row.by) == ("order", "ord-1", person)
    for person in (None, factories.user(groups.APPROVER), factories.user(is_superuser=True)):
        with unchanged(), pytest.raises(approvals.ReasonMissing):
            decide(order, Verdict.REJECTED, factories.act(person))
    for verdict in (Verdict.EXPIRED, Verdict.WITHDRAWN):
        with unchanged(refusals=1), pytest.raises(approvals.NotPermitted):
            decide(order, verdict, factories.act(owner))


ROLES_THAT_DO_NOT_DECIDE = [(), *((name,) for name in groups.NAMES if name != groups.APPROVER)]


@pytest.mark.parametrize("state", [state for state in State if state != State.PENDING])
@pytest.mark.parametrize("large", [True, False])
def test_order_that_is_not_pending_is_not_decided(
    unchanged: Unchanged, state: State, large: bool
) -> None:
    """O3: what was decided stays so, and what needs no decision is not decided."""
    order = factories.order(state=state, large=large)
    for verdict in (Verdict.APPROVED, Verdict.REJECTED):
        with unchanged(), pytest.raises(approvals.WrongState) as error:
            decide(order, verdict, factories.act(reason="late"))
        if large:
            assert isinstance(error.value, approvals.AlreadyDecided)
            assert str(error.value) == "ord-1 was already approved by local."
        else:
            assert not isinstance(error.value, approvals.AlreadyDecided)
            label = order.get_state_display()
            assert str(error.value) == f"ord-1 waits for no decision: it is {label}."


def test_stale_record_decides_nothing(unchanged: Unchanged) -> None:
    """X1: the service compares with the row, not with the record that the caller read earlier."""
    stale = factories.order(state=State.PENDING)
    decide(Order.objects.get(), Verdict.REJECTED, factories.act(reason="r"))
    assert stale.state == "pending"
    with unchanged():
        with pytest.raises(approvals.AlreadyDecided):
            decide(stale, Verdict.APPROVED, ACT)
        services.cancel_order(stale, ACT)


def test_cancellation_never_applies_to_the_next_attempt(unchanged: Unchanged) -> None:
    """O5, X1: an order that is retried after the person read it is not cancelled; the person is
    told."""
    stale = factories.order(state=State.FAILED)
    services.retry_order(Order.objects.get(), ACT)
    with (
        unchanged(),
        pytest.raises(
            approvals.WrongState, match=r"^ord-1 was retried meanwhile; cancel once more\.$"
        ),
    ):
        services.cancel_order(stale, ACT)
    services.cancel_order(Order.objects.get(), ACT)
    assert Order.objects.get().state == State.CANCELLED
    assert Message.objects.get(kind="cancel_workflow").payload["memo"]["attempt"] == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("broken", ["approvals.services.record", "outbox.services.enqueue"])
def test_decision_is_one_transaction(
    unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """X1: if a part of a decision fails, nothing is changed. The service refuses to run inside a
    transaction, so a decision is durable when the service returns."""
    order = factories.order(state=State.PENDING)
    with unchanged(), transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        decide(order, Verdict.APPROVED, ACT)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise IntegrityError

    monkeypatch.setattr(broken, fail)
    with unchanged(), pytest.raises(IntegrityError):
        decide(order, Verdict.APPROVED, ACT)


# Cancellation


@pytest.mark.parametrize("reason", ["", "found it cheaper"])
@pytest.mark.parametrize(
    ("state", "steps"), [(State.PENDING, 0), (State.RUNNING, 0), (State.RUNNING, 1)]
)
def test_cancelling_ends_or_undoes_the_order(
    unchanged: Unchanged, state: State, steps: int, reason: str
) -> None:
    """X5: an order of which nothing was begun is cancelled at once, another is undone first; its
    workflow is told. Again changes nothing."""
    person = factories.user(groups.EMPLOYEE)
    order = factories.order(state=state, submitter=person)
    factories.carry(order, *factories.STEPS[:steps])
    act = factories.act(person, Route.REST, reason=reason)
    services.cancel_order(order, act)
    order.refresh_from_db()
    at_once = steps == 0
    assert order.state == (State.CANCELLED if at_once else State.COMPENSATING)
    assert order.ends_as == "cancelled"
    assert order.approval is None or order.approval.verdict == Verdict.VOID
    assert order.ended_at == (factories.NOW if at_once else None)
    said = f"cancelled by {person.username}"
    assert order.failure_reason == (f"{said}: {reason}" if reason else said)
    assert trail() == [("cancelled", person.username, "rest", reason)]
    assert messages()[1:] == [("order-cancel:ord-1", "cancel_workflow")]
    assert Message.objects.get(kind="cancel_workflow").payload == {
        "workflow_id": "order-ord-1",
        "memo": {"order": str(order.pk), "attempt": 1},
        "started": False,
    }
    with unchanged():
        services.cancel_order(order, replace(act, reason="again"))


def test_step_after_the_cancellation_is_refused(unchanged: Unchanged) -> None:
    """O5: after a cancellation the first step is refused."""
    order = factories.order()
    services.cancel_order(order, ACT)
    with unchanged(), pytest.raises(fulfilment.NotNow):
        factories.carry(order, contracts.CHECK_INVENTORY)


@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.COMPENSATING])
def test_ended_or_failing_order_is_not_cancelled(unchanged: Unchanged, state: State) -> None:
    """O5: an order that has ended, or is being undone after a failure, is not cancelled."""
    order = factories.order(state=state)
    why = f"^ord-1 cannot be cancelled: it is {order.get_state_display()}"
    with unchanged(), pytest.raises(approvals.WrongState, match=why):
        services.cancel_order(order, ACT)


@pytest.mark.parametrize("state", State)
def test_only_submitter_and_operators_cancel(unchanged: Unchanged, state: State) -> None:
    """X3: neither another employee nor an approver, in any state; that is audited."""
    order = factories.order(state=state, submitter=factories.user(groups.EMPLOYEE))
    for name in [name for name in groups.NAMES if name != groups.OPERATOR]:
        with unchanged(refusals=1), pytest.raises(approvals.NotPermitted):
            services.cancel_order(order, by(name))
        assert AuditEntry.objects.latest("pk").reason.startswith("cancel: ")
    if state == State.RUNNING:
        services.cancel_order(order, by(groups.OPERATOR))
        assert Order.objects.get().state == State.CANCELLED


# Retry


@pytest.mark.parametrize("large", [False, True])
def test_retry_begins_the_next_attempt(large: bool) -> None:
    """O5, O6, X5: the next attempt begins with the first step and without an injected failure. A
    decision is kept. The new start replaces the start of the earlier attempt."""
    order = factories.order(state=State.FAILED, large=large)
    Order.objects.update(fail_at="payment")
    Message.objects.update(outcome=Outcome.DELIVERED, settled_at=factories.NOW)
    approval = order.approval
    services.retry_order(order, factories.act(reason="once more"))
    order.refresh_from_db()
    assert (order.state, order.attempt, order.fail_at) == ("running", 2, "")
    assert order.steps_begun == 0
    assert (order.approval, order.ends_as, order.failure_reason) == (approval, "", "")
    assert (order.ended_at, Approval.objects.count()) == (None, large)
    assert trail()[-1] == ("retried", "local", "protocol", "once more")
    start = Message.objects.get(key="order-start:ord-1")
    assert (start.outcome, start.settled_at) == (None, None)
    assert start.payload["argument"]["attempt"] == start.payload["memo"]["attempt"] == 2
    assert len(messages()) == (2 if large else 1)


def test_retry_before_a_decision_waits_for_one() -> None:
    """O1, O3: an order that failed before anybody decided waits for the decision again, with
    another approval; the old one stays void, and says in its entry how it ended."""
    person = factories.user(groups.EMPLOYEE)
    order = factories.order(state=State.PENDING, submitter=person)
    factories.carry(order, contracts.AWAIT_APPROVAL)
    factories.carry(order, contracts.BEGIN_COMPENSATION, reason="bad window")
    old = Approval.objects.get()
    assert (old.verdict, old.entry) == (Verdict.VOID, AuditEntry.objects.latest("pk"))
    assert (old.entry.event, old.entry.reason) == ("failed", "its workflow failed: bad window")
    services.retry_order(order, factories.act(at=LATER))
    order.refresh_from_db()
    assert (order.state, order.attempt) == (State.PENDING, 2)
    new = order.approval
    assert new is not None
    assert new != old
    assert (new.verdict, new.opened_at, new.expires_at) == (None, LATER, None)
    copied = ("kind", "reference", "submitter", "amount", "currency", "title", "search_text")
    assert [getattr(new, name) for name in copied] == [getattr(old, name) for name in copied]
    decide(order, Verdict.APPROVED, ACT)
    assert Order.objects.get().state == State.RUNNING
    old.refresh_from_db()
    assert (old.verdict, old.entry.event) == (Verdict.VOID, "failed")


@pytest.mark.parametrize("verdict", [Verdict.APPROVED, Verdict.REJECTED])
@pytest.mark.parametrize("retried", [False, True])
def test_decision_on_an_earlier_attempt_is_refused(
    unchanged: Unchanged, retried: bool, verdict: Verdict
) -> None:
    """O3: a decision on an attempt that ended since never applies to the next attempt."""
    stale = factories.order(state=State.PENDING)
    order = Order.objects.get()
    factories.carry(order, contracts.BEGIN_COMPENSATION, reason="bad window")
    if retried:
        services.retry_order(order, ACT)
    with unchanged(), pytest.raises(approvals.WrongState) as error:
        decide(stale, verdict, factories.act(reason="late"))
    assert str(error.value) == (
        "ord-1 was retried meanwhile; decide once more."
        if retried
        else "ord-1 waits for no decision: it is failed."
    )


def test_retry_of_a_stale_record_keeps_the_decision() -> None:
    """O3: the row says whether a decision is due, not the record that the caller read earlier."""
    stale = factories.order(state=State.PENDING)
    order = Order.objects.get()
    decide(order, Verdict.APPROVED, ACT)
    factories.carry(order, contracts.BEGIN_COMPENSATION, contracts.CLOSE_ORDER, reason="broken")
    services.retry_order(stale, ACT)
    order.refresh_from_db()
    assert (order.state, order.attempt) == (State.RUNNING, 2)


def test_retry_while_the_start_is_under_way_replaces_it() -> None:
    """X1: the attempt failed before its start was noted as delivered. The message then carries the
    start of the next attempt, and the report of the earlier delivery is ignored."""
    order = factories.order(state=State.FAILED)
    held = Message.objects.get()
    services.retry_order(order, ACT)
    message = Message.objects.get()
    assert message.payload["argument"]["attempt"] == 2
    assert (message.outcome, message.settled_at) == (None, None)
    assert message.due_at != held.due_at


@pytest.mark.parametrize("state", [state for state in State if state != State.FAILED])
def test_only_a_failed_order_is_retried(unchanged: Unchanged, state: State) -> None:
    """O5: only a failed order is retried."""
    order = factories.order(state=state)
    why = f"^Only a failed order is retried; ord-1 is {order.get_state_display()}"
    with unchanged(), pytest.raises(approvals.WrongState, match=why):
        services.retry_order(order, ACT)


def test_retry_of_an_earlier_failure_is_refused(unchanged: Unchanged) -> None:
    """O5: who saw the first attempt fail does not retry the second, which failed since."""
    order = factories.order(state=State.FAILED)
    stale = Order.objects.get()
    services.retry_order(order, ACT)
    ending = (contracts.BEGIN_COMPENSATION, contracts.CLOSE_ORDER)
    factories.carry(order, *ending, attempt=2, reason="again")
    with unchanged(), pytest.raises(approvals.WrongState):
        services.retry_order(stale, ACT)


def test_only_operators_retry(unchanged: Unchanged) -> None:
    """X3: operators alone; not the submitter; that is audited."""
    person = factories.user(groups.EMPLOYEE)
    order = factories.order(state=State.FAILED, submitter=person)
    others = [by(name) for name in groups.NAMES if name != groups.OPERATOR]
    for act in (*others, factories.act(person)):
        with unchanged(refusals=1), pytest.raises(approvals.NotPermitted):
            services.retry_order(order, act)
        assert AuditEntry.objects.latest("pk").reason.startswith("retry: ")
    services.retry_order(order, by(groups.OPERATOR))
    assert Order.objects.get().attempt == 2


@pytest.mark.django_db(transaction=True)
def test_concurrent_retries_begin_one_attempt() -> None:
    """O5: several who retry the same failure begin one attempt."""
    order = factories.order(state=State.FAILED)

    def retry() -> bool:
        try:
            services.retry_order(Order.objects.get(pk=order.pk), ACT)
        except approvals.WrongState:
            return False
        return True

    assert at_once([retry] * 4).count(True) == 1
    assert Order.objects.get().attempt == 2


# The workflow, once more


def test_start_is_queued_again_once(unchanged: Unchanged) -> None:
    """X1: the start of the current attempt is queued once more, once."""
    order = factories.order(state=State.FAILED)
    services.retry_order(order, ACT)
    order.refresh_from_db()
    with unchanged():
        assert services.start_again(order) is False
    payload = Message.objects.get().payload
    Message.objects.update(outcome=Outcome.DELIVERED, settled_at=factories.NOW)
    assert services.start_again(order) is True
    message = Message.objects.get()
    assert (message.payload, message.settled_at) == (payload, None)


# Stock


def test_example_products_are_added_once(unchanged: Unchanged) -> None:
    """O8: the samples' products are added once; later changes to them stay."""
    examples.stock_examples()
    shown = StockItem.objects.filter(product_id__startswith="SKU-00")
    assert list(shown.values_list("product_id", "unit_price", "available", "reserved")) == [
        ("SKU-001", Decimal("24.50"), 25, 0),
        ("SKU-002", Decimal("699.00"), 10, 0),
        ("SKU-003", Decimal("9.95"), 50, 0),
    ]
    StockItem.objects.filter(product_id="SKU-001").update(available=3, unit_price=5, name="Lamp")
    with unchanged():
        examples.stock_examples()


def change(item: StockItem, **how: Any) -> None:
    """Change what `how` names of the product; the rest stays."""
    fields = {name: getattr(item, name) for name in ("name", "unit_price", "currency")}
    act = how.pop("act", ACT)
    services.change_product(item, act, **{"pieces": 0, **fields, **how})


@pytest.mark.parametrize(("pieces", "available"), [(5, 30), (-25, 0)])
def test_adjusting_the_stock_is_audited(pieces: int, available: int) -> None:
    """X5: pieces are added or taken away, with a row in the audit trail."""
    factories.stock()
    person, item = factories.user(groups.OPERATOR), StockItem.objects.get(product_id="SKU-001")
    change(item, pieces=pieces, act=factories.act(person, Route.ADMIN))
    item.refresh_from_db()
    assert (item.available, item.reserved) == (available, 0)
    row = AuditEntry.objects.get()
    assert (row.event, row.subject, row.subject_id) == ("adjusted", "stock", "SKU-001")
    assert (row.by, row.route, row.reason) == (person, "admin", f"{pieces:+d} pieces")


def test_price_change_is_audited_and_compares(unchanged: Unchanged) -> None:
    """X5, O1: the change, its reason and its row in the audit trail are one; an order keeps the
    price of its submission. Without a reason, or from a price that is not the price any more,
    nothing changes."""
    order = factories.order()
    stale = StockItem.objects.get(product_id="SKU-001")
    item = StockItem.objects.get(product_id="SKU-001")
    person = factories.user(groups.OPERATOR)
    price: Any = {"unit_price": Decimal("30.00"), "currency": "EUR"}
    act = factories.act(person, Route.ADMIN)
    dearer = replace(act, reason="dearer")
    with unchanged(), pytest.raises(approvals.ReasonMissing):
        change(item, **price, act=act, name="Lamp", pieces=5)
    change(item, **price, act=dearer, name="Lamp", pieces=5)
    item.refresh_from_db()
    assert (item.unit_price, item.currency, item.available) == (Decimal("30.00"), "EUR", 30)
    row = AuditEntry.objects.latest("pk")
    assert (row.event, row.subject, row.subject_id) == ("adjusted", "stock", "SKU-001")
    assert (row.by, row.route, row.at) == (person, "admin", factories.NOW)
    assert row.reason == ("name Desk lamp → Lamp, price 24.50 USD → 30.00 EUR, +5 pieces: dearer")
    for how in (price, {"name": "Light"}, {"pieces": 5}):
        with (
            unchanged(),
            pytest.raises(
                approvals.WrongState, match=r"^SKU-001 was changed meanwhile; look at it"
            ),
        ):
            change(stale, act=dearer, **how)
    assert order.lines.get(product_id="SKU-001").unit_price == Decimal("24.50")


def test_reserved_pieces_are_not_taken_away(unchanged: Unchanged) -> None:
    """O5: what orders have reserved is not taken away, and a new name is not stored then."""
    factories.carry(factories.order(), contracts.RESERVE_INVENTORY)
    item = StockItem.objects.get(product_id="SKU-001")
    with (
        unchanged(),
        pytest.raises(
            approvals.WrongState, match=r"^Fewer than 25 pieces of SKU-001 are available\.$"
        ),
    ):
        change(item, pieces=-25, name="Lamp")


# Who sees what


@pytest.mark.parametrize("name", groups.NAMES)
def test_employee_sees_only_own_orders(name: str) -> None:
    """X3: employees see their own orders; the other groups see all orders."""
    person = factories.user(name)
    own = factories.order("own", submitter=person)
    other = factories.order("other")
    all_of_them = {own} if name == groups.EMPLOYEE else {own, other}
    assert set(services.visible_to(actors.Actor.of(person))) == all_of_them


@pytest.mark.parametrize("state", [State.RUNNING, State.CANCELLED])
def test_nobody_decides_their_own_order_that_needs_no_decision(
    unchanged: Unchanged, state: State
) -> None:
    """X3: it is refused and audited as for an order that waits."""
    person = factories.user(groups.EMPLOYEE, groups.APPROVER)
    order = factories.order(state=state, submitter=person)
    act = factories.act(person, reason="r")
    with unchanged(refusals=1), pytest.raises(approvals.SelfApproval):
        decide(order, Verdict.APPROVED, act)
    assert AuditEntry.objects.latest("pk").reason.startswith("approved: Nobody decides their own")
