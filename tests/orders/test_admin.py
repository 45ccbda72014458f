"""Orders in the admin, as a signed-in person sees and posts them."""

import re
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.test import Client

from access import groups
from approvals.models import Approval, AuditEntry, Route
from orders import services
from orders.admin import StockItemForm
from orders.models import Order, State, StockItem
from outbox import handlers
from outbox.models import Message
from tests import factories
from tests.conftest import Unchanged

pytestmark = pytest.mark.django_db

LIST = "/admin/orders/order/"
STOCK = "/admin/orders/stockitem/"
SNAPSHOT = LIST + "snapshot/"


def act(client: Client, action: str, *orders: Order, **fields: Any) -> Any:
    return client.post(
        LIST, {"action": action, "_selected_action": [one.pk for one in orders], **fields}
    )


def told(response: Any) -> list[str]:
    return [str(message) for message in get_messages(response.wsgi_request)]


def page_of(client: Client, order: Order) -> str:
    response = client.get(f"{LIST}{order.pk}/change/")
    assert response.status_code == 200
    return response.content.decode()


def buttons(html: str) -> list[str]:
    return re.findall(r'name="action" value="(\w+)"', html)


@pytest.fixture
def pending() -> Order:
    return factories.order("ORD-002", State.PENDING)


def test_approving_in_the_list_starts_the_order(client: Client, pending: Order) -> None:
    """O10, X3: approving a ticked order notifies its workflow by a signal, as for an expense."""
    approver = factories.user(groups.APPROVER, username="anna")
    client.force_login(approver)
    assert buttons(page_of(client, pending)) == ["approve", "reject"]
    answer = act(client, "approve", pending)
    assert told(answer) == ["Approved: ORD-002. Queued; the workflow is notified automatically."]
    pending.refresh_from_db()
    assert (pending.state, pending.approval.entry.by) == (State.RUNNING, approver)
    message = Message.objects.get(key="order-decision:ORD-002")
    assert message.kind == handlers.SIGNAL_WORKFLOW
    assert buttons(page_of(client, pending)) == []


def test_rejecting_without_a_reason_asks_for_it(client: Client, pending: Order) -> None:
    """X3, O4: without a reason nothing happens but the question; with it the order is cancelled."""
    client.force_login(factories.user(groups.APPROVER))
    question = act(client, "reject", pending)
    assert "Why is it rejected?" in question.content.decode()
    assert Approval.objects.get().verdict is None
    act(client, "reject", pending, reason="too dear")
    pending.refresh_from_db()
    assert (pending.state, pending.failure_reason) == (State.CANCELLED, "too dear")


@pytest.mark.parametrize("superuser", [False, True])
def test_approving_an_own_order_is_refused(
    client: Client, unchanged: Unchanged, superuser: bool
) -> None:
    """X3, O10: this includes superusers; the attempt is audited."""
    buyer = factories.user(groups.EMPLOYEE, groups.APPROVER, is_superuser=superuser)
    order = factories.order("ORD-002", State.PENDING, submitter=buyer)
    client.force_login(buyer)
    assert buttons(page_of(client, order)) == ["cancel"]
    with unchanged(refusals=1):
        answer = act(client, "approve", order)
    assert told(answer) == [
        "Skipped: ORD-002. Nobody decides their own request; ask another approver."
    ]


@pytest.mark.parametrize("action", ["approve", "cancel", "retry"])
def test_actions_of_an_auditor_change_nothing(
    client: Client, unchanged: Unchanged, pending: Order, action: str
) -> None:
    """X3: an auditor is refused, which is audited, and sees no button."""
    client.force_login(factories.user(groups.AUDITOR))
    assert buttons(page_of(client, pending)) == []
    with unchanged(refusals=1):
        act(client, action, pending)


OFFERED = {
    groups.EMPLOYEE: ["cancel"],
    groups.APPROVER: ["approve", "reject"],
    groups.FINANCE: [],
    groups.AUDITOR: [],
    groups.OPERATOR: ["cancel", "retry"],
    groups.WORKER: ["cancel"],
    "superuser": ["approve", "reject", "cancel", "retry"],
}


