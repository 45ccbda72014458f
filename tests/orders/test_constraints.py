"""The rows of orders and of their integrations that the database refuses."""

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import QuerySet

from orders.models import (
    FINAL,
    UNDONE,
    Charge,
    Order,
    OrderStep,
    Reservation,
    ReservedItem,
    State,
    StockItem,
    WarehouseRecord,
)
from tests import factories

pytestmark = pytest.mark.django_db

KNOWN = "order_state_known"
# Of the triggers in expensesite.guards.
TIED = "An order waits with an undecided approval, and runs with an approved one"
REPLACED = "Only a void approval of an order is replaced"
ALL_STEPS = "order_completed_after_all_steps"
ENDS_AS = "order_ends_as_tied_to_state"
ENDED_AT = "order_ended_at_tied_to_state"
POSITIVE = "order_attempt_and_total_positive"
NOT_NULL = "NOT NULL|not-null"
UNIQUE = "UNIQUE|unique"
NOT_ENDED = [state for state in State if state not in FINAL]
CARRIED = (State.RUNNING, State.COMPENSATING, State.COMPLETED)


def refused(constraint: str, write: Callable[[], Any]) -> None:
    before = factories.records()
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        write()
        # Foreign keys are checked at the end of the transaction.
        connection.check_constraints()
    assert factories.records() == before


def copied(row: Any, **changes: Any) -> Callable[[], Any]:
    """Inserts the row once more, but for these changes."""
    values = {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}
    values.pop("id")
    return lambda: type(row)._base_manager.bulk_create([type(row)(**{**values, **changes})])


@pytest.mark.parametrize(
    ("before", "large", "change", "constraint"),
    [
        *((State.RUNNING, False, {"state": s}, "state") for s in ("paid", "", "RUNNING")),
        # Nothing goes on without the decision that it needs.
        (State.PENDING, True, {"state": State.RUNNING}, TIED),
        *((state, True, {"approval_id": None}, REPLACED) for state in CARRIED),
        (State.PENDING, True, {"approval_id": None}, KNOWN),
        (State.RUNNING, True, {"state": State.PENDING}, TIED),
        (State.RUNNING, False, {"state": State.PENDING}, KNOWN),
        # How it ends belongs to its state, and when it ended to its end.
        (State.RUNNING, False, {"state": State.COMPENSATING}, ENDS_AS),
        *((state, True, {"ends_as": "failed"}, ENDS_AS) for state in NOT_ENDED[:2]),
        (State.COMPLETED, False, {"ends_as": "cancelled"}, ENDS_AS),
        *((State.COMPENSATING, False, {"ends_as": one}, ENDS_AS) for one in ("", "completed")),
        (State.CANCELLED, False, {"ends_as": "failed"}, ENDS_AS),
        (State.FAILED, False, {"ends_as": "cancelled"}, ENDS_AS),
        *((one, False, {"state": State.RUNNING, "ended_at": None}, ENDS_AS) for one in UNDONE),
        *((state, False, {"ended_at": None}, ENDED_AT) for state in FINAL),
        *((state, True, {"ended_at": factories.NOW}, ENDED_AT) for state in NOT_ENDED),
        *((State.COMPLETED, False, {"steps_begun": begun}, ALL_STEPS) for begun in (0, 3, 5)),
        (State.COMPLETED, False, {"step_names": [*factories.STEPS, "another"]}, ALL_STEPS),
        *((State.RUNNING, False, {"total": total}, POSITIVE) for total in (0, Decimal("-0.01"))),
        (State.RUNNING, False, {"attempt": 0}, POSITIVE),
        (State.RUNNING, False, {"order_id": ""}, "order_id_not_empty"),
        (State.RUNNING, False, {"workflow_id": ""}, "order_id_not_empty"),
        *(
            (State.RUNNING, False, {name: None}, NOT_NULL)
            for name in ("state", "order_id", "workflow_id", "total", "currency", "customer_id")
        ),
    ],
    ids=str,
)
def test_database_refuses_impossible_orders(
    before: State, large: bool, change: dict[str, Any], constraint: str
) -> None:
    """O1, O4, O5: the state is tied to the decision, to how the order ends and to when it ended;
    a total and an attempt are positive; ids are not empty."""
    factories.order(state=before, large=large)
    refused(constraint, lambda: Order.objects.update(**change))


