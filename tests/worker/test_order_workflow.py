"""The workflow of an order on a real Temporal server, with a scripted site.

tests/orders/test_saga*.py has the same with the site itself.
"""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from tests.worker import sites
from tests.worker.sites import eventually, standing
from worker import contracts
from worker.orders.activities import OrderActivities
from worker.orders.workflows import OrderWorkflow
from worker.site import Site

SAGA = contracts.saga_step_names()
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
        """Start a small order, or with `needs_approval` a large one."""
        ref = str(uuid.uuid4())
        sites.script_order(self._site, ref, answers or {})
        given = {"attempt": 1, "needs_approval": False, "steps": SAGA, **order}
        return await self._client.start_workflow(
            contracts.ORDER_WORKFLOW,
            contracts.Order(order=ref, order_id="ORD-7", **given),
            id=ref,
            task_queue=self.queue,
            result_type=contracts.OrderResult,
        )

    def asked(self, handle: WorkflowHandle[Any, Any]) -> list[str]:
        """The steps that the workflow asked the site for, in order."""
        return [
            request.path.rpartition("/")[2]
            for request in self._site.requests
            if request.path.startswith(f"/orders/{handle.id}/")
        ]

    def attempts(self, handle: WorkflowHandle[Any, Any]) -> set[int]:
        """The attempts that the requests of the order named."""
        return {
            request.json["attempt"]
            for request in self._site.requests
            if request.path.startswith(f"/orders/{handle.id}/")
        }

    def details(self, handle: WorkflowHandle[Any, Any], step: str) -> list[dict[str, Any]]:
        """The details in each request for a step."""
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


async def told(handle: WorkflowHandle[Any, Any]) -> contracts.OrderStatus:
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


async def test_steps_and_undoes_are_scheduled_with_their_timeouts_and_retries(orders: Orders):
    """O2, O5, W6: each step with 30 s and each undo with 60 s, on the workflow's queue and retried
    without limit. The undoes come in reverse."""
    completed = await orders.start(needs_approval=True)
    await eventually(lambda: orders.asked(completed))
    await completed.signal(contracts.APPROVE_ORDER, "good customer")
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


