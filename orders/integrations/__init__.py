"""The other systems that orders use: inventory, payments, warehouse and mail (requirements O9).

Each is a small protocol. A setting names the implementation by its dotted path; the built-in
implementations keep their records in the database. An implementation promises:

- **Once for a key.** A repeated call with the same key changes nothing and returns the same.
- **An undo is final.** It also succeeds where its step never happened, and a step whose key was
  undone raises Declined, even when it arrives late.
- **Declined** is a business decision, and fails the order. After any other exception the outcome is
  unknown, so the call is repeated until the outcome is known.

The site never makes a call inside a transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Protocol, cast

from django.conf import settings
from django.utils.module_loading import import_string


class Declined(Exception):
    """The other system refuses. The text is a sentence for people."""


@dataclass(frozen=True)
class Item:
    product_id: str
    quantity: int


@dataclass(frozen=True)
class Product:
    """The name and the price of a product: `unit_price` in units of `currency` (ISO 4217)."""

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
        """Return the known ones of the products, by id."""

    def check(self, items: Sequence[Item]) -> None:
        """Raise Declined unless all pieces are available now."""

    def reserve(self, key: str, items: Sequence[Item]) -> str:
        """Reserve all pieces or none, and return the id of the reservation. Raises Declined."""

    def release(self, key: str) -> None:
        """Undo :meth:`reserve`: the pieces are available again."""

    def fulfil(self, key: str) -> None:
        """Take the reserved pieces out of the stock. Never undone, and never declined."""

    def snapshot(self) -> list[dict[str, Any]]:
        """Return `{"product_id", "name", "unit_price", "currency", "available", "reserved"}` for
        each product."""


class Payments(Protocol):
    def charge(self, key: str, *, amount: Decimal, currency: str, method: str) -> str:
        """Take the money, and return the id of the charge. Raises Declined."""

    def refund(self, key: str) -> None:
        """Undo :meth:`charge`, found by the key: return all of the money."""

    def find(self, charge_id: str) -> dict[str, Any] | None:
        """Return `{"charge_id", "amount", "currency", "payment_method", "idempotency_key",
        "status"}`; the status is "charged" or "refunded"."""

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the charges, newest first, each as :meth:`find` does."""


class Warehouse(Protocol):
    def update(self, key: str, *, order_id: str, items: Sequence[Item], address: str) -> Delivery:
        """Order the delivery of the pieces. Raises Declined."""

    def revert(self, key: str) -> None:
        """Undo :meth:`update`: call the delivery off."""

    def snapshot(self) -> list[dict[str, Any]]:
        """Return `{"order_id", "product_id", "quantity", "status", "tracking_number"}` for each
        product of a delivery, newest first; the status is "applied" or "reverted"."""


class Mailer(Protocol):
    def send(self, key: str, *, recipient: str, subject: str, body: str) -> None:
        """Send a message. Raises Declined."""


def inventory() -> Inventory:
    return cast(Inventory, _made_by("ORDERS_INVENTORY"))


def payments() -> Payments:
    return cast(Payments, _made_by("ORDERS_PAYMENTS"))


def warehouse() -> Warehouse:
    return cast(Warehouse, _made_by("ORDERS_WAREHOUSE"))


def mailer() -> Mailer:
    return cast(Mailer, _made_by("ORDERS_MAILER"))


def _made_by(setting: str) -> object:
    return import_string(getattr(settings, setting))()
