"""The other systems that orders use: inventory, payments, warehouse and mail (requirements O9).

Each has a module with its protocol and the built-in implementation, which keeps its records in the
database. A setting names the implementation by its dotted path. An implementation promises:

- **Once for a key.** A repeated call with the same key changes nothing and returns the same.
- **An undo is final.** It also succeeds where its step never happened, and a step whose key was
  undone raises Declined, even when it arrives late.
- **Declined** is a business decision, and fails the order. After any other exception the outcome is
  unknown, so the call is repeated until the outcome is known.

The site never makes a call inside a transaction.
"""

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from django.conf import settings
from django.utils.module_loading import import_string

if TYPE_CHECKING:
    from orders.integrations.inventory_provider import Inventory
    from orders.integrations.mail_provider import Mailer
    from orders.integrations.payment_provider import Payments
    from orders.integrations.warehouse_provider import Warehouse

# The number of rows in a snapshot.
NEWEST: Final = 1000


class Declined(Exception):
    """The other system refuses. The text is a sentence for people."""


@dataclass(frozen=True)
class Item:
    product_id: str
    quantity: int


def inventory() -> "Inventory":
    return cast("Inventory", _made_by("ORDERS_INVENTORY"))


def payments() -> "Payments":
    return cast("Payments", _made_by("ORDERS_PAYMENTS"))


def warehouse() -> "Warehouse":
    return cast("Warehouse", _made_by("ORDERS_WAREHOUSE"))


def mailer() -> "Mailer":
    return cast("Mailer", _made_by("ORDERS_MAILER"))


def _made_by(setting: str) -> object:
    return import_string(getattr(settings, setting))()


# For the built-in integrations. They call no other system and know orders only by their keys.


def stored_once(model: Any, key: str, **fields: Any) -> tuple[Any, bool]:
    """Return the row with this key, and whether this call inserted it."""
    row, made = model.objects.get_or_create(key=key, defaults=fields)
    return row, made


def new_id(prefix: str, size: int) -> str:
    """Return an id of `size` random bytes, in hexadecimal."""
    return f"{prefix}-{secrets.token_hex(size).upper()}"
