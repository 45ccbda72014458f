"""Each difference between orders and their workflows, made for real: a Temporal server, the
product's worker over HTTP, its relay."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.utils import timezone
from temporalio import workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from approvals import services as approvals
from approvals.models import Approval, Route, Verdict
from orders import services
from orders.models import FINAL, UNDONE, Order, State
from orders.reconciliation import COMPARISON
from outbox import reconciliation
from outbox.models import Message
from outbox.reconciliation import Difference, Reconciler
from outbox.relay import Relay
from temporal import client, inspection
from temporal.outcomes import Outcome
from tests import factories
from tests.conftest import at_once
from tests.orders.conftest import Shop, reached
from tests.orders.integrations import Hang
from tests.outbox import commands
from tests.servers import TemporalServer
from worker import contracts

WAITS = "its workflow waits for the decision"
NOTIFY, START = "notify the workflow again", "start the workflow again"
RESET = "none; reset the workflow (docs/operations.md), or cancel the order"
NOTHING = "Nothing differs, but for what changed in the last 30 s.\n"


@pytest.fixture(autouse=True)
async def _surroundings(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    # What half a minute's patience hides in production shows here.
    monkeypatch.setattr(reconciliation, "GRACE", timedelta(0))
    yield
    await sync_to_async(connections.close_all)()


async def differences() -> list[Difference]:
    found = COMPARISON.everything(client.Temporal(), timezone.now(), lambda done: None)
    return [difference async for difference in found]


async def suspected() -> list[Difference]:
    """What the relay's look finds, once the visibility store has caught up."""
    async with asyncio.timeout(40):
        while True:
            found = COMPARISON.suspects(client.Temporal(), timezone.now())
            if differing := [difference async for difference in found]:
                return differing
            await asyncio.sleep(0.1)


def said(difference: Difference) -> tuple[str, str, str, str]:
    return difference.subject, difference.record, difference.workflow, difference.remedy


async def reconcile(*arguments: str) -> tuple[int, str]:
    # Not the thread in which the command uses the database.
    return await asyncio.to_thread(commands.reconcile, *arguments)


async def of(workflow_id: str) -> Order:
    return await services.with_approval().aget(workflow_id=workflow_id)


async def decide(workflow_id: str, verdict: Verdict) -> None:
    approval = (await of(workflow_id)).approval
    assert approval is not None
    act = factories.act(route=Route.REST, at=timezone.now(), reason="asked")
    await sync_to_async(approvals.decide)(approval, verdict, act)


async def cancel(workflow_id: str) -> None:
    cancel = sync_to_async(services.cancel_order)
    await cancel(await of(workflow_id), factories.act(route=Route.REST, at=timezone.now()))


async def idle(shop: Shop, workflow_id: str) -> None:
    """Returns when the workflow waits for the decision, and no worker has anything to do for it."""
    await shop.waiting(workflow_id)
    temporal = client.Temporal()
    async with asyncio.timeout(40):
        while not (run := await inspection.run_of(temporal, workflow_id)) or not run.idle:
            await asyncio.sleep(0.05)


async def deliver() -> None:
    await Relay().step()


async def terminated(handle: WorkflowHandle[Any, Any]) -> None:
    await handle.terminate("asked")


TAKE: dict[str, Callable[[str], Any]] = {
    "approved": partial(decide, verdict=Verdict.APPROVED),
    "rejected": partial(decide, verdict=Verdict.REJECTED),
    "cancelled": cancel,
}


