"""Orders whose run ends before they do, and is started again; and runs that are started twice."""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from orders import services
from orders.models import Order
from outbox import handlers
from outbox.models import Message
from temporal.client import Temporal, Unreachable
from temporal.outcomes import Outcome
from tests import factories
from tests.orders.conftest import Shop, reached
from tests.orders.integrations import FAULTS, Call, Hang, When
from worker import contracts

START = handlers.HANDLERS[handlers.START_WORKFLOW]
STEPS: tuple[Call, ...] = ("reserve", "charge", "update", "fulfil")
UNDOS: tuple[Call, ...] = ("revert", "refund", "release")


async def start_again(shop: Shop, workflow_id: str) -> None:
    order = await Order.objects.aget(workflow_id=workflow_id)
    assert await sync_to_async(services.start_again)(order)
    await shop.started(workflow_id)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_run_terminated_in_a_step_is_finished_by_the_next(when: When, shop: Shop) -> None:
    """O5, X2: a new run goes on with the order, and does nothing twice, though what the terminated
    one asked for comes to pass meanwhile; what it reserved is not missed."""
    orders: dict[str, Hang] = {}
    for call in STEPS:
        all_there_is = ("SKU-001", 25) if call == "charge" else ("PROD-102", 1)
        workflow_id = await shop.order(*all_there_is)
        orders[workflow_id] = await shop.hanging(call, workflow_id, when)
    async with shop.worked():
        for workflow_id, hang in orders.items():
            await reached(hang)
            await shop.workflow(workflow_id).terminate("tested")
            await start_again(shop, workflow_id)
        for workflow_id, hang in orders.items():
            assert (await shop.ended(workflow_id))["status"] == "completed"
            hang.released.set()
        await shop.answered_all()
        await shop.at_rest()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_run_terminated_in_an_undo_is_finished_by_the_next(when: When, shop: Shop) -> None:
    """O5: a new run undoes all that the terminated one began."""
    orders: dict[str, Hang] = {}
    for call in UNDOS:
        workflow_id = await shop.order(fail_at="warehouse")
        orders[workflow_id] = await shop.hanging(call, workflow_id, when)
    async with shop.worked():
        for workflow_id, hang in orders.items():
            await reached(hang)
            await shop.workflow(workflow_id).terminate("tested")
            await start_again(shop, workflow_id)
        for workflow_id, hang in orders.items():
            status = await shop.ended(workflow_id)
            assert status["status"] == "failed"
            assert status["failure_reason"] == "injected failure at warehouse"
            hang.released.set()
        await shop.answered_all()
        await shop.at_rest()


async def test_order_of_a_terminated_run_is_cancelled(shop: Shop) -> None:
    """O5: a new run that is cancelled at once undoes what the terminated one began, late as it may
    come to pass."""
    orders: dict[str, Hang] = {}
    for call in STEPS[:-1]:
        workflow_id = await shop.order()
        orders[workflow_id] = await shop.hanging(call, workflow_id, "before")
    async with shop.worked():
        for hang in orders.values():
            await reached(hang)
    async with shop.relayed():
        for workflow_id in orders:
            await shop.workflow(workflow_id).terminate("tested")
            await start_again(shop, workflow_id)
            await shop.workflow(workflow_id).cancel()
        async with shop.worked(relay=False):
            for workflow_id, hang in orders.items():
                assert (await shop.ended(workflow_id))["status"] == "cancelled"
                hang.released.set()
            await shop.answered_all()
            await shop.at_rest()


async def test_completed_order_of_a_terminated_run_stays_completed(shop: Shop) -> None:
    """O2, O5: a new run finishes what is left of a completed order, and has the same result."""
    orders: dict[str, Hang] = {}
    for product_id in ("SKU-1000", "SKU-1001"):
        workflow_id = await shop.order(product_id, customer_email="alice@example.com")
        orders[workflow_id] = await shop.hanging("send", workflow_id, "before")
    assert await shop.post(workflow_id, "approve") == 200
    async with shop.worked():
        for workflow_id, hang in orders.items():
            await reached(hang)
            await shop.workflow(workflow_id).terminate("tested")
            await start_again(shop, workflow_id)
            status = await shop.ended(workflow_id)
            result = await shop.workflow(workflow_id).result()
            assert status["status"] == "completed"
            parts = (result.payment, result.inventory, result.delivery)
            said = {name: value for part in parts for name, value in vars(part).items()}
            assert (
                said.items()
                >= {
                    "charge_id": status["results"]["process_payment"]["charge_id"],
                    **status["results"]["reserve_inventory"],
                    **status["results"]["update_warehouse"],
                }.items()
            )
            hang.released.set()
        await shop.answered_all()
        await shop.at_rest()


