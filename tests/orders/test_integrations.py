"""The built-in integrations do their work once for a key, and an undo is permanent."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.utils import timezone

from orders import integrations
from orders.integrations import Declined, Item
from orders.integrations.inventory_provider import Product
from orders.integrations.warehouse_provider import Delivery
from orders.models import Charge, Mail, Reservation, StockItem, WarehouseRecord
from tests import factories
from tests.conftest import Unchanged, at_once

pytestmark = pytest.mark.django_db

LAMPS, CHAIRS, NOTEBOOKS = "SKU-001", "SKU-002", "SKU-003"
PRICE: dict[str, Any] = {"amount": Decimal("24.50"), "currency": "USD", "method": "tok_visa"}
SENT: dict[str, Any] = {"order_id": "ord-1", "items": [Item(LAMPS, 2)], "address": "1 Main St"}


@pytest.fixture(autouse=True)
def _stock(db: None) -> None:
    factories.stock()


def stock(product_id: str) -> tuple[int, int]:
    return StockItem.objects.values_list("available", "reserved").get(product_id=product_id)


def reserve(key: str, *items: Item) -> str:
    return integrations.inventory().reserve(key, items)


def charge(key: str, **changes: Any) -> str:
    return integrations.payments().charge(key, **(PRICE | changes))


def update(key: str, **changes: Any) -> Delivery:
    return integrations.warehouse().update(key, **(SENT | changes))


def answer(call: Callable[[], Any]) -> Any:
    """What it returns, or the text of its refusal."""
    try:
        return call()
    except Declined as refusal:
        return str(refusal)


# Inventory


def test_known_products_are_returned() -> None:
    """O1: what a product is called and costs; none for what there is not."""
    lamp = Product(LAMPS, "Desk lamp", Decimal("24.50"), "USD")
    assert integrations.inventory().products([LAMPS, "nope", LAMPS]) == {LAMPS: lamp}
    assert integrations.inventory().products([]) == {}


@pytest.mark.parametrize(
    ("items", "refusal"),
    [
        ([Item(LAMPS, 25), Item(CHAIRS, 10)], None),
        ([Item(LAMPS, 26)], "Only 25 of SKU-001 are available; 26 were ordered."),
        ([Item(LAMPS, 1), Item(CHAIRS, 11)], "Only 10 of SKU-002 are available; 11 were ordered."),
        ([Item(LAMPS, 1), Item("nope", 1)], "There is no product nope."),
    ],
    ids=str,
)
def test_missing_pieces_are_declined(
    unchanged: Unchanged, items: list[Item], refusal: str | None
) -> None:
    """O2, O9: all pieces or none; what is short is named with its numbers, by the check, which
    reserves nothing, and by the reservation."""
    inventory = integrations.inventory()
    with unchanged():
        assert answer(lambda: inventory.check(items)) == refusal
    if refusal:
        with unchanged():
            assert answer(lambda: inventory.reserve("k", items)) == refusal
    else:
        assert inventory.reserve("k", items).startswith("RES-")
        assert (stock(LAMPS), stock(CHAIRS)) == ((0, 25), (0, 10))
        with pytest.raises(Declined, match=r"^Only 0 of SKU-001 are available; 1 were ordered\.$"):
            inventory.check([Item(LAMPS, 1)])


def test_repeated_reservation_takes_pieces_once(unchanged: Unchanged) -> None:
    """O5: a repeat of a key returns the same and takes nothing, though it asks for other pieces;
    another key takes its own."""
    first = reserve("k", Item(LAMPS, 2), Item(CHAIRS, 1))
    with unchanged():
        assert reserve("k", Item(LAMPS, 2), Item(CHAIRS, 1)) == first
        assert reserve("k", Item(NOTEBOOKS, 50)) == first
    assert reserve("k2", Item(LAMPS, 3)) != first
    assert (stock(LAMPS), stock(CHAIRS), stock(NOTEBOOKS)) == ((20, 5), (9, 1), (50, 0))


def test_declined_reservation_succeeds_when_pieces_are_back() -> None:
    """O5: a refusal leaves no trace of its key; once there are pieces, it reserves them."""
    with pytest.raises(Declined):
        reserve("k", Item(LAMPS, 1), Item(CHAIRS, 11))
    StockItem.objects.filter(product_id=CHAIRS).update(available=11)
    assert reserve("k", Item(LAMPS, 1), Item(CHAIRS, 11)).startswith("RES-")
    assert (stock(LAMPS), stock(CHAIRS)) == ((24, 1), (0, 11))


def test_release_returns_the_pieces_once(unchanged: Unchanged) -> None:
    """O5: a release gives all pieces back, once, and is final."""
    reserve("k", Item(LAMPS, 2), Item(CHAIRS, 1))
    reserve("other", Item(LAMPS, 5))
    integrations.inventory().release("k")
    assert (stock(LAMPS), stock(CHAIRS)) == ((20, 5), (10, 0))
    with unchanged():
        integrations.inventory().release("k")
        integrations.inventory().fulfil("k")
        with pytest.raises(Declined, match=r"^The reservation was released\.$"):
            reserve("k", Item(LAMPS, 2))


def test_reservation_after_its_release_is_declined(unchanged: Unchanged) -> None:
    """O5: the undo succeeds where its step never happened, and the step that arrives late is
    refused."""
    before = stock(LAMPS)
    integrations.inventory().release("k")
    assert stock(LAMPS) == before
    with unchanged():
        with pytest.raises(Declined):
            reserve("k", Item(LAMPS, 2))
        integrations.inventory().release("k")


def test_fulfilled_pieces_leave_the_stock(unchanged: Unchanged) -> None:
    """O5: pieces that left are neither reserved nor available, and never come back; a repeat of
    any call changes nothing."""
    first = reserve("k", Item(LAMPS, 2), Item(CHAIRS, 1))
    integrations.inventory().fulfil("k")
    assert (stock(LAMPS), stock(CHAIRS)) == ((23, 0), (9, 0))
    with unchanged():
        integrations.inventory().fulfil("k")
        integrations.inventory().release("k")
        assert reserve("k", Item(LAMPS, 2)) == first
        integrations.inventory().fulfil("never reserved")


def test_snapshot_lists_available_and_reserved_pieces() -> None:
    """O7: each product with what is available and reserved."""
    reserve("k", Item(CHAIRS, 3))
    snapshot = integrations.inventory().snapshot()
    ids = [row["product_id"] for row in snapshot]
    assert ids == sorted(StockItem.objects.values_list("product_id", flat=True))
    assert snapshot[ids.index(CHAIRS)] == {
        "product_id": CHAIRS,
        "name": "Office chair",
        "unit_price": "699.00",
        "currency": "USD",
        "available": 7,
        "reserved": 3,
    }


# Payments


def test_repeated_charge_takes_money_once(unchanged: Unchanged) -> None:
    """O5: a key is charged once, whatever a repeat asks for; another key is another charge."""
    first = charge("k")
    assert first.startswith("TXN-")
    with unchanged():
        assert charge("k") == charge("k", amount=Decimal(99)) == first
    assert charge("k2") != first
    assert integrations.payments().find(first) == {
        "charge_id": first,
        "amount": "24.50",
        "currency": "USD",
        "payment_method": "tok_visa",
        "idempotency_key": "k",
        "status": "charged",
    }


def test_refund_changes_the_charge_once(unchanged: Unchanged) -> None:
    """O5: the money goes back in full, once, and the key is never charged again."""
    payments, charge_id = integrations.payments(), charge("k")
    charge("other")
    payments.refund("k")
    assert [(row["idempotency_key"], row["status"]) for row in payments.snapshot()] == [
        ("other", "charged"),
        ("k", "refunded"),
    ]
    found = payments.find(charge_id)
    assert found is not None
    assert (found["status"], found["amount"]) == ("refunded", "24.50")
    with unchanged():
        payments.refund("k")
        with pytest.raises(Declined, match=r"^The payment was refunded\.$"):
            charge("k")


def test_charge_after_its_refund_is_declined(unchanged: Unchanged) -> None:
    """O5: no money was taken and none will be; no charge is shown."""
    payments = integrations.payments()
    payments.refund("k")
    with unchanged():
        with pytest.raises(Declined):
            charge("k")
        payments.refund("k")
    assert payments.snapshot() == []
    assert payments.find(Charge.objects.get().charge_id) is None
    assert payments.find("nope") is None


# Warehouse


def test_repeated_delivery_is_sent_once(unchanged: Unchanged) -> None:
    """O2, O5: a key is sent once, with one tracking number, three days from now."""
    first = update("k")
    assert first.tracking_number.startswith("TRACK-")
    days = first.estimated_delivery - timezone.now().date()
    assert timedelta(2) <= days <= timedelta(3)
    with unchanged():
        assert update("k") == update("k", items=[Item(CHAIRS, 9)]) == first
    assert update("k2").tracking_number != first.tracking_number
    assert integrations.warehouse().snapshot()[1] == {
        "order_id": "ord-1",
        "product_id": LAMPS,
        "quantity": 2,
        "status": "applied",
        "tracking_number": first.tracking_number,
    }


def test_reverted_delivery_is_not_sent(unchanged: Unchanged) -> None:
    """O5: a reverted delivery is never sent; it stays visible, product by product."""
    warehouse = integrations.warehouse()
    sent = update("k", items=[Item(LAMPS, 2), Item(CHAIRS, 1)])
    warehouse.revert("k")
    with unchanged():
        warehouse.revert("k")
        with pytest.raises(Declined, match=r"^The delivery was called off\.$"):
            update("k")
    rows = [(row["product_id"], row["quantity"], row["status"]) for row in warehouse.snapshot()]
    assert rows == [(LAMPS, 2, "reverted"), (CHAIRS, 1, "reverted")]
    assert {row["tracking_number"] for row in warehouse.snapshot()} == {sent.tracking_number}


def test_delivery_after_its_revert_is_declined(unchanged: Unchanged) -> None:
    """O5: nothing was sent and nothing will be; no record is shown."""
    warehouse = integrations.warehouse()
    warehouse.revert("k")
    with unchanged():
        with pytest.raises(Declined):
            update("k")
        warehouse.revert("k")
    assert warehouse.snapshot() == []


# Mail


def test_repeated_mail_is_stored_once() -> None:
    """O2: a key is written to once."""
    for subject in ("Your order", "Again"):
        integrations.mailer().send("k", recipient="a@example.org", subject=subject, body="b")
    assert [(mail.key, mail.subject) for mail in Mail.objects.all()] == [("k", "Your order")]


# At once. Each race is run several times: its winner is left to chance.

RACES = 5


@pytest.mark.django_db(transaction=True)
def test_concurrent_repeats_have_one_effect() -> None:
    """O5: a key that is asked for at the same time, several times, is served once."""
    for race in range(RACES):
        key = f"k{race}"
        for call in (partial(reserve, key, Item(LAMPS, 2)), partial(charge, key)):
            assert len(set(at_once([call] * 4))) == 1
        assert len({one.tracking_number for one in at_once([partial(update, key)] * 4)}) == 1
    assert stock(LAMPS) == (25 - 2 * RACES, 2 * RACES)
    for model in (Reservation, Charge, WarehouseRecord):
        assert model.objects.count() == RACES


@pytest.mark.django_db(transaction=True)
def test_concurrent_repeats_of_a_declined_reservation_take_nothing(unchanged: Unchanged) -> None:
    """O5: of a key whose pieces are short, every repeat is refused and none leaves a trace."""
    short = partial(answer, partial(reserve, "k", Item(LAMPS, 1), Item(CHAIRS, 11)))
    with unchanged():
        assert set(at_once([short] * 4)) == {"Only 10 of SKU-002 are available; 11 were ordered."}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("before", [False, True], ids=["at the same time", "after the step"])
def test_concurrent_undos_have_one_effect(before: bool) -> None:
    """O5: a step and its undo at the same time, in whatever order: undone in the end."""
    inventory, payments = integrations.inventory(), integrations.payments()
    warehouse = integrations.warehouse()
    for race in range(RACES):
        key = f"k{race}"
        for step, undo in (
            (partial(reserve, key, Item(LAMPS, 2), Item(CHAIRS, 1)), inventory.release),
            (partial(charge, key), payments.refund),
            (partial(update, key), warehouse.revert),
        ):
            if before:
                step()
            at_once([partial(answer, step), partial(undo, key)] * 2)
            with pytest.raises(Declined):
                step()
    assert (stock(LAMPS), stock(CHAIRS)) == ((25, 0), (10, 0))
    assert {one.state for one in Reservation.objects.all()} == {"released"}
    assert {one.state for one in Charge.objects.all()} == {"refunded"}
    assert {one.state for one in WarehouseRecord.objects.all()} == {"reverted"}


@pytest.mark.django_db(transaction=True)
def test_reservation_is_released_or_fulfilled_never_both() -> None:
    """O5: of a release and a fulfilment at the same time, one comes about."""
    inventory = integrations.inventory()
    gone = 0
    for race in range(RACES):
        key = f"k{race}"
        reserve(key, Item(LAMPS, 2), Item(CHAIRS, 1))
        at_once([partial(inventory.release, key), partial(inventory.fulfil, key)] * 2)
        gone += Reservation.objects.get(key=key).state == "fulfilled"
    assert (stock(LAMPS), stock(CHAIRS)) == ((25 - 2 * gone, 0), (10 - gone, 0))


@pytest.mark.django_db(transaction=True)
def test_concurrent_orders_of_the_same_products_do_not_deadlock() -> None:
    """O5: concurrent orders of the same products, in any sequence, do not deadlock. The pieces
    suffice for each order that gets all of its pieces."""
    ten = [Item(CHAIRS, 2), Item(LAMPS, 1), Item(NOTEBOOKS, 3)]
    for race in range(RACES):
        calls: list[Callable[[], Any]] = [
            partial(answer, partial(reserve, f"{race}-{n}", *(ten if n % 2 else ten[::-1])))
            for n in range(8)
        ]
        answers = at_once(calls)
        assert sum(one.startswith("RES-") for one in answers) == 5
        assert set(answers) >= {"Only 0 of SKU-002 are available; 2 were ordered."}
        assert (stock(CHAIRS), stock(LAMPS), stock(NOTEBOOKS)) == ((0, 10), (20, 5), (35, 15))
        at_once([partial(integrations.inventory().release, f"{race}-{n}") for n in range(8)])
        assert (stock(CHAIRS), stock(LAMPS), stock(NOTEBOOKS)) == ((10, 0), (25, 0), (50, 0))


@pytest.mark.django_db(transaction=True)
def test_reserving_beside_releasing_keeps_every_piece() -> None:
    """O5: a release and a reservation of the same products, in another sequence, do not
    deadlock."""
    items = [Item(CHAIRS, 1), Item(LAMPS, 1)]
    reserve("0", *items)
    for turn in range(RACES):
        released = partial(integrations.inventory().release, str(turn))
        reserved = [
            partial(reserve, str(turn + 1), *items[::-1]),
            partial(reserve, f"kept-{turn}", *items),
        ]
        at_once([released, *reserved])
    assert (stock(CHAIRS), stock(LAMPS)) == ((9 - RACES, 1 + RACES), (24 - RACES, 1 + RACES))