@pytest.mark.parametrize("role", [*groups.NAMES, "superuser"])
def test_actions_are_offered_to_those_who_may_take_them(
    client: Client, unchanged: Unchanged, role: str
) -> None:
    """X10: the list offers Cancel to those who operate or submit orders. A submitter who sends the
    action for another's order is refused, and that is audited."""
    names = () if role == "superuser" else (role,)
    person = factories.user(*names, is_superuser=role == "superuser")
    others = factories.order("ORD-002", State.PENDING)
    factories.order("ORD-003", State.PENDING, submitter=person)
    client.force_login(person)
    html = client.get(LIST).content.decode()
    assert re.findall(r'<option value="(\w+)"', html.partition('name="action"')[2]) == OFFERED[role]
    if role in (groups.APPROVER, groups.FINANCE, groups.AUDITOR):
        with unchanged(refusals=1):
            act(client, "cancel", others)


def test_employee_sees_only_own_orders(client: Client, pending: Order) -> None:
    """X3: and may cancel it; those of others are not there."""
    buyer = factories.user(groups.EMPLOYEE)
    own = factories.order("ORD-003", State.PENDING, submitter=buyer)
    client.force_login(buyer)
    html = client.get(LIST).content.decode()
    assert "ORD-003" in html
    assert "ORD-002" not in html
    assert "snapshot" not in html
    act(client, "cancel", own, pending, reason="not needed")
    own.refresh_from_db()
    pending.refresh_from_db()
    assert (own.state, pending.state) == (State.CANCELLED, State.PENDING)
    assert own.failure_reason == f"cancelled by {buyer}: not needed"


def test_retrying_in_the_list_begins_the_next_attempt(client: Client) -> None:
    """O5: a failed order is carried out again, as its next attempt; a running order is not."""
    failed, runs = factories.order("ORD-004", State.FAILED), factories.order("ORD-005")
    Message.objects.update(outcome="DELIVERED", settled_at=factories.NOW)
    client.force_login(factories.user(groups.OPERATOR))
    assert buttons(page_of(client, failed)) == ["retry"]
    answer = act(client, "retry", failed, runs)
    assert told(answer) == [
        "Skipped: Only a failed order is retried; ORD-005 is running.",
        "Retried: ORD-004. The relay notifies or starts the workflow.",
    ]
    failed.refresh_from_db()
    assert (failed.state, failed.attempt) == (State.RUNNING, 2)
    start = Message.objects.get(key="order-start:ORD-004")
    assert (start.settled_at, start.payload["memo"]["attempt"]) == (None, 2)


def test_page_shows_steps_and_undos(client: Client) -> None:
    """O5, X5: the timeline has what people and what the workflow did, in their order."""
    order = factories.order("ORD-006")
    for minute, (name, status) in enumerate(
        [
            ("process_payment", "completed"),
            ("update_warehouse", "failed"),
            ("refund_payment_by_idempotency_key", "compensated"),
        ],
        start=1,
    ):
        order.steps.create(
            attempt=1,
            name=name,
            status=status,
            message="because",
            at=factories.NOW.replace(minute=30 + minute),
        )
    client.force_login(factories.user(groups.AUDITOR))
    html = page_of(client, order)
    found = [
        html.index(text)
        for text in (
            ">submitted<",
            "process payment completed (attempt 1)",
            "update warehouse failed (attempt 1)",
            "refund payment by idempotency key compensated (attempt 1)",
        )
    ]
    assert found == sorted(found)
    assert html.count('<td class="py-1 pr-4">workflow</td>') == 6  # Who and Route of each step


# The stock


def test_adding_pieces_keeps_what_orders_took_meanwhile(client: Client) -> None:
    """O9: what orders reserved meanwhile stays reserved; the change is audited."""
    factories.stock()
    lamp = StockItem.objects.get(product_id="SKU-001")
    client.force_login(factories.user(groups.OPERATOR, username="olga"))
    StockItem.objects.filter(pk=lamp.pk).update(available=20, reserved=5)
    form = {"name": "Desk lamp", "unit_price": "24.5", "currency": "USD", "pieces": "7"}
    assert client.post(f"{STOCK}{lamp.pk}/change/", form).status_code == 302
    lamp.refresh_from_db()
    assert (lamp.available, lamp.reserved, lamp.unit_price) == (27, 5, Decimal("24.50"))
    entry = AuditEntry.objects.get(subject="stock")
    assert (entry.subject_id, entry.event, entry.actor, entry.reason) == (
        "SKU-001",
        "adjusted",
        "olga",
        "+7 pieces",
    )


