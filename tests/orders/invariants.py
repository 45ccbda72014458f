"""What is true of orders, stock and money whenever nothing is under way (requirements O5)."""

from collections import Counter
from collections.abc import Iterable, Mapping

from asgiref.sync import sync_to_async
from temporalio.client import Client, WorkflowExecutionStatus

from orders.models import (
    FINAL,
    Charge,
    Mail,
    Order,
    OrderLine,
    Reservation,
    ReservedItem,
    State,
    StockItem,
    WarehouseRecord,
)
from outbox.models import NEEDS_ATTENTION, Message

ENDS = {
    State.COMPLETED: {WorkflowExecutionStatus.COMPLETED},
    State.FAILED: {WorkflowExecutionStatus.FAILED},
    # Canceled where the workflow was told while it ran.
    State.CANCELLED: {WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.CANCELED},
}


def check_records(stocked: Mapping[str, int]) -> None:
    """Stock and money are those of the completed orders, each fulfilled once, and nothing else.

    `stocked` are the pieces that there were of each product before the first order. Reads the
    database alone, at rest: no order runs, and no step of one is still under way.
    """
    assert not Order.objects.exclude(state__in=FINAL).exists()
    completed = Order.objects.filter(state=State.COMPLETED)
    keys = sorted(order.idempotency_key(order.attempt) for order in completed)

    sold = _pieces(
        OrderLine.objects.filter(order__state=State.COMPLETED).values_list("product_id", "quantity")
    )
    held = _pieces(
        ReservedItem.objects.filter(reservation__state=Reservation.State.RESERVED).values_list(
            "item__product_id", "quantity"
        )
    )
    assert held == {}
    stock = {item.product_id: (item.available, item.reserved) for item in StockItem.objects.all()}
    assert stock == {
        product_id: (pieces - sold[product_id], 0) for product_id, pieces in stocked.items()
    }
    fulfilled = Reservation.objects.filter(state=Reservation.State.FULFILLED)
    assert sorted(fulfilled.values_list("key", flat=True)) == keys

    charged = Charge.objects.filter(state=Charge.State.CHARGED)
    assert sorted(charged.values_list("key", "amount", "currency")) == sorted(
        (order.idempotency_key(order.attempt), order.total, order.currency) for order in completed
    )

    sent = WarehouseRecord.objects.filter(state=WarehouseRecord.State.APPLIED)
    assert sorted((record.key, _items(record)) for record in sent) == sorted(
        (
            order.idempotency_key(order.attempt),
            sorted(order.lines.values_list("product_id", "quantity")),
        )
        for order in completed
    )

    assert set(Mail.objects.values_list("key", flat=True)) <= set(keys)


async def check_temporal(client: Client) -> None:
    """The run of each order ended as its record did, and every message came to its end."""
    async for order in Order.objects.all():
        run = await client.get_workflow_handle(order.workflow_id).describe()
        assert run.status in ENDS[State(order.state)], (order.order_id, order.state, run.status)
        assert await run.memo() == {"order": str(order.pk), "attempt": order.attempt}
    assert await sync_to_async(_messages_to_see_to)() == []


def _messages_to_see_to() -> list[tuple[str, str | None]]:
    waiting, failed = (
        Message.objects.filter(settled_at=None),
        Message.objects.filter(NEEDS_ATTENTION),
    )
    return list((waiting | failed).values_list("key", "outcome"))


def _pieces(lines: Iterable[tuple[str, int]]) -> Counter[str]:
    pieces: Counter[str] = Counter()
    for product_id, quantity in lines:
        pieces[product_id] += quantity
    return pieces


def _items(record: WarehouseRecord) -> list[tuple[str, int]]:
    return sorted((item["product_id"], item["quantity"]) for item in record.items)