@pytest.mark.parametrize("what", TAKE)
@pytest.mark.parametrize("delivered", [True, False], ids=["not delivered", "deleted"])
async def test_a_workflow_that_still_waits_is_notified_again(
    shop: Shop, what: str, delivered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """X1: an order was decided, or cancelled, and its workflow still waits. The relay notifies it
    once, without being asked, and it ends as the records say."""
    async with shop.worked(relay=False):
        workflow_id = await shop.order("SKU-1001")
        await deliver()
        await idle(shop, workflow_id)
        assert await differences() == []
        await TAKE[what](workflow_id)
        lost = Message.objects.exclude(key__startswith="order-start:")
        if delivered:
            await lost.aupdate(outcome=Outcome.DELIVERED, settled_at=timezone.now())
        else:
            await lost.adelete()

        order = await of(workflow_id)
        expected = (f"order {order.order_id}", order.state, WAITS, NOTIFY)
        assert [said(one) for one in await suspected()] == [expected]
        assert [said(one) for one in await differences()] == [expected]
        await Reconciler().step()
        await Reconciler().step()
        logged = [one for one in caplog.records if one.name == "outbox.reconciliation"]
        assert [one.getMessage() for one in logged] == [
            f"order {order.order_id}: {order.state} here, in Temporal {WAITS}; queued: {NOTIFY}"
        ]
        await deliver()
        status = await shop.ended(workflow_id)
        assert status["status"] == ("completed" if what == "approved" else "cancelled")
        await shop.at_rest()
        assert await reconcile("--fix") == (0, NOTHING)


async def waits(shop: Shop) -> str:
    return await shop.order("SKU-1001")


async def runs(shop: Shop) -> str:
    return await shop.order()


async def is_approved_in_vain(shop: Shop) -> str:
    """The decision finds nobody."""
    workflow_id = await shop.order("SKU-1001")
    await deliver()
    await terminated(shop.workflow(workflow_id))
    await decide(workflow_id, Verdict.APPROVED)
    return workflow_id


async def has_paid(shop: Shop) -> str:
    workflow_id = await shop.order()
    await stand_still(shop, workflow_id, await shop.hanging("update", workflow_id, "after"))
    return workflow_id


async def compensates(shop: Shop) -> str:
    """Its workflow ends when it has taken back the delivery, and not yet the money."""
    workflow_id = await shop.order(fail_at="warehouse")
    await stand_still(shop, workflow_id, await shop.hanging("refund", workflow_id, "before"))
    return workflow_id


async def stand_still(shop: Shop, workflow_id: str, hang: Hang) -> None:
    """Have it carried out until the call hangs, and its workflow terminated there."""
    async with shop.worked():
        await reached(hang)
        await terminated(shop.workflow(workflow_id))
        hang.released.set()


MOMENTS: dict[str, Callable[[Shop], Any]] = {
    "waits": waits,
    "runs": runs,
    "is approved in vain": is_approved_in_vain,
    "has paid": has_paid,
    "compensates": compensates,
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_terminated_workflow_is_started_again_on_request_alone(
    shop: Shop, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    """X1, O5: a workflow that somebody terminated is started again when a person says so, and then
    carries the order to its end: stock and money are exact. The relay names it."""
    workflow_id = await MOMENTS[moment](shop)
    await deliver()
    with contextlib.suppress(Exception):  # some are terminated already
        await terminated(shop.workflow(workflow_id))
    order = await of(workflow_id)
    expected = (f"order {order.order_id}", order.state, "its workflow ended: terminated", START)
    assert [said(one) for one in await suspected()] == [expected]
    await Reconciler().step()
    assert (
        "Differs from Temporal, see `manage.py reconcile`: "
        f"order {order.order_id}: {order.state} here, in Temporal its workflow ended: terminated"
    ) in caplog.messages
    assert not await Message.objects.filter(settled_at=None).aexists()
    code, output = await reconcile()
    assert code == 2
    for cell in expected:
        assert cell in output

    assert (await reconcile("--fix"))[0] == 0
    # Queued already: nothing is to be done until that is delivered.
    assert await reconcile("--fix") == (0, NOTHING)
    async with shop.worked():
        if moment == "waits":
            await shop.waiting(workflow_id)
            await decide(workflow_id, Verdict.APPROVED)
        status = await shop.ended(workflow_id)
        assert status["status"] == ("failed" if moment == "compensates" else "completed")
        await shop.at_rest()
    assert await reconcile("--fix") == (0, NOTHING)


@workflow.defn(name=contracts.ORDER_WORKFLOW)
class Ends:
    """Ends at once, or is ended."""

    @workflow.run
    async def run(self, how: str) -> None:
        if how == "failed":
            raise ApplicationError("asked", non_retryable=True)
        if how != "completed":
            await workflow.wait_condition(lambda: False)


async def end(shop: Shop, order: Order, how: str) -> None:
    """A run of another order's kind under the id of this one's workflow, ended in this way."""
    handle: WorkflowHandle[Any, Any] = await shop.client.start_workflow(
        contracts.ORDER_WORKFLOW,
        how,
        id=order.workflow_id,
        task_queue="ends",
        execution_timeout=timedelta(seconds=1) if how == "timed out" else None,
    )
    if how == "canceled":
        await handle.cancel()
    if how == "terminated":
        await terminated(handle)
    with contextlib.suppress(WorkflowFailureError):
        await handle.result()


async def test_each_contradicting_end_is_named(shop: Shop) -> None:
    """X1: completed ⇔ completed, failed ⇔ failed, cancelled ⇔ completed or canceled. Each other
    end is reported, and a workflow that completed is not started again."""
    ends = ("completed", "failed", "canceled", "terminated", "timed out")
    agree = {
        (State.COMPLETED, "completed"),
        (State.FAILED, "failed"),
        (State.CANCELLED, "completed"),
        (State.CANCELLED, "canceled"),
    }
    made = {
        (state, how): await sync_to_async(factories.order)(f"{state} {how}", state)
        for state in State
        for how in ends
    }
    await Message.objects.all().adelete()
    # Temporal knows none of them: that is a difference while they are open.
    unknown = sorted(
        (f"order {order.order_id}", state, "its workflow is unknown", START)
        for (state, _), order in made.items()
        if state not in FINAL
    )
    assert sorted(said(one) for one in await differences()) == unknown
    async with Worker(
        shop.client,
        task_queue="ends",
        workflows=[Ends],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        await asyncio.gather(*(end(shop, order, how) for (_, how), order in made.items()))
    expected = sorted(
        (
            f"order {order.order_id}",
            state,
            f"its workflow ended: {how}",
            RESET if how == "completed" else START,
        )
        for (state, how), order in made.items()
        if (state, how) not in agree
    )
    found = await differences()
    assert sorted(said(one) for one in found) == expected
    assert not any(one.automatic for one in found)
    assert all((one.enqueue is None) == (one.remedy == RESET) for one in found)
    # The relay's look leaves out those of which all is undone: they are many, and nothing is held.
    looked_for = [one for one in expected if one[1] not in UNDONE]
    async with asyncio.timeout(40):
        while len(found := await suspected()) < len(looked_for):
            await asyncio.sleep(0.1)
    assert sorted(said(one) for one in found) == looked_for


@pytest.mark.parametrize("state", FINAL)
async def test_a_workflow_of_an_ended_order_ends_as_the_order_did(shop: Shop, state: State) -> None:
    """X1, X2, O5: nothing of an ended order is done or undone twice."""
    order = await sync_to_async(factories.order)("ended", state, large=True)
    await Message.objects.all().adelete()
    handle: WorkflowHandle[Any, Any] = await shop.client.start_workflow(
        contracts.ORDER_WORKFLOW, "", id=order.workflow_id, task_queue="ends"
    )
    await terminated(handle)
    steps = [step async for step in order.steps.values()]
    assert (await reconcile("--fix"))[0] == 0
    async with shop.worked(relay=False):
        await deliver()
        await shop.ended(order.workflow_id)
        await shop.at_rest()
    assert await reconcile("--fix") == (0, NOTHING)
    after = order.steps.exclude(name=contracts.SEND_CONFIRMATION)
    assert [step async for step in after.values()] == steps


async def test_after_a_wiped_server_open_orders_start_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: after the loss of Temporal's data the open orders are carried on by new workflows; of
    those that ended it need know nothing, as after retention."""
    async with shop.worked(relay=False):
        ids = [await shop.order(), await shop.order("SKU-1001")]
        await deliver()
        await shop.ended(ids[0])
        await shop.waiting(ids[1])
    with TemporalServer() as fresh, monkeypatch.context() as wiped:
        wiped.setenv("TEMPORAL_ADDRESS", fresh.address)
        wiped.setattr(shop, "client", await Client.connect(fresh.address))
        open_order = await of(ids[1])
        assert [said(one) for one in await differences()] == [
            (f"order {open_order.order_id}", State.PENDING, "its workflow is unknown", START)
        ]
        assert (await reconcile("--fix"))[0] == 0
        await Approval.objects.aupdate(expires_at=None)
        async with shop.worked():
            await shop.waiting(ids[1])
            await decide(ids[1], Verdict.APPROVED)
            assert (await shop.ended(ids[1]))["status"] == "completed"
        assert await differences() == []


async def test_healthy_orders_never_differ(shop: Shop) -> None:
    """X1: no false alarm, at any moment of healthy orders, even without any grace."""

    async def carry(number: int) -> str:
        fail_at = ("", "payment", "")[number % 3]
        workflow_id = await shop.order("SKU-1001" if number % 2 else "SKU-003", fail_at=fail_at)
        if number % 2:
            await shop.waiting(workflow_id)
            await list(TAKE.values())[number // 2](workflow_id)
        elif number % 4:
            await shop.until(
                workflow_id, "running", "completed", then=lambda now: bool(now["steps_completed"])
            )
            with contextlib.suppress(approvals.WrongState):
                await cancel(workflow_id)
        status = await shop.ended(workflow_id)
        if status["status"] == "failed":
            await shop.post(workflow_id, "retry")
            status = await shop.ended(workflow_id)
        return str(status["status"])

    async with shop.worked():
        carried = asyncio.gather(*map(carry, range(6)))
        looks = 0
        while not carried.done() or looks < 2:
            looks += 1
            assert await differences() == []
            found = COMPARISON.suspects(client.Temporal(), timezone.now())
            assert [difference async for difference in found] == []
            await asyncio.sleep(0.05)
        assert {*await carried} == {"completed", "cancelled"}
        await shop.at_rest()
    assert await differences() == []


async def test_a_workflow_without_a_worker_is_no_difference(shop: Shop) -> None:
    """X1: a workflow for which a worker has something to do goes on without help, however long the
    worker is away. A notification each minute would change nothing."""
    async with shop.worked(relay=False):
        workflow_id = await shop.order("SKU-1001")
        await deliver()
        await shop.waiting(workflow_id)
    await decide(workflow_id, Verdict.APPROVED)
    await deliver()
    assert (await of(workflow_id)).state == State.RUNNING
    assert await differences() == []


async def test_young_changes_are_no_difference(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """X1: a decision or a cancellation less than 30 s old is still under way."""
    monkeypatch.setattr(reconciliation, "GRACE", timedelta(seconds=30))
    async with shop.worked(relay=False):
        ids = [await shop.order("SKU-1001") for _ in range(2)]
        await deliver()
        for workflow_id in ids:
            await idle(shop, workflow_id)
    await Order.objects.aupdate(created_at=timezone.now() - timedelta(days=1))
    before = timezone.now()
    await decide(ids[0], Verdict.APPROVED)
    await cancel(ids[1])
    after = timezone.now()
    await Message.objects.all().adelete()

    async def found(now: datetime) -> int:
        differing = COMPARISON.everything(client.Temporal(), now, lambda done: None)
        return len([difference async for difference in differing])

    assert await found(before + timedelta(seconds=30)) == 0
    assert await found(after + timedelta(seconds=30)) == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("again", [services.notify_again, services.start_again])
@pytest.mark.parametrize("settled", [True, False])
def test_two_concurrent_fixes_queue_one_message(
    again: Callable[[Order], bool], settled: bool
) -> None:
    """X1: two relays, or a relay and a person, that fix the same difference queue one message."""
    order = factories.order("race", large=True)
    Message.objects.all().delete()
    if settled:
        assert again(order)
        Message.objects.update(outcome=Outcome.DELIVERED, settled_at=timezone.now())
    assert sorted(at_once([partial(again, order)] * 4)) == [False, False, False, True]
    assert Message.objects.filter(settled_at=None).count() == 1