@pytest.mark.parametrize("shared", ["order_id", "workflow_id", "approval_id"])
def test_database_refuses_ids_shared_between_orders(shared: str) -> None:
    """O7, X1: two orders share neither an id, nor a workflow, nor an approval."""
    first = factories.order("a", large=True)
    factories.order("b", large=True)
    other = Order.objects.filter(order_id="b")
    refused(UNIQUE, lambda: other.update(**{shared: getattr(first, shared)}))


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ({"quantity": 0}, "order_line_positive"),
        ({"unit_price": Decimal("-0.01")}, "order_line_positive"),
        ({"product_id": "SKU-001"}, UNIQUE),
    ],
    ids=str,
)
def test_database_refuses_impossible_lines(change: dict[str, Any], constraint: str) -> None:
    """O1: a line is of one piece at least, at no negative price; a product has one line."""
    order = factories.order()
    refused(constraint, lambda: order.lines.filter(product_id="SKU-003").update(**change))


def test_database_refuses_a_second_record_of_a_step() -> None:
    """O5: what came of a step of an attempt is recorded once."""
    factories.order(state=State.COMPLETED)
    step = OrderStep.objects.first()
    refused(UNIQUE, copied(step, message="again"))
    copied(step, attempt=2)()


@pytest.mark.parametrize(
    ("model", "field", "constraint"),
    [
        (OrderStep, "status", "step_status_known"),
        (Reservation, "state", "reservation_state_known"),
        (WarehouseRecord, "state", "warehouse_record_state_known"),
    ],
)
def test_database_refuses_unknown_states(model: Any, field: str, constraint: str) -> None:
    """O5: a step came to one of three ends; what an integration holds is in a state of its own."""
    factories.order(state=State.COMPLETED)
    for value in ("", "done", "COMPLETED"):
        # Past the model, whose steps are append-only.
        rows = QuerySet(model)
        refused(constraint, partial(rows.update, **{field: value}))


@pytest.mark.parametrize("name", ["available", "reserved", "unit_price"])
def test_database_refuses_negative_stock(name: str) -> None:
    """O5: no product has less than nothing."""
    factories.stock()
    # Of the field itself or of the table: SQLite and PostgreSQL check a positive integer too.
    refused(f"stock_never_negative|{name}", lambda: StockItem.objects.update(**{name: -1}))


@pytest.mark.parametrize("field", ["key", "reservation_id"])
def test_database_refuses_a_shared_reservation(field: str) -> None:
    """O5: one reservation for a key, with an id of its own."""
    factories.order(state=State.COMPLETED)
    first = Reservation.objects.get()
    others = {"key": "k", "reservation_id": "RES-0"} | {field: getattr(first, field)}
    refused(UNIQUE, copied(first, **others))


def test_database_refuses_impossible_reserved_items() -> None:
    """O5: a reservation has a product once, and at least a piece of it."""
    factories.order(state=State.COMPLETED)
    refused("reserved_positive", lambda: ReservedItem.objects.update(quantity=0))
    refused(UNIQUE, copied(ReservedItem.objects.first()))


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ({"amount": 0}, "charge_takes_something"),
        ({"amount": -1}, "charge_takes_something"),
        ({"amount": -1, "state": "refunded"}, "charge_takes_something"),
        ({"state": "paid"}, "charge_takes_something"),
        ({"state": ""}, "charge_takes_something"),
    ],
    ids=str,
)
def test_database_refuses_impossible_charges(change: dict[str, Any], constraint: str) -> None:
    """X2: a charge takes money, or was refunded."""
    factories.order(state=State.COMPLETED)
    refused(constraint, lambda: Charge.objects.update(**change))


@pytest.mark.parametrize("field", ["key", "charge_id"])
def test_database_refuses_a_second_charge(field: str) -> None:
    """X2: one charge for a key, with an id of its own."""
    factories.order(state=State.COMPLETED)
    first = Charge.objects.get()
    others = {"key": "k", "charge_id": "TXN-0"} | {field: getattr(first, field)}
    refused(UNIQUE, copied(first, **others))


def test_database_refuses_a_second_delivery() -> None:
    """O2, O5: one record for a key, and one shipment of it, with a tracking number of its own."""
    factories.order(state=State.COMPLETED)
    record = WarehouseRecord.objects.get()
    refused(UNIQUE, copied(record))
    shipment = record.shipment
    refused(UNIQUE, copied(shipment, tracking_number="TRACK-0"))
    copied(record, key="k")()
    other = WarehouseRecord.objects.get(key="k")
    refused(UNIQUE, copied(shipment, record_id=other.pk))
