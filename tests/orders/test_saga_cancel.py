"""Orders that are cancelled, over HTTP or in Temporal, wherever they are: what was done is undone,
and what comes too late does nothing (requirements O4, O5)."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from approvals.models import AuditEntry
from outbox.models import Message
from tests.orders.conftest import Shop, reached
from tests.orders.integrations import FAULTS, Call, Hang, When

Cancel = Callable[[Shop, str], Awaitable[None]]
BEGUN: dict[Call, list[Call]] = {
    "reserve": ["release"],
    "charge": ["refund", "release"],
    "update": ["revert", "refund", "release"],
}


async def over_http(shop: Shop, workflow_id: str) -> None:
    assert await shop.post(workflow_id, "cancel", "not needed any more") in (200, 202)
    # Asked for twice, it is done once.
    assert await shop.post(workflow_id, "cancel") in (200, 202)


async def in_temporal(shop: Shop, workflow_id: str) -> None:
    await shop.workflow(workflow_id).cancel()


REASONS = {
    over_http: "cancelled by local: not needed any more",
    in_temporal: "cancelled in Temporal",
}
either_way = pytest.mark.parametrize("cancel", REASONS)


async def cancelled(shop: Shop, workflow_id: str, reason: str) -> None:
    status = await shop.ended(workflow_id)
    assert (status["status"], status["failure_reason"]) == ("cancelled", reason)
    trail = AuditEntry.objects.filter(subject_id=status["order_id"], event="cancelled")
    assert await trail.aexists()


@either_way
async def test_waiting_order_is_cancelled(cancel: Cancel, shop: Shop) -> None:
    """O4: nothing was done, nothing is undone; a decision then comes too late."""
    async with shop.worked():
        workflow_id = await shop.order("SKU-1001")
        await shop.waiting(workflow_id)
        await cancel(shop, workflow_id)
        await cancelled(shop, workflow_id, REASONS[cancel])
        assert await shop.post(workflow_id, "approve") == 409
        assert (await shop.status(workflow_id))["approval_status"] == "undecided"
        await shop.at_rest()
    assert FAULTS.calls == []


@either_way
async def test_order_without_a_worker_is_cancelled(cancel: Cancel, shop: Shop) -> None:
    """O5: a run that is cancelled before a worker took it ends the order all the same."""
    small, large = await shop.order(), await shop.order("SKU-1001")
    async with shop.relayed():
        for workflow_id in (small, large):
            await shop.started(workflow_id)
            await cancel(shop, workflow_id)
        async with shop.worked(relay=False):
            for workflow_id in (small, large):
                await cancelled(shop, workflow_id, REASONS[cancel])
            await shop.at_rest()
    assert FAULTS.calls == []


async def test_order_without_a_workflow_is_cancelled(shop: Shop) -> None:
    """O3, O5: a workflow that starts later finds that its order was cancelled."""
    orders = [await shop.order(), await shop.order("SKU-1001")]
    for workflow_id in orders:
        await over_http(shop, workflow_id)
    await Message.objects.filter(kind="cancel_workflow").adelete()
    async with shop.worked():
        for workflow_id in orders:
            await cancelled(shop, workflow_id, REASONS[over_http])
        await shop.at_rest()
    assert FAULTS.calls == []


@pytest.mark.parametrize("when", ["before", "after"])
@either_way
async def test_cancelling_during_a_hanging_step_undoes_it(
    cancel: Cancel, when: When, shop: Shop
) -> None:
    """O5: what was begun is undone in reverse, once, though it may still come to pass; when it
    does, it has no effect."""
    orders: dict[str, tuple[Call, Hang]] = {}
    for call in BEGUN:
        workflow_id = await shop.order()
        orders[workflow_id] = (call, await shop.hanging(call, workflow_id, when))
    async with shop.worked():
        for workflow_id, (call, hang) in orders.items():
            await reached(hang)
            await cancel(shop, workflow_id)
            await cancelled(shop, workflow_id, REASONS[cancel])
            calls = FAULTS.calls_of(await shop.key(workflow_id))
            assert calls[calls.index(call) + 1 :] == BEGUN[call]
        for _, hang in orders.values():
            hang.released.set()
        await shop.answered_all()
        await shop.at_rest()


@either_way
async def test_cancelling_during_the_check_charges_nothing(cancel: Cancel, shop: Shop) -> None:
    """O5: a check has no effect, and nothing is undone for it."""
    workflow_id = await shop.order("PROD-102")
    hang = FAULTS.hang("check", "PROD-102", "before")
    async with shop.worked():
        await reached(hang)
        await cancel(shop, workflow_id)
        await cancelled(shop, workflow_id, REASONS[cancel])
        hang.released.set()
        await shop.answered_all()
        await shop.at_rest()
    assert [call for call, _ in FAULTS.calls] == ["check"]


async def test_failing_order_is_not_cancelled(shop: Shop) -> None:
    """O5: an order that failed stays failed, one that was cancelled is cancelled once; every undo
    is done."""
    failing = await shop.order(fail_at="warehouse")
    cancelling = await shop.order()
    undos = [await shop.hanging("refund", one, "before") for one in (failing, cancelling)]
    step = await shop.hanging("update", cancelling, "after")
    async with shop.worked():
        await reached(step)
        await over_http(shop, cancelling)
        for undo in undos:
            await reached(undo)
        assert await shop.post(failing, "cancel") == 409
        assert await shop.post(cancelling, "cancel") == 202
        for workflow_id in (failing, cancelling):
            await in_temporal(shop, workflow_id)
        for hang in (step, *undos):
            hang.released.set()
        await cancelled(shop, cancelling, REASONS[over_http])
        status = await shop.ended(failing)
        assert status["status"] == "failed"
        assert status["failure_reason"] == "injected failure at warehouse"
        for workflow_id in (failing, cancelling):
            calls = FAULTS.calls_of(await shop.key(workflow_id))
            assert calls[-3:] == ["revert", "refund", "release"]
        await shop.at_rest()


async def test_completed_order_is_not_cancelled(shop: Shop) -> None:
    """O5: from the pivot on nothing is undone: while its stock leaves, while its confirmation is
    sent, and afterwards."""
    orders: dict[str, Hang] = {}
    for call in ("fulfil", "send"):
        workflow_id = await shop.order(customer_email="alice@example.com")
        orders[workflow_id] = await shop.hanging(call, workflow_id, "before")
    async with shop.worked():
        for workflow_id, hang in orders.items():
            await reached(hang)
            assert await shop.post(workflow_id, "cancel") == 409
            await in_temporal(shop, workflow_id)
            hang.released.set()
            assert (await shop.ended(workflow_id))["status"] == "completed"
            assert await shop.post(workflow_id, "cancel") == 409
        await shop.at_rest()


async def test_cancelling_before_completion_undoes_all_steps(shop: Shop) -> None:
    """O5: a cancelled order does not complete, even if its workflow does not know of the
    cancellation yet."""
    workflow_id = await shop.order()
    hang = await shop.hanging("update", workflow_id, "after")
    async with shop.worked(relay=False):
        async with shop.relayed():
            await reached(hang)
        await over_http(shop, workflow_id)
        hang.released.set()
        await cancelled(shop, workflow_id, REASONS[over_http])
        assert FAULTS.calls_of(await shop.key(workflow_id))[-3:] == BEGUN["update"]
        async with shop.relayed():
            await shop.at_rest()


@either_way
async def test_cancelling_at_completion_gives_one_end(cancel: Cancel, shop: Shop) -> None:
    """O5: cancelled and completed at the same moment, an order is one of them."""
    orders = [await shop.order() for _ in range(6)]

    async def race(number: int, workflow_id: str) -> None:
        steps = ("reserve_inventory", "process_payment", "update_warehouse")
        await shop.until(
            workflow_id,
            "running",
            "completed",
            then=lambda now: steps[number % 3] in now["steps_completed"],
        )
        if cancel is in_temporal:
            await shop.workflow(workflow_id).cancel()
        else:
            assert await shop.post(workflow_id, "cancel") in (202, 409)

    async with shop.worked():
        await asyncio.gather(*(race(*order) for order in enumerate(orders)))
        for workflow_id in orders:
            assert (await shop.ended(workflow_id))["status"] in ("cancelled", "completed")
        await shop.at_rest()


@either_way
async def test_approved_order_is_cancelled(cancel: Cancel, shop: Shop) -> None:
    """O3, O4: the decision is kept beside the cancellation. The workflow knew of neither when it
    began, or of the cancellation alone while it waited."""
    begun = await shop.order("SKU-1001")
    orders = [begun]
    async with shop.worked(relay=False):
        async with shop.relayed():
            await shop.waiting(begun)
        if cancel is over_http:
            orders.append(await shop.order("SKU-1001"))
        for workflow_id in orders:
            assert await shop.post(workflow_id, "approve", "good customer") == 200
            await cancel(shop, workflow_id)
        if cancel is over_http:
            await Message.objects.filter(kind="signal_workflow").adelete()
        async with shop.relayed():
            for workflow_id in orders:
                await cancelled(shop, workflow_id, REASONS[cancel])
                status = await shop.status(workflow_id)
                assert status["approval_status"] == "approved"
                assert status["approval_reason"] == "good customer"
            await shop.at_rest()
    assert FAULTS.calls == []
