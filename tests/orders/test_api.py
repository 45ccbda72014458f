"""Orders over HTTP: at the root, as the sample's clients expect them, and under /api/v1/."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any, ClassVar
from urllib.parse import quote, unquote

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from access import groups
from approvals.models import Approval, AuditEntry, Route, Verdict
from orders import services
from orders.integrations import inventory_provider, payment_provider
from orders.models import UNDONE, Charge, Order, Shipment, State, StockItem
from outbox.models import Message
from temporal import loop
from tests import factories
from tests.conftest import Unchanged, at_once
from tests.orders.conftest import History
from worker import contracts

pytestmark = pytest.mark.django_db

ROOT, V1 = "", "/api/v1"
PLACES = [ROOT, V1]
# Under /api/v1/ the name `payments` is the ledger of expenses.
CHARGES = {ROOT: "/payments", V1: "/api/v1/charges"}
# The word for an order's state, and the id by which a path names an order.
STATE = {ROOT: "status", V1: "state"}
OWN_ID = {ROOT: "workflow_id", V1: "order_id"}
BODY = {
    "product_id": "SKU-001",
    "quantity": 2,
    "customer_id": "cust-42",
    "payment_method": "tok_visa",
}
LARGE = BODY | {"product_id": "SKU-1001", "quantity": 1}
KEY = {"Idempotency-Key": "k-1 \xe9"}
NO_ORDER = "00000000-0000-0000-0000-000000000000"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"


@pytest.fixture(autouse=True)
def _no_temporal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process delivers nothing, and asks a Temporal that is not there."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(loop, "_current", None)
    yield
    if loop._current is not None:
        running = loop._current[1]._event_loop
        running.call_soon_threadsafe(running.stop)


@pytest.fixture(autouse=True)
def _stock(db: None) -> None:
    factories.stock()


class Program(Client):
    """A program with a token of a person in these groups."""

    def __init__(self, *group_names: str, **fields: Any) -> None:
        self.user: User = factories.user(*group_names, **fields)
        super().__init__(headers=factories.bearer(self.user))


@pytest.fixture
def employee() -> Program:
    return Program(groups.EMPLOYEE, username="emma")


@pytest.fixture
def approver() -> Program:
    return Program(groups.APPROVER, username="anna")


@pytest.fixture
def operator() -> Program:
    return Program(groups.OPERATOR, username="olaf")


@pytest.fixture
def worker() -> Program:
    return Program(groups.WORKER, username="will")


def send(client: Client, path: str, body: Any = None, **headers: str) -> Any:
    """POST `body`, JSON as text or to be made so."""
    return client.post(path, {} if body is None else body, "application/json", headers=headers)


def problem(response: Any, status: int) -> dict[str, Any]:
    """The problem details of a refusal; asserts that they are whole."""
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    details: dict[str, Any] = response.json()
    assert (details["type"], details["status"]) == ("about:blank", status)
    assert details["title"]
    assert details["detail"]
    return details


def ids(response: Any) -> list[str]:
    """The order ids of a list: an array at the root, a page under /api/v1/."""
    assert response.status_code == 200
    body = response.json()
    return [row["order_id"] for row in (body if isinstance(body, list) else body["results"])]


def in_the_words_of(place: str, answer: dict[str, Any]) -> dict[str, Any]:
    """`answer`, whose `state` is called `status` at the root."""
    return {STATE[place] if name == "state" else name: value for name, value in answer.items()}


def names(place: str, order: Order) -> list[str]:
    """By what a path names the order."""
    return [str(order.pk), str(order.pk).upper(), getattr(order, OWN_ID[place])]


# The sample's own requests, word for word but for the port


def test_requests_of_the_sample_get_the_documented_answers(local: Client) -> None:
    """O7, seed 004: the documented requests have the documented answers; no header but the
    content type, no slash at the end."""
    body = b"""{
    "product_id": "SKU-001",
    "quantity": 2,
    "customer_id": "cust-42",
    "payment_method": "tok_visa"
  }"""
    answer = local.generic("POST", "/orders", body, "application/json")
    assert answer.headers["Content-Type"] == "application/json"
    started = answer.json()
    assert list(started) == ["workflow_id", "order_id", "status"]
    assert re.fullmatch("ord_[0-9a-f]{12}", started["order_id"])
    assert started["workflow_id"] == f"order-{started['order_id']}"
    assert started["status"] == "started"
    order = Order.objects.get()
    assert (order.order_id, order.total, order.submitter) == (
        started["order_id"],
        Decimal("49.00"),
        None,
    )
    status = local.get(f"/orders/{started['workflow_id']}/status").json()
    assert (status["workflow_id"], status["status"]) == (started["workflow_id"], "running")
    assert [one["workflow_id"] for one in local.get("/orders").json()] == [started["workflow_id"]]
    assert local.get("/health").json() == {"status": "ok"}
    named = local.generic(
        "POST",
        "/orders",
        json.dumps(BODY | {"workflow_id": "optional-client-provided-id"}),
        "application/json",
    )
    assert named.json()["workflow_id"] == "optional-client-provided-id"
    again = send(local, "/orders", BODY | {"workflow_id": "optional-client-provided-id"})
    assert problem(again, 409)["detail"].startswith("The workflow id optional-client-provided-id")


def test_stock_charges_and_warehouse_are_shown(local: Client) -> None:
    """O7: the stock, a charge by its id, what the warehouse was told, and all of it at once."""
    order = factories.order(state=State.COMPLETED)
    charge, shipment = Charge.objects.get(), Shipment.objects.get()
    stock = {row["product_id"]: row for row in local.get("/inventory").json()}
    assert stock["SKU-001"] == {
        "product_id": "SKU-001",
        "name": "Desk lamp",
        "unit_price": "24.50",
        "currency": "USD",
        "available": 24,
        "reserved": 0,
    }
    paid = {
        "charge_id": charge.charge_id,
        "amount": "44.40",
        "currency": "USD",
        "payment_method": "tok_visa",
        "idempotency_key": f"{order.pk}:1",
        "status": "charged",
    }
    assert local.get(f"/payments/{charge.charge_id}").json() == paid
    sent = [
        {
            "order_id": "ord-1",
            "product_id": product_id,
            "quantity": quantity,
            "status": "applied",
            "tracking_number": shipment.tracking_number,
        }
        for product_id, quantity in (("SKU-001", 1), ("SKU-003", 2))
    ]
    assert local.get("/warehouse").json() == sent
    problem(local.get("/payments/TXN-0"), 404)
    problem(local.get("/payments/%00"), 404)


SUMMARY = {
    "workflow_id": "order-ord-1",
    "order_id": "ord-1",
    "state": "completed",
    "total": "1000.01",
    "currency": "USD",
    "needs_approval": True,
    "attempt": 1,
    "failure_reason": None,
    "created_at": "2026-01-02T03:04:05Z",
    "ended_at": "2026-01-02T03:04:05Z",
}


@pytest.mark.parametrize("place", PLACES)
def test_order_is_shown_with_lines_and_decision(operator: Program, place: str) -> None:
    """O7, X5: an order with its lines and its decision, by its UUID and by an id of its own; its
    state is called `state` under /api/v1/."""
    person = factories.user(groups.EMPLOYEE, username="emma")
    customer = services.Customer(
        customer_id="cust-42",
        payment_method="tok_visa",
        customer_name="Alice Smith",
        customer_email="alice@example.org",
        shipping_address="123 Main St",
    )
    order = factories.order(state=State.COMPLETED, large=True, submitter=person, customer=customer)
    summary = in_the_words_of(place, {"id": str(order.pk), **SUMMARY})
    for ref in names(place, order):
        assert operator.get(f"{place}/orders/{ref}").json() == {
            **summary,
            **vars(customer),
            "submitter": "emma",
            "expires_at": None,
            "lines": [
                {
                    "product_id": "SKU-1001",
                    "name": "A cent above the threshold",
                    "quantity": 1,
                    "unit_price": "1000.01",
                }
            ],
            "decision": {
                "verdict": "APPROVED",
                "actor": "local",
                "route": "protocol",
                "reason": "as made",
                "at": "2026-01-02T03:04:05Z",
            },
        }
    listed = operator.get(f"{place}/orders").json()
    page = {"next": None, "previous": None}
    assert listed == ([summary] if place == ROOT else {**page, "results": [summary]})
    trail = operator.get(f"{place}/orders/{order.pk}/audit").json()
    if place == V1:
        assert trail.items() >= page.items()
        trail = trail["results"]
    assert [one["event"] for one in trail] == ["submitted", "approved", "completed"]
    assert trail[1] == {
        "event": "approved",
        "actor": "local",
        "route": "protocol",
        "reason": "as made",
        "at": "2026-01-02T03:04:05Z",
    }


STEP_OF = {
    State.PENDING: "await_approval",
    State.RUNNING: "check_inventory",
    State.COMPENSATING: "begin_compensation",
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("state", State)
def test_status_follows_the_records(local: Client, state: State, large: bool) -> None:
    """O3, O7: the same as `get_status` of the workflow, read from the records."""
    factories.order(state=state, large=large)
    status = local.get("/orders/order-ord-1/status").json()
    done = [] if state in (State.PENDING, State.RUNNING) else list(factories.STEPS)
    approval = "not_required"
    if large or state == State.PENDING:
        approval = "pending" if state == State.PENDING else "approved"
    failed = (contracts.UPDATE_WAREHOUSE, "failed", "as made")
    events = [(one["step"], one["status"], one["message"]) for one in status.pop("events")]
    assert [name for name, kind, _ in events if kind == "completed"] == done
    assert (failed in events) == (state in (State.COMPENSATING, State.FAILED))
    undone = [name for name, kind, _ in events if kind == "compensated"]
    assert undone == (list(factories.UNDOES) if state in UNDONE else [])
    results = status.pop("results")
    assert list(results) == (
        [step for step in done if step != contracts.CHECK_INVENTORY] if done else []
    )
    reason = {State.CANCELLED: "cancelled by local: as made"}
    reason |= dict.fromkeys((State.COMPENSATING, State.FAILED), "as made")
    assert status == {
        "workflow_id": "order-ord-1",
        "order_id": "ord-1",
        "status": state.value,
        "attempt": 1,
        "approval_status": approval,
        "approval_reason": "as made" if approval == "approved" else "",
        "steps_completed": done[:3] if failed in events else done,
        "current_step": STEP_OF.get(state),
        "compensation_triggered": state in (State.COMPENSATING, *UNDONE),
        "failure_reason": reason.get(state),
    }


def test_status_shows_the_step_under_way_of_the_current_attempt(local: Client) -> None:
    """O3: what is under way, with what the steps answered; a retry begins a timeline of its
    own."""
    order = factories.order()
    seen = []
    for step in factories.STEPS:
        factories.carry(order, step)
        seen.append(local.get("/orders/order-ord-1/status").json()["current_step"])
    assert seen == [*factories.STEPS[1:], "complete_order"]
    status = local.get("/orders/order-ord-1/status").json()
    assert status["results"]["process_payment"]["charge_id"] == Charge.objects.get().charge_id
    assert re.fullmatch(TIME, status["events"][0]["timestamp"])
    factories.carry(order, contracts.BEGIN_COMPENSATION, contracts.CLOSE_ORDER, reason="x")
    services.retry_order(order, factories.act(route=Route.ADMIN))
    status = local.get("/orders/order-ord-1/status").json()
    assert (status["attempt"], status["events"], status["steps_completed"]) == (2, [], [])
    assert (status["compensation_triggered"], status["failure_reason"]) == (False, None)


# Paths and methods


@pytest.mark.parametrize("place", PLACES)
def test_each_path_is_served_with_and_without_a_slash(operator: Program, place: str) -> None:
    """O7: each path is served with a slash at its end and without."""
    order = factories.order(state=State.COMPLETED, large=True)
    charge = Charge.objects.get().charge_id
    lists = [CHARGES[V1]] if place == V1 else []
    for path in (
        *(f"{place}/{name}" for name in ("orders", "inventory", "warehouse")),
        *lists,
        f"{CHARGES[place]}/{charge}",
        *(f"{place}/orders/{order.pk}{tail}" for tail in ("", "/status", "/audit")),
    ):
        first, second = (operator.get(path + slash) for slash in ("", "/"))
        assert (first.status_code, second.status_code) == (200, 200)
        assert first.json() == second.json()
    for slash in ("", "/"):
        assert send(operator, f"{place}/orders/{order.pk}/cancel{slash}").status_code == 409
        assert send(operator, f"{place}/orders/{order.pk}/retry{slash}").status_code == 409


@pytest.mark.parametrize("place", PLACES)
def test_other_methods_change_nothing(unchanged: Unchanged, place: str) -> None:
    """O7: what a path does not serve is 405, a problem, and changes nothing; HEAD is a GET without
    its body, OPTIONS changes nothing."""
    root = Program(is_superuser=True)
    order = factories.order(state=State.PENDING)
    one = f"{place}/orders/{order.pk}"
    reading = [
        *(f"{place}{path}" for path in ("/orders", "/inventory", "/warehouse")),
        *(one, f"{one}/status", f"{one}/audit"),
    ]
    acting = [f"{one}/{verb}" for verb in ("approve", "reject", "cancel", "retry")]
    if place == ROOT:
        acting.append(f"{one}/steps/check_inventory")
    with unchanged():
        for path in (*reading, *acting):
            for method in ("PUT", "PATCH", "DELETE", "TRACE"):
                problem(root.generic(method, path, b"{}", "application/json"), 405)
            assert root.options(path).status_code == 200
        for path in reading:
            head = root.head(path)
            assert (head.status_code, head.content) == (200, b"")
            if path != f"{place}/orders":
                problem(send(root, path), 405)
        for path in acting:
            problem(root.get(path), 405)
            assert root.head(path).status_code == 405


NO_REFS = [
    *("nope", NO_ORDER, NO_ORDER[:-1] + "x", "-" * 36, "a" * 36, "A-" * 18, "%C3%28"),
    *("%00", "a%00", "%ff", "%ED%A0%80", "%EF%BF%BD", "%0A", "order-ord-1%0A", "%20", "%7F", "%3F"),
    *("a" * 200, "a" * 201, "%F0%9F%98%80" * 100, "..", "%2E%2E", "order%2Ford-1", "status", "%23"),
    *("order-ord-1%20", "ORDER-ORD-1", "{ref}", "%25", "'--", "<b>"),
]


@pytest.mark.parametrize("place", PLACES)
def test_unknown_reference_is_not_found(unchanged: Unchanged, place: str) -> None:
    """O7: a reference to no order is 404 and a problem, whatever characters it has."""
    root = Program(is_superuser=True)
    factories.order(state=State.PENDING)
    reading = ("", "/status", "/audit")
    acting = ("/approve", "/reject", "/cancel", "/retry", "/steps/check_inventory")
    with unchanged():
        # The root does not know the order's id, and /api/v1/ does not know the workflow's.
        for ref in (*NO_REFS, {ROOT: "ord-1", V1: "order-ord-1"}[place]):
            for tail in (*reading, *acting):
                path = f"{place}/orders/{ref}{tail}"
                answer = send(root, path, {"reason": "r"}) if tail in acting else root.get(path)
                assert answer.status_code == 404, path
                # What cannot be a reference is no path of the site at all.
                if place == V1 or not ("%2F" in ref or len(unquote(ref)) > 200):
                    problem(answer, 404)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("chosen", [" a ", "ä😀", "<b>", "a?b", "%00", "..", "a" * 100, "#"])
def test_any_id_is_kept_and_names_its_order(operator: Program, place: str, chosen: str) -> None:
    """O7: an id is stored as it came; percent-encoded, it names its order in a path."""
    field = OWN_ID[place]
    answer = send(Program(is_superuser=True), f"{place}/orders", BODY | {field: chosen})
    assert answer.json()[field] == chosen
    assert operator.get(answer.headers["Location"]).json()[field] == chosen
    path = f"{place}/orders/{quote(chosen, safe='')}/status"
    assert operator.get(path).json()[field] == chosen


def test_order_with_a_slash_in_its_id_is_found_by_uuid(operator: Program) -> None:
    """O7: the UUID names an order whose id cannot be part of a path."""
    answer = send(Program(is_superuser=True), "/orders", BODY | {"workflow_id": "a/b"})
    assert operator.get(answer.headers["Location"]).json()["workflow_id"] == "a/b"
    assert operator.get("/orders/a%2Fb").status_code == 404


@pytest.mark.parametrize("place", PLACES)
def test_id_like_the_uuid_of_another_order_takes_nothing_over(
    employee: Program, approver: Program, worker: Program, place: str
) -> None:
    """X7: an order whose id is the UUID of another order gets neither the decision nor the steps of
    that order."""
    order = factories.order(state=State.PENDING)
    taken = send(employee, f"{place}/orders", LARGE | {OWN_ID[place]: str(order.pk)})
    assert taken.status_code == 201
    seen = approver.get(f"{place}/orders/{order.pk}").json()
    assert (seen["id"], seen["order_id"]) == (str(order.pk), "ord-1")
    assert send(approver, f"{place}/orders/{order.pk}/approve").json()["order_id"] == "ord-1"
    own = {"Idempotency-Key": "order-ord-1"}
    step = f"/orders/{order.pk}/steps/check_inventory"
    assert send(worker, step, {"attempt": 1}, **own).status_code == 200
    assert Order.objects.get(order_id=taken.json()["order_id"]).state == State.PENDING


# What is wrong with a body


@pytest.mark.parametrize(
    "body",
    [
        *("", "{", "[]", "null", "1", '"x"', b"\xff", "9" * 5000, "[" * 100_000, "[[1]]"),
        *('{"quantity": NaN}', '{"quantity": Infinity}', '{"quantity": -Infinity}', '[{"a": 1}]'),
    ],
    ids=lambda body: str(body)[:12],
)
def test_malformed_json_changes_nothing(local: Client, unchanged: Unchanged, body: Any) -> None:
    """O7: a body that is no JSON object is a problem of 400."""
    factories.order(state=State.PENDING)
    with unchanged():
        problem(send(local, "/orders", body), 400)
        if body:
            for verb in ("approve", "reject", "cancel"):
                problem(send(local, f"/orders/order-ord-1/{verb}", body), 400)


def test_other_content_types_are_refused(local: Client, unchanged: Unchanged) -> None:
    """O7: only JSON is read."""
    with unchanged():
        for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""):
            problem(local.generic("POST", "/orders", json.dumps(BODY), kind), 415)


WORDS: list[Any] = ["\0", "a\0b", "\ud800", [], ["x"], {}, {"x": 1}, True, None]
NO_WORDS: list[Any] = [*WORDS, "", " ", "\n"]
NO_ID: list[Any] = [*NO_WORDS, "a" * 101, "a\n", "\ufffd"]
WRONG: dict[str, list[Any]] = {
    "product_id": [*NO_ID, "nope", 5],
    "quantity": [
        *(None, "", " ", "x", 0, -1, 1.5, "1.5", True, False, [], [1], {}),
        *(10**30, -(10**30), 2**31, 1_000_001, "9" * 2000, "\0", "٣x"),
    ],
    "customer_id": [*NO_WORDS, "a" * 101],
    "payment_method": [*NO_WORDS, "a" * 101],
    "customer_name": [*WORDS, "a" * 201],
    "customer_email": [*WORDS, "x", "@", "a@b", "a b@example.org", 5, f"{'a' * 250}@example.org"],
    "shipping_address": [*WORDS, "a" * 2001],
    "order_id": NO_ID,
    "workflow_id": [one for one in NO_ID if one is not None],
    "fail_at": ["nope", "Payment", [], ["payment"], {}, 1, True, "\0"],
    "lines": [
        *(None, "", "x", 1, True, {}, {"0": {}}, [], [None], [[]], ["x"], [{}]),
        *([{"product_id": "SKU-001"}], [{"quantity": 1}], [{"product_id": [], "quantity": {}}]),
        *([{"product_id": "SKU-001", "quantity": one}] for one in (0, -1, 1.5, True, 10**30)),
        [{"product_id": "SKU-001", "quantity": 1}] * 101,
        [{"product_id": "SKU-001", "quantity": 1}, {"product_id": "\0", "quantity": 1}],
        [{"product_id": "nope", "quantity": 1}],
        [{"product_id": "SKU-001", "quantity": 1}, {"product_id": "nope", "quantity": 1}],
    ],
}


@pytest.mark.parametrize("field", WRONG)
def test_wrong_field_is_named_and_nothing_is_stored(
    local: Client, unchanged: Unchanged, field: str
) -> None:
    """O7: a wrong field is named with what is wrong, and nothing is stored."""
    body = {name: value for name, value in BODY.items() if field != "lines" or name not in SINGLE}
    for value in WRONG[field]:
        with unchanged():
            details = problem(send(local, "/orders", {**body, field: value}), 400)
        assert list(details["errors"]) == [field], value


SINGLE = ("product_id", "quantity")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *(({name: None}, name) for name in BODY),
        ({"product_id": None, "quantity": None}, "product_id"),
        ({"lines": [{"product_id": "SKU-001", "quantity": 1}]}, "product_id"),
        ({"lines": [{"product_id": "SKU-001", "quantity": 1}], "product_id": None}, "quantity"),
    ],
    ids=str,
)
def test_missing_field_is_named_and_nothing_is_stored(
    local: Client, unchanged: Unchanged, change: dict[str, Any], named: str
) -> None:
    """O7: a field that is missing (None here), or that goes not together with another, is named."""
    body = {name: value for name, value in (BODY | change).items() if value is not None}
    with unchanged():
        details = problem(send(local, "/orders", body), 400)
    assert list(details["errors"]) == [named]


@pytest.mark.parametrize("quantity", ["2", 2.0, "2.0", " 2 "])
def test_whole_number_in_any_notation_is_a_quantity(local: Client, quantity: Any) -> None:
    """O7: a quantity is a whole number in any notation."""
    assert send(local, "/orders", BODY | {"quantity": quantity}).status_code == 201
    assert Order.objects.get().lines.get().quantity == 2


@pytest.mark.parametrize("verb", ["approve", "reject", "cancel"])
@pytest.mark.parametrize("reason", ["x" * 2001, "\0", "\ud800", [], {}, True])
def test_unstorable_reason_changes_nothing(
    local: Client, unchanged: Unchanged, verb: str, reason: Any
) -> None:
    """O7: a reason too long or not storable."""
    factories.order(state=State.PENDING)
    with unchanged():
        answer = send(local, f"/orders/order-ord-1/{verb}", {"reason": reason})
    assert list(problem(answer, 400)["errors"]) == ["reason"]


@pytest.mark.parametrize("body", [{}, {"reason": None}, {"reason": ""}, {"reason": " \n"}, None])
def test_only_a_rejection_needs_a_reason(local: Client, unchanged: Unchanged, body: Any) -> None:
    """X3: a rejection takes a reason, an approval and a cancellation take none; no body is an
    empty one."""
    for number, verb in enumerate(("reject", "approve", "cancel")):
        factories.order(f"ord-{number}", State.PENDING)
        path = f"/orders/order-ord-{number}/{verb}"
        answer = local.generic("POST", path) if body is None else send(local, path, body)
        if verb == "reject":
            assert list(problem(answer, 400)["errors"]) == ["reason"]
        else:
            assert answer.status_code == 200


# Submission


@pytest.mark.parametrize("place", PLACES)
def test_submission_stores_everything_it_names(employee: Program, place: str) -> None:
    """O7, X5: several lines, everything that is known of the customer, and ids of one's own."""
    more = {
        "customer_name": "Alice Smith",
        "customer_email": "alice@example.org",
        "shipping_address": "123 Main St\nSpringfield",
    }
    lines = [
        {"product_id": "SKU-003", "quantity": 2},
        {"product_id": "SKU-001", "quantity": 1},
        {"product_id": "SKU-003", "quantity": 3},
    ]
    body = {"customer_id": "cust-42", "payment_method": "tok_visa", "lines": lines, **more}
    body |= {"order_id": "ORD-7", "workflow_id": "order-workflow-ORD-7"}
    answer = send(employee, f"{place}/orders", body)
    order = Order.objects.get()
    ids = {"workflow_id": "order-workflow-ORD-7", "order_id": "ORD-7"}
    assert answer.status_code == 201
    if place == V1:
        assert answer.json() == employee.get(f"{place}/orders/ORD-7").json()
        assert answer.json().items() >= {"id": str(order.pk), "state": "running", **ids}.items()
    else:
        assert answer.json() == {**ids, "status": "started"}
    assert answer.headers["Location"] == f"{place}/orders/{order.pk}"
    assert (order.total, order.submitter) == (Decimal("74.25"), employee.user)
    assert {name: getattr(order, name) for name in more} == more
    entry = AuditEntry.objects.get()
    assert (entry.event, entry.by) == ("submitted", employee.user)
    assert entry.route == ("rest" if place else "protocol")
    message = Message.objects.get()
    assert (message.key, message.payload["workflow_id"]) == (
        "order-start:ORD-7",
        "order-workflow-ORD-7",
    )


