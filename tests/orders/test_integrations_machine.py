"""The built-in integrations against a model of them: any sequence of steps, undoes and repeats."""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial

import pytest
from django.db.models import Sum
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from approvals import services as approvals
from approvals.models import Route
from orders import integrations, services
from orders.integrations import Declined, Item
from orders.models import Charge, Mail, Reservation, ReservedItem, StockItem, WarehouseRecord
from tests import factories
from tests.conftest import examples

# Pieces at the beginning: few, so that they run short.
PIECES = {"a": 4, "b": 2, "c": 7}

# Attempts of two orders.
keys = st.sampled_from(("1:1", "1:2", "2:1"))
baskets = st.dictionaries(st.sampled_from(sorted(PIECES)), st.integers(1, 4), min_size=1).flatmap(
    lambda basket: st.permutations([*basket.items()])
)
amounts = st.integers(1, 10**14 - 1).map(lambda cents: Decimal(cents) / 100)


@dataclass
class Entry:
    """What a key came to. One that was undone before it was done holds nothing."""

    state: str
    id: str = ""
    pieces: Counter[str] = field(default_factory=Counter)
    amount: Decimal = Decimal(0)


class Integrations(RuleBasedStateMachine):
    """Each rule makes one call and puts it to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.inventory, self.payments = integrations.inventory(), integrations.payments()
        self.warehouse, self.mailer = integrations.warehouse(), integrations.mailer()
        self.reservations: dict[str, Entry] = {}
        self.charges: dict[str, Entry] = {}
        self.records: dict[str, Entry] = {}
        self.mails: set[str] = set()
        self.initial = Counter(PIECES)
        # A transaction for each example, rolled back.
        self.case = TestCase()
        self.case.setup_example()
        for name, pieces in PIECES.items():
            StockItem.objects.create(
                product_id=name, name=name, unit_price=Decimal(1), available=pieces
            )

    def teardown(self) -> None:
        self.case.teardown_example(None)

    def pieces(self, *states: str) -> Counter[str]:
        held = (one.pieces for one in self.reservations.values() if one.state in states)
        return sum(held, Counter[str]())

    def available(self) -> Counter[str]:
        return self.initial - self.pieces("reserved", "fulfilled")

    # Inventory

    @rule(key=keys, basket=baskets)
    def reserve(self, key: str, basket: list[tuple[str, int]]) -> None:
        items, wanted = [Item(*one) for one in basket], Counter(dict(basket))
        known = self.reservations.get(key)
        if known is None and wanted <= self.available():
            reservation_id = self.inventory.reserve(key, items)
            self.reservations[key] = Entry("reserved", reservation_id, wanted)
        elif known is None or known.state == "released":
            with pytest.raises(Declined):
                self.inventory.reserve(key, items)
        else:
            assert self.inventory.reserve(key, items) == known.id

    @rule(key=keys)
    def release(self, key: str) -> None:
        self.inventory.release(key)
        if self.reservations.setdefault(key, Entry("released")).state == "reserved":
            self.reservations[key].state = "released"

    @rule(key=keys)
    def fulfil(self, key: str) -> None:
        self.inventory.fulfil(key)
        if key in self.reservations and self.reservations[key].state == "reserved":
            self.reservations[key].state = "fulfilled"

    @rule(basket=baskets)
    def check(self, basket: list[tuple[str, int]]) -> None:
        items = [Item(*one) for one in basket]
        if Counter(dict(basket)) <= self.available():
            self.inventory.check(items)
        else:
            with pytest.raises(Declined):
                self.inventory.check(items)

    @rule(name=st.sampled_from(sorted(PIECES)), by=st.integers(-3, 3))
    def adjust(self, name: str, by: int) -> None:
        item = StockItem.objects.get(product_id=name)
        adjust = partial(
            services.change_product,
            item,
            factories.act(route=Route.ADMIN),
            name=item.name,
            unit_price=item.unit_price,
            currency=item.currency,
            pieces=by,
        )
        if self.available()[name] + by < 0:
            with pytest.raises(approvals.WrongState):
                adjust()
        else:
            adjust()
            self.initial[name] += by

    # Payments

    @rule(key=keys, amount=amounts)
    def charge(self, key: str, amount: Decimal) -> None:
        known = self.charges.get(key)
        if known and known.state == "refunded":
            with pytest.raises(Declined):
                self.payments.charge(key, amount=amount, currency="USD", method="m")
            return
        charge_id = self.payments.charge(key, amount=amount, currency="USD", method="m")
        if known:
            assert charge_id == known.id
        else:
            self.charges[key] = Entry("charged", charge_id, amount=amount)

    @rule(key=keys)
    def refund(self, key: str) -> None:
        self.payments.refund(key)
        self.charges.setdefault(key, Entry("refunded")).state = "refunded"

    # Warehouse, mail

    @rule(key=keys, basket=baskets)
    def update(self, key: str, basket: list[tuple[str, int]]) -> None:
        items = [Item(*one) for one in basket]
        known = self.records.get(key)
        if known and known.state == "reverted":
            with pytest.raises(Declined):
                self.warehouse.update(key, order_id="o", items=items, address="")
            return
        delivery = self.warehouse.update(key, order_id="o", items=items, address="")
        if known:
            assert delivery.tracking_number == known.id
        else:
            pieces = Counter(dict(basket))
            self.records[key] = Entry("applied", delivery.tracking_number, pieces)

    @rule(key=keys)
    def revert(self, key: str) -> None:
        self.warehouse.revert(key)
        self.records.setdefault(key, Entry("reverted")).state = "reverted"

    @rule(key=keys)
    def mail(self, key: str) -> None:
        self.mailer.send(key, recipient="a@example.org", subject="s", body="b")
        self.mails.add(key)

    # What holds after each call

    @invariant()
    def no_piece_is_lost(self) -> None:
        """available + reserved + fulfilled is what there was, and the reserved pieces are those of
        the open reservations."""
        reserved, gone = self.pieces("reserved"), self.pieces("fulfilled")
        held = {
            state: Counter(
                dict(
                    ReservedItem.objects.filter(reservation__state=state)
                    .values_list("item__product_id")
                    .annotate(Sum("quantity"))
                )
            )
            for state in ("reserved", "fulfilled")
        }
        assert held == {"reserved": reserved, "fulfilled": gone}
        for row in self.inventory.snapshot():
            name = row["product_id"]
            assert row["reserved"] == reserved[name]
            assert row["available"] + row["reserved"] + gone[name] == self.initial[name]

    @invariant()
    def each_key_has_one_record(self) -> None:
        """By its state and, once it was done, its id."""
        stored = {
            "reservations": Reservation.objects.values_list("key", "state", "reservation_id"),
            "charges": Charge.objects.values_list("key", "state", "charge_id"),
            "records": WarehouseRecord.objects.values_list(
                "key", "state", "shipment__tracking_number"
            ),
        }
        for name, rows in stored.items():
            model: dict[str, Entry] = getattr(self, name)
            assert {key: state for key, state, _ in rows} == {
                key: one.state for key, one in model.items()
            }
            assert all(made == model[key].id for key, _, made in rows if model[key].id)
        assert {*Mail.objects.values_list("key", flat=True)} == self.mails

    @invariant()
    def what_is_seen(self) -> None:
        """The charges by which money was taken, and what was to be sent."""
        seen = [
            (one["charge_id"], one["status"], one["amount"]) for one in self.payments.snapshot()
        ]
        taken = [
            (one.id, one.state, f"{one.amount:.2f}") for one in self.charges.values() if one.id
        ]
        assert sorted(seen) == sorted(taken)
        assert all(self.payments.find(one.id) for one in self.charges.values() if one.id)
        rows = self.warehouse.snapshot()
        sent = [(row["tracking_number"], row["status"], row["quantity"]) for row in rows]
        assert sorted(sent) == sorted(
            (one.id, one.state, quantity)
            for one in self.records.values()
            for quantity in one.pieces.values()
        )


@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(600)
def test_any_sequence_of_calls() -> None:
    """O5, O9, X2: whatever is done, undone, fulfilled and repeated in whatever order, no piece and
    no money is lost or counted twice, what was undone is never done again, and ids stay."""
    run_state_machine_as_test(
        Integrations, settings=settings(max_examples=examples(30), stateful_step_count=20)
    )