PRICED = {"name": "Desk lamp", "unit_price": "24.50", "currency": "USD", "pieces": "0"}


@pytest.fixture
def lamp(client: Client) -> StockItem:
    """A product at 24.50 USD; an operator is signed in."""
    factories.stock()
    client.force_login(factories.user(groups.OPERATOR, username="olga"))
    return StockItem.objects.get(product_id="SKU-001")


@pytest.mark.parametrize(
    ("field", "value", "change"),
    [
        ("unit_price", "0.01", "24.50 USD → 0.01 USD"),
        ("currency", "EUR", "24.50 USD → 24.50 EUR"),
    ],
)
def test_price_change_without_a_reason_changes_nothing(
    client: Client, unchanged: Unchanged, lamp: StockItem, field: str, value: str, change: str
) -> None:
    """X5: without a reason nothing changes; with it the trail has the old price and the new one."""
    for reason in ({}, {"reason": ""}, {"reason": " \n"}):
        with unchanged():
            answer = client.post(f"{STOCK}{lamp.pk}/change/", PRICED | {field: value} | reason)
        assert "A price change needs a reason; say why." in answer.content.decode()
    posted = PRICED | {field: value, "reason": "supplier's list", "name": "Lamp"}
    assert client.post(f"{STOCK}{lamp.pk}/change/", posted).status_code == 302
    lamp.refresh_from_db()
    assert (lamp.name, f"{lamp.unit_price} {lamp.currency}") == ("Lamp", change.split(" → ")[1])
    [entry] = AuditEntry.objects.filter(subject="stock")
    assert (entry.subject_id, entry.event, entry.actor, entry.route, entry.reason) == (
        "SKU-001",
        "adjusted",
        "olga",
        "admin",
        f"name Desk lamp → Lamp, price {change}: supplier's list",
    )


def test_name_changes_without_a_reason(client: Client, lamp: StockItem) -> None:
    """X5: a new name needs no reason, and is audited. The same price in another notation is no
    change."""
    for posted in ({"name": "Lamp"}, {"name": "Lamp", "unit_price": "024.5"}):
        assert client.post(f"{STOCK}{lamp.pk}/change/", PRICED | posted).status_code == 302
    assert client.get(f"{STOCK}{lamp.pk}/change/").content.decode().count('name="reason"') == 1
    assert 'name="reason"' not in client.get(f"{STOCK}add/").content.decode()
    [entry] = AuditEntry.objects.filter(subject="stock")
    assert (entry.actor, entry.reason) == ("olga", "name Desk lamp → Lamp")