def test_null_leaves_the_workflow_id_to_the_site(local: Client) -> None:
    """O7: null leaves it to the site."""
    answer = send(local, "/orders", BODY | {"workflow_id": None, "fail_at": None}).json()
    assert answer["workflow_id"] == f"order-{answer['order_id']}"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("group", groups.NAMES)
def test_only_employees_and_the_worker_submit(unchanged: Unchanged, place: str, group: str) -> None:
    """X3, X8: the body of other people's requests is not read."""
    program = Program(group)
    if group in (groups.EMPLOYEE, groups.WORKER):
        assert send(program, f"{place}/orders", BODY).status_code == 201
    else:
        with unchanged():
            problem(send(program, f"{place}/orders", "{"), 403)


@pytest.mark.parametrize("field", ["order_id", "workflow_id"])
def test_taken_id_is_a_conflict(local: Client, unchanged: Unchanged, field: str) -> None:
    """O7: an id that is taken is a conflict, with a key of another request too."""
    assert send(local, "/orders", BODY | {field: "taken"}).status_code == 201
    with unchanged():
        for headers in ({}, KEY):
            body = BODY | {field: "taken", "quantity": 3}
            assert "taken" in problem(send(local, "/orders", body, **headers), 409)["detail"]


@pytest.mark.parametrize("named", [{}, {"order_id": "o"}, {"workflow_id": "w"}], ids=str)
def test_repeat_with_its_key_gets_the_first_order(
    employee: Program, unchanged: Unchanged, named: dict[str, str]
) -> None:
    """O7: a repeat with the same key gets the order of the first request, even if the product is
    sold out or has another price by then. Another key, or another person, makes another order."""
    first = send(employee, "/orders", BODY | named, **KEY)
    assert first.status_code == 201
    StockItem.objects.update(unit_price=7, available=0)
    with unchanged():
        again = send(employee, "/orders", BODY | named, **KEY)
        assert (again.status_code, again.json()) == (201, first.json())
        in_lines = [{"product_id": "SKU-001", "quantity": 1}] * 2
        body = {name: value for name, value in BODY.items() if name not in SINGLE}
        again = send(employee, "/orders", body | named | {"lines": in_lines}, **KEY)
        assert again.json() == first.json()
    assert send(employee, "/orders", BODY, **{"Idempotency-Key": "k-2"}).status_code == 201
    assert send(Program(groups.EMPLOYEE), "/orders", BODY, **KEY).status_code == 201
    assert Order.objects.count() == 3


