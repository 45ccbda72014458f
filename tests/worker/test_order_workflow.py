"""The workflow of an order on a real Temporal server, its activities against a site that answers by
a script. How orders fare with the site itself: tests/orders/test_saga*.py."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from tests.worker import sites
from tests.worker.sites import eventually, standing
from worker import contracts
from worker.orders.activities import OrderActivities
from worker.orders.workflows import OrderWorkflow, Status
from worker.site import Site

DAYS_30 = 30 * 24 * 3600
SAGA = [step for step, _ in contracts.SAGA]
BEGUN = {"begun": SAGA}
DONE = '{"message": "done"}'
REFUSED = sites.status(409, '{"detail": "No."}')


class Orders:
    """Starts orders on a task queue of its own."""

    def __init__(self, client: Client, site: sites.ScriptedSite) -> None:
        self.queue = str(uuid.uuid4())
        self._client = client
        self._site = site

    @contextlib.asynccontextmanager
    async def worked(self) -> AsyncIterator[None]:
        async with (
            Site(self._site.url) as site,
            Worker(
                self._client,
                task_queue=self.queue,
                workflows=[OrderWorkflow],
                activities=OrderActivities(site).all(),
                max_cached_workflows=0,
            ),
        ):
            yield

    async def start(
        self, answers: Mapping[str, Sequence[sites.Answer]] | None = None, **order: Any
    ) -> WorkflowHandle[Any, contracts.OrderResult]:
        """A small order; large with `needs_approval`."""
        ref = str(uuid.uuid4())
        sites.script_order(self._site, ref, answers or {})
        given = {"attempt": 1, "needs_approval": False, "approval_seconds": 300, **order}
        return await self._client.start_workflow(
            contracts.ORDER_WORKFLOW,
            contracts.Order(order=ref, order_id="ORD-7", **given),
            id=ref,
            task_queue=self.queue,
            result_type=contracts.OrderResult,
        )

    def asked(self, handle: WorkflowHandle[Any, Any]) -> list[str]:
        """The steps of the order that the site was asked for, in order."""
        return [
            request.path.rpartition("/")[2]
            for request in self._site.requests
            if request.path.startswith(f"/orders/{handle.id}/")
        ]

    def attempts(self, handle: WorkflowHandle[Any, Any]) -> set[int]:
        """The attempts of which its requests were."""
        return {
            request.json["attempt"]
            for request in self._site.requests
            if request.path.startswith(f"/orders/{handle.id}/")
        }

    def details(self, handle: WorkflowHandle[Any, Any], step: str) -> list[dict[str, Any]]:
        """What was sent with a step, each time."""
        return [
            {name: value for name, value in request.json.items() if name != "attempt"}
            for request in self._site.requests_to(f"/orders/{handle.id}/steps/{step}")
        ]


@pytest.fixture
async def orders(client: Client, scripted: sites.ScriptedSite) -> AsyncIterator[Orders]:
    made = Orders(client, scripted)
    async with made.worked():
        yield made


async def failure_of(handle: WorkflowHandle[Any, Any]) -> BaseException:
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    return caught.value.cause


async def told(handle: WorkflowHandle[Any, Any]) -> Status:
    return await handle.query(OrderWorkflow.get_status)


async def cancellation_is_heard(handle: WorkflowHandle[Any, Any]) -> None:
    """Returns when the workflow has dealt with its cancellation."""
    async with asyncio.timeout(40):
        while True:
            kinds = [event.event_type for event in (await handle.fetch_history()).events]
            requested = kinds.index(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
            if EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED in kinds[requested:]:
                return
            await asyncio.sleep(0.05)


async def test_what_is_scheduled(orders: Orders):
    """O2, O5, W6: each step on the workflow's queue with 30 s, each undo with 60 s, retried without
    an end; the undo comes in reverse."""
    completed = await orders.start(needs_approval=True)
    await eventually(lambda: orders.asked(completed))
    await completed.signal(OrderWorkflow.approve_order, "good customer")
    failed = await orders.start(
        {
            contracts.COMPLETE_ORDER: [standing("compensating", reason="No.")],
            contracts.BEGIN_COMPENSATION: [standing("compensating", reason="No.", **BEGUN)],
        }
    )
    await completed.result()
    await failure_of(failed)
    scheduled = {}
    for handle in (completed, failed):
        scheduled[handle] = [
            event.activity_task_scheduled_event_attributes
            for event in (await handle.fetch_history()).events
            if event.HasField("activity_task_scheduled_event_attributes")
        ]

    def times(handle: WorkflowHandle[Any, Any]) -> list[tuple[str, int]]:
        return [
            (one.activity_type.name, one.start_to_close_timeout.seconds)
            for one in scheduled[handle]
        ]

    steps = [(step, 30) for step in SAGA]
    assert times(completed) == [
        (contracts.AWAIT_APPROVAL, 30),
        (contracts.SETTLE_APPROVAL, 30),
        *steps,
        (contracts.COMPLETE_ORDER, 30),
        (contracts.SEND_CONFIRMATION, 30),
    ]
    assert times(failed) == [
        *steps,
        (contracts.COMPLETE_ORDER, 30),
        (contracts.BEGIN_COMPENSATION, 30),
        (contracts.REVERT_WAREHOUSE, 60),
        (contracts.REFUND_PAYMENT, 60),
        (contracts.RELEASE_INVENTORY, 60),
        (contracts.CLOSE_ORDER, 30),
    ]
    for one in [*scheduled[completed], *scheduled[failed]]:
        assert one.task_queue.name == orders.queue
        policy = one.retry_policy
        assert policy.initial_interval.ToTimedelta() == timedelta(seconds=1)
        assert policy.backoff_coefficient == 2
        assert policy.maximum_interval.ToTimedelta() == timedelta(seconds=30)
        assert policy.maximum_attempts == 0
        assert list(policy.non_retryable_error_types) == []


async def test_result(orders: Orders):
    """O2, O3: what a completed order returns and tells: each step with what the site said of it."""
    handle = await orders.start()
    assert await handle.result() == contracts.OrderResult(
        "ORD-7",
        "completed",
        "Order processed successfully",
        payment={"message": "paid", "charge_id": "TXN-1"},
        inventory={"message": "reserved", "reservation_id": "RES-1"},
        delivery={"message": "sent", "tracking_number": "TRACK-1"},
    )
    status = await told(handle)
    assert (status.order_id, status.status, status.current_step) == ("ORD-7", "completed", None)
    assert status.steps_completed == [*SAGA, contracts.SEND_CONFIRMATION]
    assert (status.compensation_triggered, status.failure_reason) == (False, None)
    events = [(event.step, event.status, event.message) for event in status.events]
    said = ["checked", "reserved", "paid", "sent", "", "confirmed"]
    steps = [*SAGA, contracts.COMPLETE_ORDER, contracts.SEND_CONFIRMATION]
    assert events == [
        event
        for step, message in zip(steps, said, strict=True)
        for event in ((step, "started", ""), (step, "completed", message))
    ]
    times = [event.timestamp for event in status.events]
    assert times == sorted(times)


@pytest.mark.parametrize("seconds", [0, -1, DAYS_30 + 1])
async def test_invalid_approval_window(seconds: int, orders: Orders):
    """O1: a window that is none fails the order, and nobody is asked to decide."""
    handle = await orders.start(needs_approval=True, approval_seconds=seconds)
    await failure_of(handle)
    assert orders.asked(handle) == [contracts.BEGIN_COMPENSATION, contracts.CLOSE_ORDER]
    [said] = orders.details(handle, contracts.BEGIN_COMPENSATION)
    assert said["reason"] == (
        f"approval_seconds is {seconds}; it must be from 1 to {DAYS_30} (30 days)"
    )


async def test_longest_approval_window(orders: Orders):
    """O1: thirty days, from when the workflow begins."""
    handle = await orders.start(needs_approval=True, approval_seconds=DAYS_30)
    await eventually(lambda: orders.asked(handle))
    assert (await told(handle)).status == "pending"
    began = (await handle.describe()).start_time
    [said] = orders.details(handle, contracts.AWAIT_APPROVAL)
    end = datetime.fromisoformat(said["until"])
    assert timedelta() <= end - began - timedelta(days=30) < timedelta(seconds=60)
    await handle.terminate()


async def test_signals_are_asked_about_in_turn(orders: Orders):
    """O3: a signal is a request: each is put to the site, the first first, until one is heard; what
    the site says is what the queries tell."""
    pending, approved = standing("pending"), standing("running", "APPROVED", "by another")
    handle = await orders.start(
        {contracts.SETTLE_APPROVAL: [pending, approved]}, needs_approval=True
    )
    await eventually(lambda: orders.asked(handle))
    assert await handle.query(OrderWorkflow.get_approval_status) == "pending"
    for signal, reason in (
        (OrderWorkflow.reject_order, "first"),
        (OrderWorkflow.approve_order, "second"),
        (OrderWorkflow.reject_order, "third"),
    ):
        await handle.signal(signal, reason)
    assert (await handle.result()).status == "completed"
    assert orders.details(handle, contracts.SETTLE_APPROVAL) == [
        {"verdict": "REJECTED", "reason": "first"},
        {"verdict": "APPROVED", "reason": "second"},
    ]
    assert await handle.query(OrderWorkflow.get_approval_status) == "approved"
    assert await handle.query(OrderWorkflow.get_approval_reason) == "by another"


async def test_late_signals(orders: Orders):
    """O3: once it is decided, a signal changes nothing, and is put to nobody."""
    handle = await orders.start(
        {contracts.CHECK_INVENTORY: [sites.hang]},
        needs_approval=True,
    )
    await eventually(lambda: orders.asked(handle))
    await handle.signal(OrderWorkflow.approve_order, "good customer")
    await eventually(lambda: contracts.CHECK_INVENTORY in orders.asked(handle))
    await handle.signal(OrderWorkflow.reject_order, "late")
    assert await handle.query(OrderWorkflow.get_approval_status) == "approved"
    assert await handle.query(OrderWorkflow.get_approval_reason) == "good customer"
    assert len(orders.details(handle, contracts.SETTLE_APPROVAL)) == 1
    await handle.terminate()


async def test_the_window_ends(orders: Orders):
    """O4: the site is asked whether it did, in its own time, and its answer ends the run."""
    answer = standing("cancelled", "EXPIRED", "approval timed out")
    handle = await orders.start(
        {contracts.SETTLE_APPROVAL: [answer]}, needs_approval=True, approval_seconds=1
    )
    assert await handle.result() == contracts.OrderResult(
        "ORD-7", "cancelled", "approval timed out"
    )
    assert orders.asked(handle) == [contracts.AWAIT_APPROVAL, contracts.SETTLE_APPROVAL]
    assert orders.details(handle, contracts.SETTLE_APPROVAL) == [
        {"verdict": "EXPIRED", "reason": ""}
    ]
    assert await handle.query(OrderWorkflow.get_approval_status) == "expired"


async def test_texts_from_outside(orders: Orders):
    """O3, O5: what no database stores is replaced, and long texts are cut: the site would refuse
    them, each time."""
    refusal = sites.status(409, '{"detail": "No \\u0000."}')
    handle = await orders.start({contracts.CHECK_INVENTORY: [refusal]}, needs_approval=True)
    await eventually(lambda: orders.asked(handle))
    await handle.signal(OrderWorkflow.approve_order, "a \0 \ud83d ü \U0001f600" + "x" * 3000)
    await failure_of(handle)
    [said] = orders.details(handle, contracts.SETTLE_APPROVAL)
    assert said["reason"] == ("a ? ? ü \U0001f600" + "x" * 3000)[:2000]
    [said] = orders.details(handle, contracts.BEGIN_COMPENSATION)
    assert said["reason"] == "No ?."


@pytest.mark.parametrize(
    ("step", "begun", "undone"),
    [
        (contracts.CHECK_INVENTORY, SAGA[:1], []),
        (contracts.RESERVE_INVENTORY, SAGA[:2], [contracts.RELEASE_INVENTORY]),
        (
            contracts.PROCESS_PAYMENT,
            SAGA[:3],
            [contracts.REFUND_PAYMENT, contracts.RELEASE_INVENTORY],
        ),
        # An earlier run came further than this one.
        (
            contracts.CHECK_INVENTORY,
            SAGA,
            [contracts.REVERT_WAREHOUSE, contracts.REFUND_PAYMENT, contracts.RELEASE_INVENTORY],
        ),
    ],
)
async def test_what_was_begun_is_undone(
    step: str, begun: list[str], undone: list[str], orders: Orders
):
    """O5: what the record says was begun, in reverse, and nothing else; the run fails with the
    reason that the record has."""
    handle = await orders.start(
        {
            step: [sites.status(409, '{"detail": "card declined"}')],
            contracts.BEGIN_COMPENSATION: [standing("compensating", reason="first", begun=begun)],
            contracts.CLOSE_ORDER: [standing("failed", reason="first")],
        }
    )
    error = await failure_of(handle)
    assert isinstance(error, ApplicationError)
    assert (error.message, error.type) == ("first", "OrderFailed")
    ends = [contracts.BEGIN_COMPENSATION, *undone, contracts.CLOSE_ORDER]
    assert orders.asked(handle) == [*SAGA[: SAGA.index(step) + 1], *ends]
    assert orders.details(handle, contracts.BEGIN_COMPENSATION) == [
        {"failed_step": step, "reason": "card declined", "cancelled": False}
    ]
    status = await told(handle)
    assert (status.status, status.failure_reason, status.current_step) == ("failed", "first", None)
    assert status.compensation_triggered is bool(undone)
    assert status.steps_completed == SAGA[: SAGA.index(step)]
    compensated = [event.step for event in status.events if event.status == "compensated"]
    assert compensated == undone


async def test_an_undo_is_asked_for_until_it_succeeds(orders: Orders):
    """O5: whatever the site says, and only then comes the next one."""
    handle = await orders.start(
        {
            contracts.CHECK_INVENTORY: [REFUSED],
            contracts.BEGIN_COMPENSATION: [standing("compensating", reason="No.", **BEGUN)],
            contracts.REFUND_PAYMENT: [sites.status(404), DONE],
            contracts.RELEASE_INVENTORY: [sites.drop, DONE],
            contracts.CLOSE_ORDER: [sites.status(409), standing("failed", reason="No.")],
        }
    )
    await failure_of(handle)
    assert orders.asked(handle)[2:] == [
        contracts.REVERT_WAREHOUSE,
        *[contracts.REFUND_PAYMENT] * 2,
        *[contracts.RELEASE_INVENTORY] * 2,
        *[contracts.CLOSE_ORDER] * 2,
    ]


async def test_cancelled_while_it_is_undone(orders: Orders, scripted: sites.ScriptedSite):
    """O5: an order that fails is undone to its end, and has failed, though its run is cancelled
    meanwhile."""
    handle = await orders.start(
        {
            contracts.PROCESS_PAYMENT: [REFUSED],
            contracts.BEGIN_COMPENSATION: [standing("compensating", reason="No.", begun=SAGA[:3])],
            contracts.REFUND_PAYMENT: [sites.hang, DONE],
        }
    )
    await eventually(lambda: contracts.REFUND_PAYMENT in orders.asked(handle))
    await handle.cancel()
    await cancellation_is_heard(handle)
    scripted.released.set()
    error = await failure_of(handle)
    assert isinstance(error, ApplicationError)
    assert (error.message, error.type) == ("No.", "OrderFailed")
    asked = orders.asked(handle)[3:]
    assert list(dict.fromkeys(asked)) == [
        contracts.BEGIN_COMPENSATION,
        contracts.REFUND_PAYMENT,
        contracts.RELEASE_INVENTORY,
        contracts.CLOSE_ORDER,
    ]


async def test_a_run_that_another_attempt_followed(orders: Orders):
    """X2: it undoes nothing, and ends."""
    stands = standing("failed", reason="ORD-7 is in attempt 2, not 1.")
    handle = await orders.start(
        {
            contracts.CHECK_INVENTORY: [REFUSED],
            contracts.BEGIN_COMPENSATION: [stands],
            contracts.CLOSE_ORDER: [stands],
        }
    )
    error = await failure_of(handle)
    assert isinstance(error, ApplicationError)
    assert error.message == "ORD-7 is in attempt 2, not 1."
    assert orders.asked(handle) == [SAGA[0], contracts.BEGIN_COMPENSATION, contracts.CLOSE_ORDER]


async def test_a_confirmation_that_fails(orders: Orders, caplog: pytest.LogCaptureFixture):
    """O2, W8: the order stays completed; that the customer was not told is logged."""
    caplog.set_level(logging.WARNING, "temporalio.workflow")
    refusal = sites.status(409, '{"detail": "No %s."}')
    handle = await orders.start({contracts.SEND_CONFIRMATION: [refusal]})
    assert (await handle.result()).status == "completed"
    said = {record.getMessage().split(" ({")[0] for record in caplog.records}
    assert f"Order {handle.id}: No %s." in said
    status = await told(handle)
    assert (status.status, status.failure_reason) == ("completed", None)
    assert (status.events[-1].status, status.events[-1].message) == ("failed", "No %s.")


async def test_an_attempt_and_its_failure_travel_with_each_step(orders: Orders):
    """O6: the site is told the attempt, the activity where to fail."""
    handle = await orders.start(attempt=3, fail_at="payment")
    await failure_of(handle)
    assert orders.asked(handle)[:4] == [*SAGA[:3], contracts.BEGIN_COMPENSATION]
    [said] = orders.details(handle, contracts.BEGIN_COMPENSATION)
    assert said["reason"] == "injected failure at payment"
    assert orders.attempts(handle) == {3}