class SlowToDescribe(Temporal):
    """Its question comes after the run has failed of which the start heard."""

    async def describe(self, workflow_id: str, run_id: str = "") -> Any:
        client = await self.client()
        await client.get_workflow_handle(workflow_id).terminate("tested")
        return await super().describe(workflow_id, run_id)


async def test_start_after_the_end_of_the_earlier_run_succeeds(shop: Shop) -> None:
    """X1: the start of an attempt is tried again when the run before it fails just then."""
    workflow_id = await shop.order()
    order = await Order.objects.aget()
    async with shop.relayed():
        await shop.started(workflow_id)
    message = await Message.objects.aget(key=services.KIND.key("start", order.order_id))
    second = {**message.payload, "memo": {"order": str(order.pk), "attempt": 2}}
    with pytest.raises(Unreachable):
        await START(SlowToDescribe(), second)
    assert await START(Temporal(), second) is Outcome.DELIVERED


async def test_late_start_changes_nothing(shop: Shop) -> None:
    """X2: the start of a failed attempt, delivered once more, does nothing to the attempt that
    follows: neither before that one is started, nor while it runs, nor afterwards."""
    temporal = Temporal()
    async with shop.worked(relay=False):
        workflow_id = await shop.order(fail_at="payment")
        order = await Order.objects.aget(workflow_id=workflow_id)
        message = await Message.objects.aget(key=services.KIND.key("start", order.order_id))
        start_first_attempt = partial(START, temporal, message.payload)
        async with shop.relayed():
            assert (await shop.ended(workflow_id))["status"] == "failed"
        assert await shop.post(workflow_id, "retry") == 202
        assert await start_first_attempt() is Outcome.DELIVERED
        hang = FAULTS.hang("charge", order.idempotency_key(2), "after")
        async with shop.relayed():
            await reached(hang)
            with pytest.raises(Unreachable, match="has not ended"):
                await start_first_attempt()
            hang.released.set()
            status = await shop.ended(workflow_id)
            assert (status["status"], status["attempt"]) == ("completed", 2)
            assert await start_first_attempt() is Outcome.CONFLICT
            await shop.at_rest()
    calls = FAULTS.calls_of(order.idempotency_key(1))
    assert calls == ["reserve", "charge", "refund", "release"]


async def test_message_for_an_attempt_reaches_no_other_attempt(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O3, O5, X1, X6: a decision on a retried order, and its cancellation, wait for the start of
    their attempt; that the failed one has ended is nothing to look after."""
    async with shop.worked(relay=False):
        cancelled = await shop.order(fail_at="inventory-check")
        approved = await shop.order("SKU-1001")
        async with shop.relayed():
            await shop.waiting(approved)
            await sync_to_async(factories.carry)(
                await shop.record(approved),
                contracts.BEGIN_COMPENSATION,
                reason="tested",
                now=timezone.now(),
            )
            await shop.workflow(approved).signal("approve_order")
            for workflow_id in (cancelled, approved):
                assert (await shop.ended(workflow_id))["status"] == "failed"
            await shop.at_rest()
        for workflow_id, verb in ((cancelled, "cancel"), (approved, "approve")):
            assert await shop.post(workflow_id, "retry") == 202
            assert await shop.post(workflow_id, verb) in (200, 202)
        # The relay had no luck with the start.
        start = Message.objects.filter(kind=handlers.START_WORKFLOW, settled_at=None)
        await start.aupdate(due_at=timezone.now() + timedelta(seconds=1))
        async with shop.relayed():
            assert (await shop.ended(cancelled))["status"] == "cancelled"
            assert (await shop.ended(approved))["status"] == "completed"
            await shop.at_rest()