@pytest.mark.parametrize(
    "change",
    [
        *({"quantity": 3}, {"product_id": "SKU-003"}, {"customer_id": "x"}, {"workflow_id": "w"}),
        {"shipping_address": "elsewhere"},
    ],
    ids=str,
)
def test_key_of_another_body_is_a_conflict(
    employee: Program, unchanged: Unchanged, change: dict[str, Any]
) -> None:
    """O7: a key belongs to one request; with any other body it is a conflict."""
    send(employee, "/orders", BODY, **KEY)
    with unchanged():
        refused = problem(send(employee, "/orders", BODY | change, **KEY), 409)
    assert "This Idempotency-Key belongs to another request." in refused["detail"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("named", [{}, {"order_id": "o"}, {"workflow_id": "w"}], ids=str)
def test_concurrent_repeats_make_one_order(employee: Program, named: dict[str, str]) -> None:
    """O7: eight submissions with one key at the same time make one order, and all get it."""
    headers = factories.bearer(employee.user) | KEY
    calls = [lambda: send(Client(headers=headers), "/orders", BODY | named)] * 8
    answers = at_once(calls)
    assert {one.status_code for one in answers} == {201}
    assert len({one.content for one in answers}) == 1
    assert (Order.objects.count(), Message.objects.count()) == (1, 1)


def test_workflow_id_that_temporal_knows_is_a_conflict(
    local: Client,
    unchanged: Unchanged,
    temporal_address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """O7: a workflow of another kind holds the id, which the site has no record of."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    other = "hello-workflow-of-another"

    async def start(temporal: Any) -> None:
        await temporal.start_workflow("Any", "x", workflow_id=other, queue="nobody")

    loop.ask(start)
    with unchanged():
        details = problem(send(local, "/orders", BODY | {"workflow_id": other}), 409)
    assert details["detail"].startswith(f"The workflow id {other} is in use.")
    assert send(local, "/orders", BODY | {"workflow_id": f"{other}-free"}).status_code == 201


# Injected failures


@pytest.mark.parametrize("fail_at", contracts.FAIL_AT)
def test_local_installation_injects_the_failure(local: Client, fail_at: str) -> None:
    """O6: at the local installation an order may ask for its failure; its workflow is told."""
    assert send(local, "/orders", BODY | {"fail_at": fail_at}).status_code == 201
    assert Order.objects.get().fail_at == fail_at
    assert Message.objects.get().payload["argument"]["fail_at"] == fail_at


@pytest.mark.parametrize("mode", ["open", "token", "off"])
def test_fail_at_elsewhere_is_refused(
    local: Client, employee: Program, settings: Any, unchanged: Unchanged, mode: str
) -> None:
    """O6: 400 in every other mode, from another machine, and through a proxy."""
    settings.EXPENSES_PROTOCOL_ACCESS = mode
    body = BODY | {"fail_at": "payment"}
    bearer = factories.bearer(employee.user)
    elsewhere: list[dict[str, Any]] = [
        {"REMOTE_ADDR": "192.0.2.1", "headers": bearer},
        {"headers": {**bearer, "X-Forwarded-For": "127.0.0.1"}},
    ]
    if mode != "open":
        elsewhere.append({"headers": bearer})
    with unchanged():
        for where in elsewhere:
            for place in PLACES if mode != "off" else [V1]:
                answer = local.post(f"{place}/orders", body, "application/json", **where)
                assert list(problem(answer, 400)["errors"]) == ["fail_at"]


# Access


ALL_PATHS = (
    *("GET /orders", "POST /orders", "GET /orders/{}", "GET /orders/{}/status"),
    *("GET /orders/{}/audit", "POST /orders/{}/approve", "POST /orders/{}/reject"),
    *("POST /orders/{}/cancel", "POST /orders/{}/retry", "POST /orders/{}/steps/check_inventory"),
    *("GET /inventory", "GET /warehouse", "GET /payments/TXN-1", "GET /engine/snapshot"),
)


def ask(client: Client, line: str, place: str, order: Order, **options: Any) -> Any:
    """Ask for it in this place; the steps are at the root alone."""
    method, path = line.format(order.pk).split(" ")
    path = place + path
    if place == V1:
        path = path.replace("/payments", "/charges")
    body = b"{}" if method == "POST" else b""
    return client.generic(method, path, body, "application/json", **options)


@pytest.mark.parametrize("line", ALL_PATHS)
def test_without_a_valid_token_nothing_is_served(
    local: Client, client: Client, settings: Any, unchanged: Unchanged, line: str
) -> None:
    """X8: without a valid token nobody reads or changes anything, except at the local installation
    from its own machine. In the mode `off` the root serves nobody."""
    order = factories.order(state=State.PENDING)
    with unchanged():
        for header in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic eA=="}):
            if "/steps/" not in line:
                answer = ask(local, line, V1, order, headers=header)
                problem(answer, 401)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            problem(ask(local, line, ROOT, order, headers=header, REMOTE_ADDR="192.0.2.1"), 401)
        problem(ask(local, line, ROOT, order, headers={"Authorization": "Bearer x"}), 401)
        settings.EXPENSES_PROTOCOL_ACCESS = "token"
        problem(ask(local, line, ROOT, order), 401)
        settings.EXPENSES_PROTOCOL_ACCESS = "off"
        root = factories.bearer(factories.user(is_superuser=True))
        problem(ask(client, line, ROOT, order, headers=root), 404)


@pytest.mark.parametrize("line", [line for line in ALL_PATHS if line.startswith("POST")])
def test_requests_of_other_sites_and_sessions_change_nothing(
    local: Client, settings: Any, unchanged: Unchanged, line: str
) -> None:
    """X8: at the root, what another site's page or a browser's session asks for changes nothing;
    under /api/v1/ a session takes a CSRF token."""
    order = factories.order(state=State.PENDING)
    with unchanged():
        for site in ("cross-site", "same-site"):
            problem(ask(local, line, ROOT, order, headers={"Sec-Fetch-Site": site}), 403)
        settings.EXPENSES_PROTOCOL_ACCESS = "token"
        browser = Client(enforce_csrf_checks=True)
        browser.force_login(factories.user(is_superuser=True))
        problem(ask(browser, line, ROOT, order), 401)
        problem(ask(browser, line, V1, order), 404 if "/steps/" in line else 403)
    assert browser.get(f"/orders/{order.pk}").status_code == 200


def test_session_with_csrf_token_decides(unchanged: Unchanged) -> None:
    """X8: under /api/v1/ a page decides with its CSRF token."""
    order = factories.order(state=State.PENDING)
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(factories.user(groups.APPROVER))
    browser.cookies["csrftoken"] = "a" * 32
    headers = {"X-CSRFToken": "a" * 32}
    assert send(browser, f"/api/v1/orders/{order.pk}/approve", **headers).status_code == 200


# Who sees what


SEES_ORDERS = [name for name in groups.NAMES if name != groups.EMPLOYEE]
SEES_STOCK = (groups.FINANCE, groups.AUDITOR, groups.OPERATOR)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("group", groups.NAMES)
def test_employee_sees_own_orders_and_no_stock(group: str, place: str) -> None:
    """X10: at the root and under /api/v1/ alike, an employee finds no order of another, and stock,
    charges and warehouse are for those whose work they are."""
    program = Program(group)
    own = factories.order("own", submitter=program.user)
    other = factories.order("other", State.COMPLETED)
    charge = Charge.objects.get().charge_id
    everything = (f"{place}/inventory", f"{CHARGES[place]}/{charge}", f"{place}/warehouse")
    seen = {"own", "other"} if group in SEES_ORDERS else {"own"}
    assert set(ids(program.get(f"{place}/orders"))) == seen
    for tail in ("", "/status", "/audit"):
        for ref in names(place, other):
            answer = program.get(f"{place}/orders/{ref}{tail}")
            assert answer.status_code == (200 if "other" in seen else 404)
        assert program.get(f"{place}/orders/{own.pk}{tail}").status_code == 200
    for path in everything:
        assert program.get(path).status_code == (200 if group in SEES_STOCK else 403)
    if place == V1:
        answer = program.get(CHARGES[V1])
        assert answer.status_code == (200 if group in SEES_STOCK else 403)


@pytest.mark.parametrize("group", groups.NAMES)
@pytest.mark.parametrize("verb", ["approve", "reject"])
@pytest.mark.parametrize("place", PLACES)
def test_only_approvers_decide(unchanged: Unchanged, place: str, verb: str, group: str) -> None:
    """X3, O10: approvers alone, on both routes; each refusal is audited with its route."""
    program = Program(group)
    order = factories.order(state=State.PENDING)
    path, reason = f"{place}/orders/{order.pk}/{verb}", {"reason": "as read"}
    route = "rest" if place else "protocol"
    if group != groups.APPROVER:
        with unchanged(refusals=1):
            problem(send(program, path, reason), 403)
        entry = AuditEntry.objects.latest("pk")
        assert (entry.by, entry.route, entry.subject_id) == (program.user, route, "ord-1")
        return
    answer = send(program, path, reason)
    approved = verb == "approve"
    assert (answer.status_code, answer.json()[STATE[place]]) == (
        200,
        "running" if approved else "cancelled",
    )
    if place == V1:
        assert answer.json()["decision"]["verdict"] == ("APPROVED" if approved else "REJECTED")
    else:
        assert answer.json()["approval_status"] == ("approved" if approved else "rejected")
    entry = Approval.objects.get().entry
    assert (entry.by, entry.route, entry.reason) == (program.user, route, "as read")
    message = Message.objects.get(key="order-decision:ord-1")
    assert message.payload["signal"] == f"{verb}_order"
    with unchanged():
        again = send(program, path, {"reason": "again"})
        assert (again.status_code, again.json()) == (200, answer.json())
        other = f"{place}/orders/{order.pk}/{'reject' if approved else 'approve'}"
        details = problem(send(program, other, reason), 409)
    assert details["detail"].endswith(f" by {program.user.username}.")


@pytest.mark.parametrize("place", PLACES)
def test_who_may_not_decide_learns_of_no_order(unchanged: Unchanged, place: str) -> None:
    """X10: the refusal is the same whether there is such an order or not."""
    program = Program(groups.EMPLOYEE)
    other = factories.order("other", State.PENDING)
    answers = []
    with unchanged(refusals=1):
        for ref in (other.pk, NO_ORDER):
            answer = send(program, f"{place}/orders/{ref}/approve")
            answers.append(problem(answer, 403))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("place", PLACES)
def test_deciding_an_own_order_is_refused(unchanged: Unchanged, place: str) -> None:
    """X3: superusers included."""
    root = Program(groups.APPROVER, is_superuser=True)
    order = factories.order(state=State.PENDING, submitter=root.user)
    for verb in ("approve", "reject"):
        with unchanged(refusals=1):
            details = problem(send(root, f"{place}/orders/{order.pk}/{verb}", {"reason": "r"}), 403)
        assert details["detail"] == "Nobody decides their own request; ask another approver."


@pytest.mark.parametrize("state", [state for state in State if state != State.PENDING])
def test_deciding_an_order_that_is_not_pending_is_a_conflict(
    approver: Program, unchanged: Unchanged, state: State
) -> None:
    """O3: an order that needs no decision, or was cancelled before one, is a conflict."""
    factories.order(state=state)
    with unchanged():
        for verb in ("approve", "reject"):
            answer = send(approver, f"/orders/order-ord-1/{verb}", {"reason": "r"})
            assert problem(answer, 409)["detail"].startswith("ord-1 waits for no decision: it is ")


@pytest.mark.django_db(transaction=True)
def test_one_of_concurrent_decisions_wins(approver: Program) -> None:
    """O3, X1: of concurrent approvals and rejections one verdict wins. Requests for that verdict
    succeed; the others are conflicts."""
    factories.order(state=State.PENDING)
    headers = factories.bearer(approver.user)

    def decide(verb: str) -> int:
        path = f"/orders/order-ord-1/{verb}"
        return send(Client(headers=headers), path, {"reason": "r"}).status_code

    calls = [lambda verb=verb: decide(verb) for verb in ("approve", "reject") * 3]
    statuses = at_once(calls)
    approved = Approval.objects.get().verdict == Verdict.APPROVED
    winners = statuses[0::2] if approved else statuses[1::2]
    losers = statuses[1::2] if approved else statuses[0::2]
    assert (winners, losers) == ([200] * 3, [409] * 3)
    assert Message.objects.filter(key="order-decision:ord-1").count() == 1


# Cancel and retry


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("state", "status"),
    [
        (State.PENDING, 200),
        (State.RUNNING, 202),
        (State.COMPENSATING, 409),
        (State.COMPLETED, 409),
        (State.CANCELLED, 200),
        (State.FAILED, 409),
    ],
)
def test_cancelling_undoes_or_ends_the_order(
    employee: Program,
    operator: Program,
    unchanged: Unchanged,
    place: str,
    state: State,
    status: int,
) -> None:
    """X5, O7: 202 while the order is undone, 200 once it is cancelled, 409 where it cannot be
    cancelled. Its submitter and operators may cancel it; a repeat changes nothing."""
    order = factories.order(state=state, submitter=employee.user)
    if status == 202:
        factories.carry(order, contracts.CHECK_INVENTORY)
    path = f"{place}/orders/{order.pk}/cancel"
    answer = send(employee, path, {"reason": "found it cheaper"})
    if status == 409:
        problem(answer, 409)
        return
    assert answer.status_code == status
    assert answer.json()[STATE[place]] == ("cancelled" if status == 200 else "compensating")
    if state != State.CANCELLED:
        assert answer.json()["failure_reason"] == "cancelled by emma: found it cheaper"
    with unchanged():
        for program in (employee, operator):
            again = send(program, path)
            assert (again.status_code, again.json()) == (status, answer.json())


@pytest.mark.parametrize("group", groups.NAMES)
def test_only_operators_cancel_and_retry_orders_of_others(unchanged: Unchanged, group: str) -> None:
    """X3, X10: on either route operators alone cancel and retry the orders of others. People who
    see the order are refused, and that is audited; others do not find it."""
    program = Program(group)
    refs = {
        "cancel": factories.order("ord-1", State.PENDING).pk,
        "retry": factories.order("ord-2", State.FAILED).pk,
    }
    for verb, pk in refs.items():
        for place in (V1, ROOT):
            path = f"{place}/orders/{pk}/{verb}"
            if group == groups.OPERATOR:
                assert send(program, path).status_code in (200, 202, 409)
            elif group not in SEES_ORDERS:
                with unchanged():
                    problem(send(program, path), 404)
            else:
                with unchanged(refusals=1):
                    problem(send(program, path), 403)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("state", State)
def test_only_a_failed_order_is_retried(
    operator: Program, unchanged: Unchanged, place: str, state: State
) -> None:
    """O5, O7: a failed order is carried out again; every other order is a conflict."""
    order = factories.order(state=state)
    path = f"{place}/orders/{order.pk}/retry"
    if state != State.FAILED:
        with unchanged():
            details = problem(send(operator, path), 409)
        assert details["detail"].startswith("Only a failed order is retried; ord-1 is ")
        return
    answer = send(operator, path)
    assert answer.status_code == 202
    assert (answer.json()[STATE[place]], answer.json()["attempt"]) == ("running", 2)
    entry = AuditEntry.objects.latest("pk")
    assert (entry.event, entry.by) == ("retried", operator.user)
    assert entry.route == ("rest" if place else "protocol")


# The list


def test_list_at_the_root_is_newest_first_and_filtered(operator: Program) -> None:
    """O7: newest first, by state, and page by page by the time of creation."""
    kinds = (State.RUNNING, State.FAILED, State.RUNNING, State.PENDING)
    for number, state in enumerate(kinds):
        factories.order(f"o{number}", state, now=factories.NOW + timedelta(microseconds=number))
    assert ids(operator.get("/orders")) == ["o3", "o2", "o1", "o0"]
    assert ids(operator.get("/orders", {"status": "running"})) == ["o2", "o0"]
    before = operator.get("/orders").json()[1]["created_at"]
    assert before == "2026-01-02T03:04:05.000002Z"
    assert ids(operator.get("/orders", {"before": before})) == ["o1", "o0"]
    assert ids(operator.get("/orders", {"before": before, "status": "running"})) == ["o0"]
    for odd in ("", "Running", "RUNNING", "nope", "\0", "\ufffd", "x" * 5000):
        details = problem(operator.get("/orders", {"status": odd}), 400)
        assert list(details["errors"]) == ["status"]


@pytest.mark.parametrize(
    "before",
    [
        *("", "x", "\0", "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-01-01T25:00:00Z"),
        *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "9" * 5000, "1e400"),
        "2026-01-02T03:04:05+99:99",
    ],
    ids=lambda before: ascii(before)[:30],
)
def test_invalid_time_in_before_is_refused(operator: Program, before: str) -> None:
    """O7: a `before` that is not a time is a fault of that parameter."""
    details = problem(operator.get("/orders", {"before": before}), 400)
    assert list(details["errors"]) == ["before"]


def test_pages_hold_each_order_once_and_filter(operator: Program) -> None:
    """E12, O7: under /api/v1/ the list has pages, newest first, by `state` and `order_id`."""
    kinds = (State.RUNNING, State.FAILED, State.RUNNING, State.PENDING)
    for number, state in enumerate(kinds):
        factories.order(f"o{number}", state, now=factories.NOW + timedelta(microseconds=number))
    first = operator.get("/api/v1/orders", {"page_size": "3"})
    assert ids(first) == ["o3", "o2", "o1"]
    assert ids(operator.get(first.json()["next"])) == ["o0"]
    assert operator.get(first.json()["next"]).json()["next"] is None
    assert ids(operator.get("/api/v1/orders", {"state": "running"})) == ["o2", "o0"]
    assert ids(operator.get("/api/v1/orders/", {"order_id": "o1"})) == ["o1"]
    for odd in ("", "nope", "\0", "x" * 5000):
        assert ids(operator.get("/api/v1/orders", {"state": odd})) == []
    problem(operator.get("/api/v1/orders", {"cursor": "cD0w"}), 404)


def test_pages_of_the_audit_trail_begin_with_the_oldest(operator: Program) -> None:
    """E12, X5: under /api/v1/."""
    factories.order("o", State.COMPLETED)
    first = operator.get("/api/v1/orders/o/audit", {"page_size": "1"}).json()
    second = operator.get(first["next"]).json()
    assert [one["event"] for one in (*first["results"], *second["results"])] == [
        "submitted",
        "completed",
    ]


def test_payments_of_orders_are_charges_under_v1(unchanged: Unchanged) -> None:
    """O7, E12: `/api/v1/payments/` is the ledger of expenses and has no charge."""
    root = Program(is_superuser=True)
    factories.order(state=State.COMPLETED)
    charge = Charge.objects.get().charge_id
    with unchanged():
        problem(root.get(f"/api/v1/payments/{charge}"), 404)
        assert root.get("/charges").status_code == 404
        assert [one["charge_id"] for one in root.get("/api/v1/charges").json()] == [charge]


# Prefer: wait (RFC 7240)


def after(seconds: float, change: Callable[[], object]) -> threading.Thread:
    """Make the change in another thread, while a request waits."""

    def run() -> None:
        try:
            change()
        finally:
            connections.close_all()

    timer = threading.Timer(seconds, run)
    timer.start()
    return timer


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("place", PLACES)
def test_request_that_waits_is_answered_when_the_order_ends(
    operator: Program, employee: Program, place: str
) -> None:
    """E12, O7: a cancellation that ends during the wait gets 200, and a reader sees the end."""
    order = factories.order(submitter=employee.user)
    factories.carry(order, contracts.CHECK_INVENTORY)
    wait = {"Prefer": "wait=30"}
    closing = after(0.3, lambda: factories.carry(order, contracts.CLOSE_ORDER))
    answer = send(employee, f"{place}/orders/{order.pk}/cancel", **wait)
    closing.join()
    assert (answer.status_code, answer.json()[STATE[place]]) == (200, "cancelled")
    second = factories.order("ord-2", state=State.COMPENSATING)
    ending = (*factories.UNDOES, contracts.CLOSE_ORDER)
    closing = after(0.3, lambda: factories.carry(second, *ending))
    seen = operator.get(f"{place}/orders/{second.pk}", headers=wait)
    closing.join()
    assert (seen.status_code, seen.json()[STATE[place]]) == (200, "failed")


@pytest.mark.parametrize("place", PLACES)
def test_request_that_waited_in_vain_gets_202(
    employee: Program, approver: Program, place: str
) -> None:
    """E12, O7: a submission or a decision whose order has not ended within the wait; the change is
    made. Without the header they get 201 and 200 at once."""
    wait = {"Prefer": "wait=1"}
    submitted = send(employee, f"{place}/orders", LARGE | {"order_id": "ord-1"}, **wait)
    assert submitted.status_code == 202
    order = Order.objects.get()
    assert order.state == State.PENDING
    path = f"{place}/orders/{order.pk}/approve"
    decided = send(approver, path, **wait)
    assert (decided.status_code, decided.json()[STATE[place]]) == (202, "running")
    assert send(approver, path).status_code == 200


def test_list_at_the_root_has_at_most_1000_orders(operator: Program) -> None:
    """O7: no more than 1,000 at once."""
    order = factories.order()
    lines = [
        Order(
            order_id=f"o{number}",
            workflow_id=f"w{number}",
            state=State.RUNNING,
            total=1,
            approval_seconds=1,
            created_at=order.created_at + timedelta(seconds=number),
        )
        for number in range(1, 1002)
    ]
    Order.objects.bulk_create(lines)
    listed = ids(operator.get("/orders"))
    assert (len(listed), listed[0], listed[-1]) == (1000, "o1001", "o2")


# The worker's steps


OWN = {"Idempotency-Key": "order-ord-1"}


@pytest.mark.parametrize("group", [name for name in groups.NAMES if name != groups.WORKER])
def test_only_the_worker_carries_out_steps(unchanged: Unchanged, group: str) -> None:
    """X8: the worker alone, though another names its workflow."""
    order = factories.order()
    path = f"/orders/{order.pk}/steps/check_inventory"
    with unchanged():
        problem(send(Program(group), path, {"attempt": 1}, **OWN), 403)


def test_steps_are_carried_out_for_the_own_workflow_only(
    worker: Program, unchanged: Unchanged
) -> None:
    """X7, O5: only for the order's own workflow; each step is answered, once done."""
    order = factories.order(workflow_id="wf ä/%")
    own = {"Idempotency-Key": contracts.idempotency_key("wf ä/%")}
    for ref in (str(order.pk), "wf%20%C3%A4%2F%25"):
        path = f"/orders/{ref}/steps/check_inventory"
        others = ({}, *({"Idempotency-Key": key} for key in ("wf", "order-ord-1", str(order.pk))))
        with unchanged():
            for headers in others:
                answer = send(worker, path, {"attempt": 1}, **headers)
                if "%2F" not in ref:
                    assert "another workflow" in problem(answer, 409)["detail"]
    path = f"/orders/{order.pk}/steps"
    for step in factories.STEPS:
        answer = send(worker, f"{path}/{step}", {"attempt": 1}, **own)
        assert answer.status_code == 200
        with unchanged():
            again = send(worker, f"{path}/{step}/", {"attempt": 1}, **own)
            assert again.json() == answer.json()
    answer = send(worker, f"{path}/complete_order", {"attempt": 1}, **own)
    assert answer.json()["state"] == "completed"
    entry = AuditEntry.objects.latest("pk")
    assert (entry.event, entry.by, entry.route) == ("completed", worker.user, "workflow")
    with unchanged():
        problem(send(worker, f"{path}/no_such_step", {"attempt": 1}, **own), 404)
        details = problem(send(worker, f"{path}/process_payment", {"attempt": 2}, **own), 409)
        assert details["detail"] == "ord-1 is completed in attempt 1."


@pytest.fixture
def own_order(worker: Program, history: History) -> str:
    """Path of the steps of a large order that the worker itself submitted, and that waits."""
    answer = send(worker, "/orders", LARGE | {"order_id": "ord-1"})
    assert answer.status_code == 201
    path = f"/orders/{Order.objects.get().pk}/steps"
    answer = send(worker, f"{path}/await_approval", {"attempt": 1}, **OWN)
    assert (answer.json()["state"], answer.json()["seconds_left"]) == ("pending", 300)
    return path


@pytest.mark.parametrize("verdict", ["APPROVED", "REJECTED", "EXPIRED", "WITHDRAWN", "", None, []])
def test_the_worker_decides_nothing(
    worker: Program, own_order: str, unchanged: Unchanged, verdict: Any
) -> None:
    """O3, X3: with the worker's token nobody decides an order or ends its window, not even for an
    own order, and whatever a step says."""
    body = {
        "attempt": 1,
        "verdict": verdict,
        "reason": "signed, the boss",
        "until": "2020-01-01T00:00:00Z",
        "actor": "anna",
        "identity": "anna",
        "seconds_left": 0,
        "expires_at": "2020-01-01T00:00:00Z",
    }
    with unchanged():
        for step in ("settle_approval", "await_approval", "settle_approval"):
            answer = send(worker, f"{own_order}/{step}", body, **OWN)
            assert answer.status_code == 200
            assert (answer.json()["state"], answer.json()["verdict"]) == ("pending", "")
            assert 295 <= answer.json()["seconds_left"] <= 300
        for step in (*factories.STEPS, "send_confirmation", *factories.UNDOES):
            problem(send(worker, f"{own_order}/{step}", body, **OWN), 409)


def test_key_of_another_workflow_decides_nothing(
    worker: Program, own_order: str, history: History, unchanged: Unchanged
) -> None:
    """O3, X7: a key that names another workflow decides nothing; nor does the right key find the
    signals to the run of another order."""
    other = factories.order("ord-2", State.PENDING)
    history.receive()
    history.memo = services.memo(other)
    body = {"attempt": 1, "verdict": "APPROVED"}
    with unchanged():
        for key in ("order-ord-2", "", "order-ord-1%00", "ORDER-ORD-1", "run-1"):
            answer = send(worker, f"{own_order}/settle_approval", body, **{"Idempotency-Key": key})
            problem(answer, 409)
        answer = send(worker, f"{own_order}/settle_approval", body, **OWN)
        assert answer.json()["state"] == "pending"


def test_worker_cancels_without_naming_a_person(worker: Program, own_order: str) -> None:
    """O5, X5: a cancellation in Temporal is recorded as such, by the worker; it names nobody."""
    body = {"attempt": 1, "cancelled": True, "reason": "cancelled by anna: changed my mind"}
    answer = send(worker, f"{own_order}/begin_compensation", body, **OWN)
    assert (answer.json()["state"], answer.json()["reason"]) == (
        "cancelled",
        "cancelled in Temporal",
    )
    entry = AuditEntry.objects.latest("pk")
    assert (entry.event, entry.by, entry.route) == ("cancelled", worker.user, "workflow")
    assert entry.reason == "cancelled in Temporal"
    assert Approval.objects.get().verdict == Verdict.VOID


def test_settling_while_temporal_is_silent_is_503(
    worker: Program, own_order: str, history: History, unchanged: Unchanged
) -> None:
    """O3: 503 with Retry-After, so that the worker asks again; nothing changes."""
    history.answers = False
    with unchanged():
        answer = send(worker, f"{own_order}/settle_approval", {"attempt": 1}, **OWN)
    assert "signals" in problem(answer, 503)["detail"]
    assert answer.headers["Retry-After"] == "2"


def test_step_that_another_system_declines_is_409(worker: Program, unchanged: Unchanged) -> None:
    """O5: 409 with the other system's words, by which the workflow fails the order."""
    order = factories.order()
    StockItem.objects.update(available=0)
    path = f"/orders/{order.pk}/steps/reserve_inventory"
    words = "Only 0 of SKU-001 are available; 1 were ordered."
    assert problem(send(worker, path, {"attempt": 1}, **OWN), 409)["detail"] == words
    with unchanged():
        assert problem(send(worker, path, {"attempt": 1}, **OWN), 409)["detail"] == words


class Broken(payment_provider.DatabasePayments):
    def charge(self, key: str, **how: Any) -> str:
        raise ConnectionResetError


def test_step_with_unknown_outcome_is_503(worker: Program, settings: Any) -> None:
    """O5, O9: 503, for the worker to ask again; nothing is recorded as done."""
    order = factories.order()
    settings.ORDERS_PAYMENTS = f"{__name__}.Broken"
    answer = send(worker, f"/orders/{order.pk}/steps/process_payment", {"attempt": 1}, **OWN)
    assert "ConnectionReset" not in problem(answer, 503)["detail"]
    assert answer.headers["Retry-After"] == "2"
    assert (order.steps.count(), Charge.objects.count()) == (0, 0)


@pytest.mark.parametrize(
    ("step", "body", "named"),
    [
        *(("check_inventory", {"attempt": one}, "attempt") for one in (None, 0, -1, "x", 1.5, [])),
        ("check_inventory", {}, "attempt"),
        *(
            ("begin_compensation", {"attempt": 1, "failed_step": one}, "failed_step")
            for one in ("approved by anna", "x" * 41, None, [])
        ),
        ("begin_compensation", {"attempt": 1, "cancelled": "x"}, "cancelled"),
        *(
            ("begin_compensation", {"attempt": 1, "reason": one}, "reason")
            for one in ([], "\0", "\ud800")
        ),
    ],
    ids=str,
)
def test_malformed_step_changes_nothing(
    worker: Program, unchanged: Unchanged, step: str, body: dict[str, Any], named: str
) -> None:
    """O5: what is wrong with a step's details is named; nothing is done."""
    order = factories.order(state=State.PENDING)
    with unchanged():
        answer = send(worker, f"/orders/{order.pk}/steps/{step}", body, **OWN)
        assert list(problem(answer, 400)["errors"]) == [named]


def test_step_of_a_later_attempt_changes_nothing(worker: Program, unchanged: Unchanged) -> None:
    """O5: no attempt but the order's own carries anything out, however it is numbered."""
    order = factories.order(state=State.FAILED)
    with unchanged():
        for step in (*factories.STEPS, *factories.UNDOES, "send_confirmation"):
            path = f"/orders/{order.pk}/steps/{step}"
            for attempt in (2, 2**31, 10**30):
                problem(send(worker, path, {"attempt": attempt}, **OWN), 409)


# The snapshot


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("place", PLACES)
def test_snapshot_equals_the_lists(operator: Program, place: str) -> None:
    """O7: orders, stock, charges and warehouse are the same as on their own paths."""
    factories.order("a", State.COMPLETED)
    factories.order("b", State.FAILED)
    snapshot = operator.get(f"{place}/engine/snapshot").json()
    assert list(snapshot) == ["orders", "inventory", "payments", "warehouse"]
    for name in ("inventory", "warehouse"):
        assert snapshot[name] == operator.get(f"{place}/{name}").json()
    listed = operator.get(f"{place}/orders").json()
    assert snapshot["orders"] == (listed["results"] if place == V1 else listed)
    if place == V1:
        assert snapshot["payments"] == operator.get(CHARGES[V1]).json()
    assert [one["status"] for one in snapshot["payments"]] == ["refunded", "charged"]
    for one in snapshot["payments"]:
        assert operator.get(f"{CHARGES[place]}/{one['charge_id']}").json() == one
    assert operator.get(f"{place}/engine/snapshot/").json() == snapshot
    problem(send(operator, f"{place}/engine/snapshot"), 405)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("group", groups.NAMES)
def test_snapshot_needs_every_view_permission(group: str) -> None:
    """X10: on either route, people who may see only a part of the snapshot are refused."""
    program = Program(group)
    for place in PLACES:
        answer = program.get(f"{place}/engine/snapshot")
        assert answer.status_code == (200 if group in SEES_STOCK else 403)


class Interrupted(inventory_provider.DatabaseInventory):
    """Stock after whose reading somebody carries out the next of these orders."""

    orders: ClassVar[list[Order]] = []

    def snapshot(self) -> list[dict[str, Any]]:
        read = super().snapshot()
        if self.orders:
            factories.carry(self.orders.pop(), *factories.STEPS, contracts.COMPLETE_ORDER)
        return read


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("count", [1, 2])
def test_snapshot_is_read_again_while_orders_change(
    operator: Program, settings: Any, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """O7: what changes while it is read is in none of its parts, or in all. No integration is
    asked within a transaction."""
    monkeypatch.setattr(Interrupted, "orders", [factories.order(f"o{n}") for n in range(count)])
    settings.ORDERS_INVENTORY = f"{__name__}.Interrupted"
    snapshot = operator.get("/engine/snapshot").json()
    assert {one["status"] for one in snapshot["orders"]} == {"completed"}
    stock = {one["product_id"]: one["available"] for one in snapshot["inventory"]}
    assert stock["SKU-001"] == 25 - count
    assert (len(snapshot["payments"]), len(snapshot["warehouse"])) == (count, 2 * count)


@pytest.mark.django_db(transaction=True)
def test_snapshot_is_read_three_times_at_most(
    operator: Program, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O7, X11: on a site where orders change all the time, too, it is answered."""
    orders = [factories.order(f"o{n}") for n in range(5)]
    monkeypatch.setattr(Interrupted, "orders", orders)
    settings.ORDERS_INVENTORY = f"{__name__}.Interrupted"
    assert operator.get("/engine/snapshot").status_code == 200
    assert len(orders) == 2


# Anything at all

odd_texts = st.text(max_size=5) | st.text(st.characters(), max_size=3)  # lone surrogates too
odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1.5, 2**31, 2**63, 10**30, -(10**4000), "2", "", "x" * 3000])
    | st.floats(allow_nan=False, allow_infinity=False)
    | odd_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3),
    max_leaves=6,
)
items = st.fixed_dictionaries(
    {"product_id": st.sampled_from(["SKU-001", "SKU-1001"]) | odd, "quantity": st.just(1) | odd}
)
optional = dict.fromkeys(
    ("customer_name", "customer_email", "shipping_address", "workflow_id", "fail_at"), odd
)
submissions = st.builds(
    lambda body, gone: {name: value for name, value in body.items() if name not in gone},
    st.fixed_dictionaries(
        {name: st.just(value) | odd for name, value in BODY.items()},
        optional=optional | {"lines": st.lists(items, max_size=3) | odd, "order_id": odd_texts},
    ),
    st.sets(st.sampled_from([*BODY, "lines"]), max_size=2),
)
bodies = st.one_of(
    submissions.map(json.dumps),
    odd.map(json.dumps),
    # Text that is almost JSON.
    st.builds(
        lambda text, at, piece: text[:at] + piece + text[at:],
        st.just(json.dumps(BODY)),
        st.integers(0, 60),
        st.sampled_from(["NaN", "Infinity", "\\ud800", '"', "}", "9" * 5000, "[" * 2000, "\0"]),
    ),
    st.binary(max_size=20),
)
refs = st.one_of(
    st.sampled_from(["order-ord-1", "{uuid}", NO_ORDER, "%2e%2e", "%00", "a%2Fb", "..%2f.."]),
    st.text(max_size=12).map(lambda text: quote(text, safe="/%", errors="replace")),
    st.binary(max_size=12).map(quote),
    st.uuids().map(str),
)
tails = st.sampled_from(
    ["", "/", "/status", "/audit", "/approve", "/reject", "/cancel", "/retry", "/steps/", "//"]
    + [f"/steps/{step}" for step in (*factories.STEPS, *factories.UNDOES, "settle_approval")]
)
generated = hypothesis_settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def raw(body: str | bytes) -> bytes:
    return body.encode(errors="surrogatepass") if isinstance(body, str) else body


@generated
@given(body=bodies)
def test_any_body_makes_an_order_or_changes_nothing(local: Client, body: str | bytes) -> None:
    """O7: any body makes an order, or the answer names the fault and nothing changes."""
    before = factories.records()
    answer = local.generic("POST", "/orders", raw(body), "application/json")
    if answer.status_code == 201:
        made = local.get(answer.headers["Location"]).json()
        assert made["workflow_id"] == answer.json()["workflow_id"]
    else:
        assert answer.status_code in (400, 409)
        problem(answer, answer.status_code)
        assert factories.records() == before


@generated
@given(
    place=st.sampled_from(PLACES),
    method=st.sampled_from(["GET", "POST", "POST", "PUT"]),
    ref=refs,
    tail=tails,
    body=st.one_of(
        st.just("{}"),
        bodies,
        st.builds(lambda reason: json.dumps({"reason": reason, "attempt": 1}), odd),
    ),
)
def test_any_refused_path_changes_nothing(
    history: History, place: str, method: str, ref: str, tail: str, body: str | bytes
) -> None:
    """O7: any request under any reference gets an answer; a refused one changes nothing."""
    root = Program(is_superuser=True)
    order = Order.objects.first() or factories.order(state=State.PENDING)
    before = factories.records()
    path = f"{place}/orders/{ref}{tail}".replace("{uuid}", str(order.pk))
    answer = root.generic(method, path, raw(body), "application/json", headers=OWN)
    assert answer.status_code in (200, 201, 202, 400, 404, 405, 409)
    if method == "GET" or answer.status_code >= 400:
        assert factories.records() == before
    if answer.status_code >= 400 and place == V1:
        problem(answer, answer.status_code)


def test_too_large_body_is_413(local: Client, unchanged: Unchanged) -> None:
    """O7: a body beyond what the site reads is 413, a problem, and does nothing."""
    with unchanged():
        details = problem(send(local, "/orders", b'{"customer_id": "' + b"x" * 3_000_000), 413)
    assert details["code"] == "too_large"
