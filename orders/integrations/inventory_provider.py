"""The inventory: the protocol, and the built-in one, which counts in the site's database."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from django.db import transaction
from django.db.models import F

from orders.integrations import Declined, Item, new_id, stored_once
from orders.models import Reservation, ReservedItem, StockItem


@dataclass(frozen=True)
class Product:
    """The name and the price of a product: `unit_price` in units of `currency` (ISO 4217)."""

    product_id: str
    name: str
    unit_price: Decimal
    currency: str


class Inventory(Protocol):
    def products(self, product_ids: Sequence[str]) -> dict[str, Product]:
        """Return the products that exist, by id."""

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


class DatabaseInventory:
    """The pieces are counted in StockItem. A reservation moves them from available to reserved."""

    def products(self, product_ids: Sequence[str]) -> dict[str, Product]:
        items = StockItem.objects.filter(product_id__in=product_ids)
        return {
            item.product_id: Product(item.product_id, item.name, item.unit_price, item.currency)
            for item in items
        }

    def check(self, items: Sequence[Item]) -> None:
        available = dict(
            StockItem.objects.filter(
                product_id__in=[item.product_id for item in items]
            ).values_list("product_id", "available")
        )
        for item in items:
            if available.get(item.product_id, 0) < item.quantity:
                raise _short(item, available.get(item.product_id))

    def reserve(self, key: str, items: Sequence[Item]) -> str:
        with transaction.atomic():
            reservation, made = stored_once(
                Reservation, key, reservation_id=new_id("RES", 6), state=Reservation.State.RESERVED
            )
            if made:
                self._take(reservation, items)
        if reservation.state == Reservation.State.RELEASED:
            raise Declined("The reservation was released.")
        return str(reservation.reservation_id)

    def _take(self, reservation: Reservation, items: Sequence[Item]) -> None:
        # Sorted, so that two orders of the same products cannot deadlock.
        for item in sorted(items, key=lambda item: item.product_id):
            stock = StockItem.objects.filter(product_id=item.product_id)
            if not stock.filter(available__gte=item.quantity).update(
                available=F("available") - item.quantity, reserved=F("reserved") + item.quantity
            ):
                raise _short(item, stock.values_list("available", flat=True).first())
            ReservedItem.objects.create(
                reservation=reservation, item=stock.get(), quantity=item.quantity
            )

    def release(self, key: str) -> None:
        with transaction.atomic():
            reservation, made = stored_once(
                Reservation, key, reservation_id=new_id("RES", 6), state=Reservation.State.RELEASED
            )
            if made or not self._leave(reservation, Reservation.State.RELEASED):
                return
            for item in reservation.items.order_by("item__product_id"):
                StockItem.objects.filter(pk=item.item_id).update(
                    available=F("available") + item.quantity, reserved=F("reserved") - item.quantity
                )

    def fulfil(self, key: str) -> None:
        with transaction.atomic():
            reservation = Reservation.objects.filter(key=key).first()
            if reservation and self._leave(reservation, Reservation.State.FULFILLED):
                for item in reservation.items.order_by("item__product_id"):
                    StockItem.objects.filter(pk=item.item_id).update(
                        reserved=F("reserved") - item.quantity
                    )

    def _leave(self, reservation: Reservation, state: Reservation.State) -> bool:
        return bool(
            Reservation.objects.filter(pk=reservation.pk, state=Reservation.State.RESERVED).update(
                state=state
            )
        )

    def snapshot(self) -> list[dict[str, Any]]:
        return [
            {
                "product_id": item.product_id,
                "name": item.name,
                "unit_price": str(item.unit_price),
                "currency": item.currency,
                "available": item.available,
                "reserved": item.reserved,
            }
            for item in StockItem.objects.order_by("product_id")
        ]


def _short(item: Item, available: int | None) -> Declined:
    if available is None:
        return Declined(f"There is no product {item.product_id}.")
    return Declined(
        f"Only {available} of {item.product_id} are available; {item.quantity} were ordered."
    )