async def test_a_completed_order_returns_and_shows_each_step(orders: Orders):
    """O2, O3: with the site's answer to each step, in the result and in `get_status`."""
    handle = await orders.start()
    assert await handle.result() == contracts.OrderResult(
        "ORD-7",
        "completed",
        "Order processed successfully",
        payment=contracts.PaymentResult("paid", "TXN-1"),
        inventory=contracts.ReservationResult("reserved", "RES-1"),
        delivery=contracts.DeliveryResult("sent", "TRACK-1", "2026-01-05"),
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


async def test_a_run_carries_out_the_steps_that_it_began_with(orders: Orders):
    """O2: a step that the product has in addition changes nothing."""
    handle = await orders.start(steps=SAGA[:3])
    result = await handle.result()
    assert (result.status, result.delivery) == ("completed", None)
    ends = [contracts.COMPLETE_ORDER, contracts.SEND_CONFIRMATION]
    assert orders.asked(handle) == [*SAGA[:3], *ends]
    assert (await told(handle)).steps_completed == [*SAGA[:3], contracts.SEND_CONFIRMATION]


async def test_a_timer_of_the_run_measures_the_longest_wait(orders: Orders):
    """O1, O4: as long as the site says, up to thirty days."""
    left = contracts.LONGEST_APPROVAL_SECONDS
    handle = await orders.start(
        {contracts.AWAIT_APPROVAL: [standing("pending", seconds_left=left)]}, needs_approval=True
    )
    async with asyncio.timeout(40):
        while not (timers := await timers_of(handle)):
            await asyncio.sleep(0.05)
    assert timers == [timedelta(days=30)]
    assert (await told(handle)).status == "pending"
    assert orders.details(handle, contracts.AWAIT_APPROVAL) == [{}]
    await handle.terminate()


async def timers_of(handle: WorkflowHandle[Any, Any]) -> list[timedelta]:
    """The timers that the run started, in order."""
    return [
        event.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta()
        for event in (await handle.fetch_history()).events
        if event.HasField("timer_started_event_attributes")
    ]


async def test_a_signal_makes_the_workflow_ask_the_site(orders: Orders):
    """O3: without a verdict in the request. The workflow asks until the order is no longer pending,
    and its queries return the site's answer."""
    answers = [standing("pending"), standing("running", "APPROVED", "by another")]
    handle = await orders.start({contracts.SETTLE_APPROVAL: answers}, needs_approval=True)
    await eventually(lambda: orders.asked(handle))
    assert await handle.query(OrderWorkflow.get_approval_status) == "pending"
    await handle.signal(contracts.REJECT_ORDER, "first")
    await eventually(lambda: contracts.SETTLE_APPROVAL in orders.asked(handle))
    await handle.signal(contracts.APPROVE_ORDER, "second")
    assert (await handle.result()).status == "completed"
    assert orders.details(handle, contracts.SETTLE_APPROVAL) == [{}, {}]
    assert await handle.query(OrderWorkflow.get_approval_status) == "approved"
    assert await handle.query(OrderWorkflow.get_approval_reason) == "by another"


async def test_a_flood_of_signals_asks_the_site_once_a_second(orders: Orders):
    """O3, X11: at most, however many signals come."""
    handle = await orders.start(
        {contracts.SETTLE_APPROVAL: [standing("pending")]}, needs_approval=True
    )
    await eventually(lambda: orders.asked(handle))
    began = time.monotonic()
    while time.monotonic() - began < 3:
        await handle.signal(contracts.APPROVE_ORDER, "mine")
    seconds = time.monotonic() - began
    asked = len(orders.details(handle, contracts.SETTLE_APPROVAL))
    assert 1 <= asked <= seconds + 1
    await handle.terminate()


ODD = Payload(metadata={"encoding": b"odd"}, data=b"\xff")


@pytest.mark.parametrize(
    "arguments", [[], [None], [7], [["a", None]], ["a", {"more": 1}], [RawValue(ODD)]], ids=str
)
@pytest.mark.parametrize("name", [contracts.APPROVE_ORDER, "any other"])
async def test_a_signal_of_any_shape_makes_the_workflow_ask_the_site(
    name: str, arguments: list[Any], orders: Orders
):
    """O3: any name and any arguments, even ones that nobody can decode; the order goes on."""
    handle = await orders.start(needs_approval=True)
    await eventually(lambda: orders.asked(handle))
    await handle.signal(name, args=arguments)
    assert (await handle.result()).status == "completed"
    assert orders.details(handle, contracts.SETTLE_APPROVAL) == [{}]


async def test_a_signal_after_the_decision_changes_nothing(orders: Orders):
    """O3: the workflow does not ask the site about it."""
    handle = await orders.start(
        {contracts.CHECK_INVENTORY: [sites.hang]},
        needs_approval=True,
    )
    await eventually(lambda: orders.asked(handle))
    await handle.signal(contracts.APPROVE_ORDER, "good customer")
    await eventually(lambda: contracts.CHECK_INVENTORY in orders.asked(handle))
    await handle.signal(contracts.REJECT_ORDER, "late")
    assert await handle.query(OrderWorkflow.get_approval_status) == "approved"
    assert await handle.query(OrderWorkflow.get_approval_reason) == "good customer"
    assert len(orders.details(handle, contracts.SETTLE_APPROVAL)) == 1
    await handle.terminate()


async def test_the_end_of_the_window_ends_the_run(orders: Orders):
    """O4: after the seconds that the site said, the workflow asks again. It asks once more if the
    window is still open by the site's clock."""
    handle = await orders.start(
        {
            contracts.AWAIT_APPROVAL: [standing("pending", seconds_left=1)],
            contracts.SETTLE_APPROVAL: [
                standing("pending", seconds_left=1),
                standing("cancelled", "EXPIRED", "approval timed out"),
            ],
        },
        needs_approval=True,
    )
    assert await handle.result() == contracts.OrderResult(
        "ORD-7", "cancelled", "approval timed out"
    )
    settled = [contracts.SETTLE_APPROVAL] * 2
    assert orders.asked(handle) == [contracts.AWAIT_APPROVAL, *settled]
    assert orders.details(handle, contracts.SETTLE_APPROVAL) == [{}, {}]
    assert await handle.query(OrderWorkflow.get_approval_status) == "expired"


async def test_a_reason_is_made_storable(orders: Orders):
    """O5: the site would refuse a long text, or one that no database stores, at every attempt."""
    text = "a \0 \ud83d ü \U0001f600" + "x" * 900
    refusal = sites.status(409, json.dumps({"detail": text}))
    handle = await orders.start({contracts.CHECK_INVENTORY: [refusal]})
    await failure_of(handle)
    [said] = orders.details(handle, contracts.BEGIN_COMPENSATION)
    assert said["reason"] == "a ? ? ü \U0001f600" + "x" * 900


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
        # An earlier run did more steps than this one.
        (
            contracts.CHECK_INVENTORY,
            SAGA,
            [contracts.REVERT_WAREHOUSE, contracts.REFUND_PAYMENT, contracts.RELEASE_INVENTORY],
        ),
    ],
)
async def test_the_steps_on_the_record_are_undone_in_reverse(
    step: str, begun: list[str], undone: list[str], orders: Orders
):
    """O5: and nothing else is undone. The run fails with the reason on the record."""
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
    """O5: after every error; only then the next undo begins."""
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


async def test_a_cancellation_does_not_interrupt_the_undoing(
    orders: Orders, scripted: sites.ScriptedSite
):
    """O5: every step is undone, and the order ends as failed."""
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


async def test_a_run_of_an_ended_attempt_undoes_nothing(orders: Orders):
    """X2: the run fails with the reason that the site gives."""
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


async def test_an_order_stays_completed_without_its_confirmation(
    orders: Orders, caplog: pytest.LogCaptureFixture
):
    """O2, W8: the log says that the customer got no confirmation."""
    caplog.set_level(logging.WARNING, "temporalio.workflow")
    refusal = sites.status(409, '{"detail": "No %s."}')
    handle = await orders.start({contracts.SEND_CONFIRMATION: [refusal]})
    assert (await handle.result()).status == "completed"
    said = {record.getMessage().split(" ({")[0] for record in caplog.records}
    assert f"Order {handle.id!r}: No %s." in said
    status = await told(handle)
    assert (status.status, status.failure_reason) == ("completed", None)
    assert (status.events[-1].status, status.events[-1].message) == ("failed", "No %s.")


async def test_each_step_carries_the_attempt_and_its_injected_failure(orders: Orders):
    """O6: the attempt for the site, the failure for the activity."""
    handle = await orders.start(attempt=3, fail_at="payment")
    await failure_of(handle)
    assert orders.asked(handle)[:4] == [*SAGA[:3], contracts.BEGIN_COMPENSATION]
    [said] = orders.details(handle, contracts.BEGIN_COMPENSATION)
    assert said["reason"] == "injected failure at payment"
    assert orders.attempts(handle) == {3}
