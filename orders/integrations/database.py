"""The built-in integrations, which keep their records in the site's database.

They call no other system and know orders only by their keys. Each change is one transaction that
begins with a compare-and-set on the state.
"""

import secrets
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from orders.integrations import Declined, Delivery, Item, Product
from orders.models import (
    Charge,
    Mail,
    Reservation,
    ReservedItem,
    Shipment,
    StockItem,
    WarehouseRecord,
)

DELIVERY_TIME: Final = timedelta(days=3)
# The number of rows in a snapshot.
NEWEST: Final = 1000


class Inventory:
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
            reservation, made = _once(
                Reservation, key, reservation_id=_id("RES", 6), state=Reservation.State.RESERVED
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
            reservation, made = _once(
                Reservation, key, reservation_id=_id("RES", 6), state=Reservation.State.RELEASED
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


class Payments:
    """A charge is a row; a refund changes its state."""

    def charge(self, key: str, *, amount: Decimal, currency: str, method: str) -> str:
        charge, _ = _once(
            Charge,
            key,
            charge_id=_id("TXN", 6),
            state=Charge.State.CHARGED,
            amount=amount,
            currency=currency,
            payment_method=method,
        )
        if charge.state == Charge.State.REFUNDED:
            raise Declined("The payment was refunded.")
        return str(charge.charge_id)

    def refund(self, key: str) -> None:
        charge, made = _once(
            Charge, key, charge_id=_id("TXN", 6), state=Charge.State.REFUNDED, amount=Decimal(0)
        )
        if not made:
            Charge.objects.filter(pk=charge.pk, state=Charge.State.CHARGED).update(
                state=Charge.State.REFUNDED
            )

    def find(self, charge_id: str) -> dict[str, Any] | None:
        charge = Charge.objects.filter(charge_id=charge_id, amount__gt=0).first()
        return _charge(charge) if charge else None

    def snapshot(self) -> list[dict[str, Any]]:
        return [_charge(charge) for charge in Charge.objects.filter(amount__gt=0)[:NEWEST]]


class Warehouse:
    """Each record has a shipment that arrives three days later."""

    def update(self, key: str, *, order_id: str, items: Sequence[Item], address: str) -> Delivery:
        with transaction.atomic():
            record, made = _once(
                WarehouseRecord,
                key,
                order_id=order_id,
                items=[vars(item) for item in items],
                state=WarehouseRecord.State.APPLIED,
            )
            if made:
                Shipment.objects.create(
                    record=record,
                    tracking_number=_id("TRACK", 8),
                    address=address,
                    estimated_delivery=(timezone.now() + DELIVERY_TIME).date(),
                )
        if record.state == WarehouseRecord.State.REVERTED:
            raise Declined("The delivery was called off.")
        return Delivery(record.shipment.tracking_number, record.shipment.estimated_delivery)

    def revert(self, key: str) -> None:
        record, made = _once(
            WarehouseRecord, key, order_id="", items=[], state=WarehouseRecord.State.REVERTED
        )
        if not made:
            WarehouseRecord.objects.filter(
                pk=record.pk, state=WarehouseRecord.State.APPLIED
            ).update(state=WarehouseRecord.State.REVERTED)

    def snapshot(self) -> list[dict[str, Any]]:
        records = WarehouseRecord.objects.exclude(items=[]).select_related("shipment")
        return [
            {
                "order_id": record.order_id,
                **item,
                "status": record.state,
                "tracking_number": record.shipment.tracking_number,
            }
            for record in records[:NEWEST]
            for item in record.items
        ]


class Mailer:
    """Messages are only stored. To send them, name another mailer in ORDERS_MAILER."""

    def send(self, key: str, *, recipient: str, subject: str, body: str) -> None:
        _once(Mail, key, recipient=recipient, subject=subject, body=body)


def _once(model: Any, key: str, **fields: Any) -> tuple[Any, bool]:
    """Return the row with this key, and whether this call inserted it."""
    row, made = model.objects.get_or_create(key=key, defaults=fields)
    return row, made


def _id(prefix: str, size: int) -> str:
    return f"{prefix}-{secrets.token_hex(size).upper()}"


def _charge(charge: Charge) -> dict[str, Any]:
    return {
        "charge_id": charge.charge_id,
        "amount": str(charge.amount),
        "currency": charge.currency,
        "payment_method": charge.payment_method,
        "idempotency_key": charge.key,
        "status": charge.state,
    }


def _short(item: Item, available: int | None) -> Declined:
    if available is None:
        return Declined(f"There is no product {item.product_id}.")
    return Declined(
        f"Only {available} of {item.product_id} are available; {item.quantity} were ordered."
    )