def test_price_that_was_changed_meanwhile_saves_nothing_of_the_form(
    client: Client, lamp: StockItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X5: neither the price nor the name nor the pieces of the form are stored, and the person
    reads the error and no success."""
    validate = StockItemForm.clean

    def after_another(form: StockItemForm) -> Any:
        cleaned = validate(form)
        StockItem.objects.update(unit_price="30.00")
        return cleaned

    monkeypatch.setattr(StockItemForm, "clean", after_another)
    posted = {"name": "Lamp", "unit_price": "25", "pieces": "3", "reason": "dearer"}
    answer = client.post(f"{STOCK}{lamp.pk}/change/", PRICED | posted)
    assert told(answer) == [
        "SKU-001 was changed meanwhile; look at it and change it again. Nothing was saved."
    ]
    assert answer.headers["Location"] == f"{STOCK}{lamp.pk}/change/"
    lamp.refresh_from_db()
    # The page's transaction, in which the test changed the price, is rolled back.
    stored = (lamp.name, f"{lamp.unit_price}", lamp.available)
    assert stored == ("Desk lamp", "24.50", 25)
    assert not AuditEntry.objects.filter(subject="stock").exists()
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("pieces", "-26", "Only 25 pieces are available to take away."),
        ("pieces", "x", "Enter a whole number."),
        ("unit_price", "-1", "greater than or equal to 0"),
        ("currency", "dollar", "at most 3 characters"),
    ],
)
def test_invalid_stock_form_changes_nothing(
    client: Client, unchanged: Unchanged, field: str, value: str, error: str
) -> None:
    """O9: the error is shown at its field, and nothing changes."""
    factories.stock()
    lamp = StockItem.objects.get(product_id="SKU-001")
    client.force_login(factories.user(groups.OPERATOR))
    form = {"name": "Desk lamp", "unit_price": "25.00", "currency": "USD", "pieces": "0"}
    with unchanged():
        answer = client.post(f"{STOCK}{lamp.pk}/change/", {**form, field: value})
    assert answer.status_code == 200
    assert error in answer.content.decode()


def test_new_product_is_stored_with_its_pieces_and_audited(client: Client) -> None:
    """O9, X5: it can be ordered at once; the audit trail has its first price."""
    client.force_login(factories.user(groups.OPERATOR, username="olga"))
    form = {
        "product_id": "SKU-9",
        "name": "Stapler",
        "unit_price": "4.20",
        "currency": "USD",
        "pieces": "3",
    }
    assert client.post(f"{STOCK}add/", form).status_code == 302
    stapler = StockItem.objects.get(product_id="SKU-9")
    assert (stapler.available, stapler.reserved) == (3, 0)
    [entry] = AuditEntry.objects.filter(subject="stock")
    assert (entry.subject_id, entry.event, entry.actor, entry.route, entry.reason) == (
        "SKU-9",
        "created",
        "olga",
        "admin",
        "Stapler at 4.20 USD, 3 pieces",
    )
    assert client.post(f"{STOCK}{stapler.pk}/delete/", {"post": "yes"}).status_code == 403


def test_only_operators_change_the_stock(client: Client, unchanged: Unchanged) -> None:
    """X3: finance sees it and changes nothing."""
    factories.stock()
    lamp = StockItem.objects.get(product_id="SKU-001")
    client.force_login(factories.user(groups.FINANCE))
    assert client.get(STOCK).status_code == 200
    with unchanged():
        assert client.post(f"{STOCK}{lamp.pk}/change/", {"pieces": "1"}).status_code == 403


# The snapshot


@pytest.mark.django_db(transaction=True)
def test_snapshot_shows_the_records_of_one_moment(client: Client) -> None:
    """O7: orders, stock, payments and warehouse on one page."""
    order = factories.order("ORD-<7>")
    services.cancel_order(order, factories.act(route=Route.ADMIN, reason="<b>"))
    client.force_login(factories.user(groups.AUDITOR))
    html = client.get(SNAPSHOT).content.decode()
    for text in ("ORD-&lt;7&gt;", "compensating", "Desk lamp", "&lt;b&gt;", "None yet."):
        assert text in html


def test_snapshot_needs_every_view_permission(client: Client) -> None:
    """X8: not an employee, and nobody without a session."""
    assert client.get(SNAPSHOT).status_code == 302
    client.force_login(factories.user(groups.EMPLOYEE))
    assert client.get(SNAPSHOT).status_code == 403


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("missing", ["", *services.SNAPSHOT_PERMISSIONS])
def test_snapshot_link_is_shown_to_those_who_may_follow_it(client: Client, missing: str) -> None:
    """X10: with one of the permissions missing, the list of orders has no link to a page that
    answers 403."""
    held = {services.SUBMIT, *services.SNAPSHOT_PERMISSIONS} - {missing}
    person = factories.user()
    person.user_permissions.set(
        Permission.objects.filter(
            content_type__app_label="orders", codename__in=[name.split(".")[1] for name in held]
        )
    )
    client.force_login(person)
    assert (SNAPSHOT in client.get(LIST).content.decode()) == (not missing)
    assert (client.get(SNAPSHOT).status_code == 403) == bool(missing)
