"""What orders need of other systems: inventory, payments, the warehouse and mail (requirements O9).

Each is a small protocol, whose implementation a setting names by its dotted path; the built-in ones
keep their records in the database. An implementation promises:

- **Once for a key.** A repeated call with the same key does nothing twice and returns the same.
- **An undo is final.** It succeeds also where its step never happened, and a step whose key was
  undone raises Declined, even when it arrives late.
- **Declined** is the answer of the business: it fails the order. Any other exception means that the
  outcome is not known; the call is made again until it is.

No call is made inside a transaction of the site.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Protocol, cast

from django.conf import settings
from django.utils.module_loading import import_string


class Declined(Exception):
    """The other system says no. The text is a sentence for people."""


@dataclass(frozen=True)
class Item:
    product_id: str
    quantity: int


@dataclass(frozen=True)
class Product:
    """What a product is called and costs: `unit_price` in units of `currency` (ISO 4217)."""

    product_id: str
    name: str
    unit_price: Decimal
    currency: str


@dataclass(frozen=True)
class Delivery:
    tracking_number: str
    estimated_delivery: date


class Inventory(Protocol):
    def products(self, product_ids: Sequence[str]) -> dict[str, Product]:
        """Those of the products that there are, by id."""

    def check(self, items: Sequence[Item]) -> None:
        """Raises Declined where not all pieces are available now."""

    def reserve(self, key: str, items: Sequence[Item]) -> str:
        """Reserve all pieces or none; the id of the reservation. Raises Declined."""

    def release(self, key: str) -> None:
        """Undo :meth:`reserve`: the pieces are available again."""

    def fulfil(self, key: str) -> None:
        """The reserved pieces have left for good. Never undone, and never refused."""

    def snapshot(self) -> list[dict[str, Any]]:
        """`{"product_id", "name", "unit_price", "currency", "available", "reserved"}`, each."""


class Payments(Protocol):
    def charge(self, key: str, *, amount: Decimal, currency: str, method: str) -> str:
        """Take the money; the id of the charge. Raises Declined."""

    def refund(self, key: str) -> None:
        """Undo :meth:`charge`, found by the key alone: the money goes back in full."""

    def find(self, charge_id: str) -> dict[str, Any] | None:
        """`{"charge_id", "amount", "currency", "payment_method", "idempotency_key", "status"}`,
        the status "charged" or "refunded"."""

    def snapshot(self) -> list[dict[str, Any]]:
        """The charges, newest first, as :meth:`find`."""


class Warehouse(Protocol):
    def update(self, key: str, *, order_id: str, items: Sequence[Item], address: str) -> Delivery:
        """Have the pieces sent. Raises Declined."""

    def revert(self, key: str) -> None:
        """Undo :meth:`update`: nothing is sent."""

    def snapshot(self) -> list[dict[str, Any]]:
        """`{"order_id", "product_id", "quantity", "status", "tracking_number"}` for each product
        that was to be sent, newest first; the status "applied" or "reverted"."""


class Mailer(Protocol):
    def send(self, key: str, *, recipient: str, subject: str, body: str) -> None:
        """Send a message. Raises Declined."""


def inventory() -> Inventory:
    return cast(Inventory, _of("ORDERS_INVENTORY"))


def payments() -> Payments:
    return cast(Payments, _of("ORDERS_PAYMENTS"))


def warehouse() -> Warehouse:
    return cast(Warehouse, _of("ORDERS_WAREHOUSE"))


def mailer() -> Mailer:
    return cast(Mailer, _of("ORDERS_MAILER"))


def _of(setting: str) -> object:
    return import_string(getattr(settings, setting))()
