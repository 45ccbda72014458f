"""The built-in integrations, as other systems are: they fail before a call takes effect or after
it, they do not answer for long, they refuse.

`settings.ORDERS_INVENTORY = "tests.orders.integrations.Inventory"` and so on; FAULTS says what
happens.
"""

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Final, Literal

from orders.integrations import (
    Declined,
    Item,
    inventory_provider,
    mail_provider,
    payment_provider,
    warehouse_provider,
)
from orders.integrations.warehouse_provider import Delivery

Call = Literal[
    "check", "reserve", "release", "fulfil", "charge", "refund", "update", "revert", "send"
]
When = Literal["before", "after"]
LONGEST_HANG: Final = timedelta(seconds=60)


class NoAnswer(Exception):
    """The connection to the other system broke."""


@dataclass(frozen=True)
class Fault:
    """What happens before a call takes effect, or after."""

    when: When
    error: Exception | None = None

    def strike(self) -> None:
        if self.error is not None:
            raise self.error


@dataclass(frozen=True)
class Hang(Fault):
    """The call stands still until it is released."""

    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def strike(self) -> None:
        self.reached.set()
        assert self.released.wait(LONGEST_HANG.total_seconds()), "nobody released it"


def lost(when: When) -> Fault:
    return Fault(when, NoAnswer(f"the connection broke {when} the effect"))


def refused(text: str) -> Fault:
    return Fault("before", Declined(text))


class Faults:
    """The faults of each call, in the order in which they strike, once each; and the calls made.

    A call is known by its key, `check`, which has none, by the first product.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Call, str]] = []
        self.under_way = 0
        self._planned: defaultdict[tuple[Call, str], list[Fault]] = defaultdict(list)
        self._hangs: list[Hang] = []
        self._lock = threading.Lock()

    def plan(self, call: Call, key: str, *faults: Fault) -> None:
        self._planned[call, key].extend(faults)

    def hang(self, call: Call, key: str, when: When) -> Hang:
        """The next call of this kind hangs."""
        hang = Hang(when)
        self._hangs.append(hang)
        self.plan(call, key, hang)
        return hang

    def calls_of(self, key: str) -> list[Call]:
        return [call for call, of in self.calls if of == key]

    def all_struck(self) -> bool:
        return not any(self._planned.values())

    def reset(self) -> None:
        for hang in self._hangs:
            hang.released.set()
        self.__init__()  # type: ignore[misc]

    @contextlib.contextmanager
    def around(self, call: Call, key: str) -> Iterator[None]:
        with self._lock:
            self.calls.append((call, key))
            planned = self._planned[call, key]
            fault = planned.pop(0) if planned else None
            self.under_way += 1
        try:
            if fault and fault.when == "before":
                fault.strike()
            yield
            if fault and fault.when == "after":
                fault.strike()
        finally:
            with self._lock:
                self.under_way -= 1


FAULTS: Final = Faults()


class Inventory(inventory_provider.DatabaseInventory):
    def check(self, items: Sequence[Item]) -> None:
        with FAULTS.around("check", items[0].product_id):
            super().check(items)

    def reserve(self, key: str, items: Sequence[Item]) -> str:
        with FAULTS.around("reserve", key):
            return super().reserve(key, items)

    def release(self, key: str) -> None:
        with FAULTS.around("release", key):
            super().release(key)

    def fulfil(self, key: str) -> None:
        with FAULTS.around("fulfil", key):
            super().fulfil(key)


class Payments(payment_provider.DatabasePayments):
    def charge(self, key: str, *, amount: Decimal, currency: str, method: str) -> str:
        with FAULTS.around("charge", key):
            return super().charge(key, amount=amount, currency=currency, method=method)

    def refund(self, key: str) -> None:
        with FAULTS.around("refund", key):
            super().refund(key)


class Warehouse(warehouse_provider.DatabaseWarehouse):
    def update(self, key: str, *, order_id: str, items: Sequence[Item], address: str) -> Delivery:
        with FAULTS.around("update", key):
            return super().update(key, order_id=order_id, items=items, address=address)

    def revert(self, key: str) -> None:
        with FAULTS.around("revert", key):
            super().revert(key)


class Mailer(mail_provider.DatabaseMailer):
    def send(self, key: str, *, recipient: str, subject: str, body: str) -> None:
        with FAULTS.around("send", key):
            super().send(key, recipient=recipient, subject=subject, body=body)
