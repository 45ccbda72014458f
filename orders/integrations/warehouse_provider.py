"""The warehouse: the protocol, and the built-in one, which stores records and sends nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final, Protocol

from django.db import transaction
from django.utils import timezone

from orders.integrations import NEWEST, Declined, Item, new_id, stored_once
from orders.models import Shipment, WarehouseRecord

DELIVERY_TIME: Final = timedelta(days=3)


@dataclass(frozen=True)
class Delivery:
    tracking_number: str
    estimated_delivery: date


class Warehouse(Protocol):
    def update(self, key: str, *, order_id: str, items: Sequence[Item], address: str) -> Delivery:
        """Order the delivery of the pieces. Raises Declined."""

    def revert(self, key: str) -> None:
        """Undo :meth:`update`: call the delivery off."""

    def snapshot(self) -> list[dict[str, Any]]:
        """Return `{"order_id", "product_id", "quantity", "status", "tracking_number"}` for each
        product of a delivery, newest first; the status is "applied" or "reverted"."""


class DatabaseWarehouse:
    """Each record has a shipment that arrives three days later."""

    def update(self, key: str, *, order_id: str, items: Sequence[Item], address: str) -> Delivery:
        with transaction.atomic():
            record, made = stored_once(
                WarehouseRecord,
                key,
                order_id=order_id,
                items=[vars(item) for item in items],
                state=WarehouseRecord.State.APPLIED,
            )
            if made:
                Shipment.objects.create(
                    record=record,
                    tracking_number=new_id("TRACK", 8),
                    address=address,
                    estimated_delivery=(timezone.now() + DELIVERY_TIME).date(),
                )
        if record.state == WarehouseRecord.State.REVERTED:
            raise Declined("The delivery was called off.")
        return Delivery(record.shipment.tracking_number, record.shipment.estimated_delivery)

    def revert(self, key: str) -> None:
        record, made = stored_once(
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
