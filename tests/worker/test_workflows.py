"""The workflow on a real Temporal server, its activities against a real HTTP server."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ActivityError, ApplicationError, RetryState
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from tests.worker import sites
from tests.worker.sites import eventually
from worker import contracts
from worker.expenses.activities import ExpenseActivities
from worker.expenses.workflows import RETRIES, SampleExpenseWorkflow
from worker.site import Site


class Expenses:
    """Starts expenses on a task queue of its own."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.queue = str(uuid.uuid4())

    @contextlib.asynccontextmanager
    async def worked(self, activities: list[Any], **options: Any) -> AsyncIterator[None]:
        async with Worker(
            self.client,
            task_queue=self.queue,
            workflows=[SampleExpenseWorkflow, ShortWait],
            activities=activities,
            max_cached_workflows=0,
            graceful_shutdown_timeout=timedelta(seconds=5),
            **options,
        ):
            yield

    async def start(
        self, expense_id: str, workflow: str = contracts.EXPENSE_WORKFLOW
    ) -> WorkflowHandle[Any, str]:
        return await self.client.start_workflow(
            workflow,
            expense_id,
            id=f"expense_{expense_id}_{self.queue}",
            task_queue=self.queue,
            result_type=str,
        )

    async def decide(self, request: sites.Request, decision: str) -> None:
        await self.client.get_async_activity_handle(task_token=request.task_token).complete(
            decision
        )


@workflow.defn(sandboxed=False)
class ShortWait:
    """The product's wait with a shorter attempt: ten minutes are too long to test."""

    @workflow.run
    async def run(self, expense_id: str) -> str:
        return await workflow.execute_activity(
            contracts.WAIT_FOR_DECISION,
            expense_id,
            result_type=str,
            start_to_close_timeout=timedelta(seconds=2),
            retry_policy=RETRIES,
        )


@pytest.fixture
def expenses(client: Client) -> Expenses:
    return Expenses(client)


@pytest.fixture
async def worked(expenses: Expenses, site: Site) -> AsyncIterator[Expenses]:
    """Expenses whose queue a worker with the product's own activities serves."""
    async with expenses.worked(ExpenseActivities(site).all()):
        yield expenses


async def registration(
    scripted: sites.ScriptedSite, expense_id: str, number: int = 1
) -> sites.Request:
    """The registration of an expense's `number`-th attempt to wait."""
    requests = await eventually(
        lambda: scripted.requests_to("/registerCallback", expense_id)[number - 1 :]
    )
    return requests[0]


async def events(handle: WorkflowHandle[Any, str], kind: str) -> list[Any]:
    """The attributes of the run's events of one kind, in order."""
    number = EventType.Value(f"EVENT_TYPE_{kind}")
    history = await handle.fetch_history()
    return [
        getattr(event, event.WhichOneof("attributes"))
        for event in history.events
        if event.event_type == number
    ]


async def failure_of(handle: WorkflowHandle[Any, str]) -> tuple[ActivityError, ApplicationError]:
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    activity_error = caught.value.cause
    assert isinstance(activity_error, ActivityError)
    assert isinstance(activity_error.cause, ApplicationError)
    return activity_error, activity_error.cause


async def test_an_approved_expense_is_paid(worked: Expenses, scripted: sites.ScriptedSite):
    """W1, W2, W8: created, registered, approved by token, paid, in three requests."""
    handle = await worked.start("1")
    await worked.decide(await registration(scripted, "1"), "APPROVED")
    assert await handle.result() == "COMPLETED"
    assert [(r.method, r.path) for r in scripted.requests] == [
        ("GET", "/create"),
        ("POST", "/registerCallback"),
        ("GET", "/action"),
    ]
    assert {r.headers["idempotency-key"] for r in scripted.requests} == {handle.id}
    assert {r.query["id"] for r in scripted.requests} == {"1"}


async def test_three_activities_are_scheduled_with_their_timeouts_and_retries(
    worked: Expenses, scripted: sites.ScriptedSite
):
    """W1, W6: three activities on the workflow's queue, with their timeouts and retry policy."""
    handle = await worked.start("1")
    await worked.decide(await registration(scripted, "1"), "APPROVED")
    await handle.result()
    scheduled = await events(handle, "ACTIVITY_TASK_SCHEDULED")
    assert [
        (e.activity_type.name, e.start_to_close_timeout.ToTimedelta().total_seconds())
        for e in scheduled
    ] == [
        ("create_expense_activity", 10),
        ("wait_for_decision_activity", 600),
        ("payment_activity", 10),
    ]
    for attributes in scheduled:
        assert attributes.task_queue.name == worked.queue
        policy = attributes.retry_policy
        assert policy.initial_interval.ToTimedelta() == timedelta(seconds=1)
        assert policy.backoff_coefficient == 2
        assert policy.maximum_interval.ToTimedelta() == timedelta(seconds=30)
        assert policy.maximum_attempts == 0
        assert list(policy.non_retryable_error_types) == ["ValueError"]
    history = await handle.fetch_history()
    assert {EventType.Name(e.event_type).removeprefix("EVENT_TYPE_") for e in history.events} == {
        "WORKFLOW_EXECUTION_STARTED",
        "WORKFLOW_TASK_SCHEDULED",
        "WORKFLOW_TASK_STARTED",
        "WORKFLOW_TASK_COMPLETED",
        "ACTIVITY_TASK_SCHEDULED",
        "ACTIVITY_TASK_STARTED",
        "ACTIVITY_TASK_COMPLETED",
        "WORKFLOW_EXECUTION_COMPLETED",
    }


async def test_only_approved_pays(worked: Expenses, scripted: sites.ScriptedSite):
    """W2, W8: APPROVED pays; every other value does not, and returns the empty string."""
    decisions = ["APPROVED", "REJECTED", "DENIED", "PENDING", "CANCELLED", "UNKNOWN"]
    handles = [await worked.start(decision) for decision in decisions]
    for decision in decisions:
        await worked.decide(await registration(scripted, decision), decision)
    results = await asyncio.gather(*(handle.result() for handle in handles))
    assert dict(zip(decisions, results, strict=True)) == {
        "APPROVED": "COMPLETED",
        "REJECTED": "",
        "DENIED": "",
        "PENDING": "",
        "CANCELLED": "",
        "UNKNOWN": "",
    }
    assert [r.query["id"] for r in scripted.requests_to("/action")] == ["APPROVED"]


async def test_any_worker_with_the_three_activities_serves(expenses: Expenses):
    """W1: the workflow calls these three names and nothing else."""
    called: list[tuple[str, str]] = []

    @activity.defn(name="create_expense_activity")
    async def create(expense_id: str) -> None:
        called.append(("create", expense_id))

    @activity.defn(name="wait_for_decision_activity")
    async def wait(expense_id: str) -> str:
        called.append(("wait", expense_id))
        return "APPROVED"

    @activity.defn(name="payment_activity")
    async def pay(expense_id: str) -> None:
        called.append(("pay", expense_id))

    async with expenses.worked([create, wait, pay]):
        handle = await expenses.start("1")
        assert await handle.result() == "COMPLETED"
    assert called == [("create", "1"), ("wait", "1"), ("pay", "1")]


async def test_a_refusal_at_any_step_fails_the_run_once(
    worked: Expenses, scripted: sites.ScriptedSite
):
    """W2, W4, W5, W8: a refusal at any step fails the run once, and its text reaches the caller."""
    scripted.script("/create", "ERROR:ID_ALREADY_EXISTS", expense_id="create")
    scripted.script("/registerCallback", "ERROR:INVALID_STATE", expense_id="wait")
    scripted.script("/status", "CREATED", expense_id="wait")
    scripted.script("/registerCallback", "ERROR:INVALID_STATE", expense_id="pay")
    scripted.script("/status", "APPROVED", expense_id="pay")
    scripted.script("/action", "ERROR:INSUFFICIENT_FUNDS", expense_id="pay")
    seen = {}
    for step in ("create", "wait", "pay"):
        activity_error, error = await failure_of(await worked.start(step))
        assert activity_error.retry_state == RetryState.NON_RETRYABLE_FAILURE
        assert error.type == "SiteRefused"
        paths = [r.path for r in scripted.requests if r.query["id"] == step]
        seen[activity_error.activity_type] = (error.message, paths)
    assert seen == {
        "create_expense_activity": ("ERROR:ID_ALREADY_EXISTS", ["/create"]),
        "wait_for_decision_activity": (
            "register callback failed status: ERROR:INVALID_STATE",
            ["/create", "/registerCallback", "/status"],
        ),
        "payment_activity": (
            "ERROR:INSUFFICIENT_FUNDS",
            ["/create", "/registerCallback", "/status", "/action"],
        ),
    }


async def test_a_validation_status_fails_the_run_once(
    worked: Expenses, scripted: sites.ScriptedSite
):
    """W2, W6: at its first attempt, with the text of httpx.HTTPStatusError."""
    scripted.script("/create", sites.status(422))
    _, error = await failure_of(await worked.start("1"))
    assert error.type == "HTTPStatusError"
    assert error.message.startswith(
        "Client error '422 Unprocessable Entity' for url "
        f"'{scripted.url}/create?id=1&is_api_call=true'"
    )
    assert len(scripted.requests) == 1


async def test_each_activity_recovers_from_transient_failures(
    worked: Expenses, scripted: sites.ScriptedSite
):
    """W6, W8: automatically, in exactly as many attempts as it takes. A token in rotation (401,
    403) and a site that is being moved (404) fail no expense."""
    scripted.script("/create", sites.status(503), sites.drop, "SUCCEED", expense_id="create")
    scripted.script("/registerCallback", sites.status(429), "SUCCEED", expense_id="wait")
    scripted.script("/action", sites.status(500), "SUCCEED", expense_id="pay")
    refused = sites.status(401, "ERROR:FORBIDDEN"), sites.status(403, "ERROR:FORBIDDEN")
    scripted.script("/create", *refused, "SUCCEED", expense_id="rotated")
    scripted.script("/action", sites.status(404), "SUCCEED", expense_id="rotated")
    # Independent failures in one run.
    scripted.script("/create", sites.status(502), "SUCCEED", expense_id="mixed")
    scripted.script("/action", sites.status(408), "SUCCEED", expense_id="mixed")

    async def run(expense_id: str, registrations: int) -> tuple[list[int], list[int]]:
        handle = await worked.start(expense_id)
        request = await registration(scripted, expense_id, registrations)
        await worked.decide(request, "APPROVED")
        assert await handle.result() == "COMPLETED"
        started = await events(handle, "ACTIVITY_TASK_STARTED")
        return (
            [
                len(scripted.requests_to(path, expense_id))
                for path in ("/create", "/registerCallback", "/action")
            ],
            [attributes.attempt for attributes in started],
        )

    seen = await asyncio.gather(
        run("create", 1), run("wait", 2), run("pay", 1), run("mixed", 1), run("rotated", 1)
    )
    assert seen == [
        ([3, 1, 1], [3, 1, 1]),
        ([1, 2, 1], [1, 2, 1]),
        ([1, 1, 2], [1, 1, 2]),
        ([2, 1, 2], [2, 1, 2]),
        ([3, 1, 2], [3, 1, 2]),
    ]


@pytest.mark.parametrize("expense_id", ["", "   "])
async def test_blank_id_is_not_retried(
    expense_id: str, worked: Expenses, scripted: sites.ScriptedSite
):
    """W3, W8: a blank id fails at the first attempt, and nothing is sent."""
    handle = await worked.start(expense_id)
    activity_error, error = await failure_of(handle)
    assert activity_error.activity_type == "create_expense_activity"
    assert activity_error.retry_state == RetryState.NON_RETRYABLE_FAILURE
    assert (error.type, error.message) == ("ValueError", "expense id is empty")
    started = await events(handle, "ACTIVITY_TASK_STARTED")
    assert [attributes.attempt for attributes in started] == [1]
    assert scripted.requests == []


async def test_a_retry_after_a_lost_reply_has_the_same_key(
    worked: Expenses, scripted: sites.ScriptedSite
):
    """W6, E5: the site applied /create, but its reply was lost."""
    scripted.script("/create", sites.drop, "SUCCEED")
    handle = await worked.start("1")
    await worked.decide(await registration(scripted, "1"), "APPROVED")
    assert await handle.result() == "COMPLETED"
    assert [r.headers["idempotency-key"] for r in scripted.requests_to("/create")] == [
        handle.id,
        handle.id,
    ]


async def test_a_decision_before_the_registration_ends_the_wait(
    worked: Expenses, scripted: sites.ScriptedSite
):
    """W5: the site already has the decision, so nobody completes the activity."""
    scripted.script("/registerCallback", "ERROR:INVALID_STATE")
    results = {}
    for state in ("APPROVED", "COMPLETED", "REJECTED", "WITHDRAWN"):
        scripted.script("/status", state, expense_id=state)
        results[state] = await (await worked.start(state)).result()
    assert results == {
        "APPROVED": "COMPLETED",
        "COMPLETED": "COMPLETED",
        "REJECTED": "",
        "WITHDRAWN": "",
    }
    assert [r.query["id"] for r in scripted.requests_to("/action")] == ["APPROVED", "COMPLETED"]


async def test_the_registered_ids_complete_the_wait(worked: Expenses, scripted: sites.ScriptedSite):
    """E7, W5: without the task token."""
    handle = await worked.start("1")
    form = (await registration(scripted, "1")).form
    assert (form["workflow_id"], form["run_id"]) == (handle.id, handle.first_execution_run_id)
    by_ids = worked.client.get_async_activity_handle(
        workflow_id=form["workflow_id"], run_id=form["run_id"], activity_id=form["activity_id"]
    )
    await by_ids.complete("APPROVED")
    assert await handle.result() == "COMPLETED"


async def test_the_run_waits_unpaid_until_the_decision(
    worked: Expenses, scripted: sites.ScriptedSite
):
    """W7, W8: nothing is paid before the decision."""
    handle = await worked.start("1")
    request = await registration(scripted, "1")
    await asyncio.sleep(1)
    description = await handle.describe()
    assert [p.activity_type.name for p in description.raw_description.pending_activities] == [
        "wait_for_decision_activity"
    ]
    assert scripted.requests_to("/action") == []
    await worked.decide(request, "APPROVED")
    assert await handle.result() == "COMPLETED"


async def test_the_attempt_after_a_timeout_registers_its_own_token(
    worked: Expenses, scripted: sites.ScriptedSite
):
    """W7: the expense still waits; the old token completes nothing, and the new one does."""
    handle = await worked.start("1", "ShortWait")
    first = await registration(scripted, "1")
    second = await registration(scripted, "1", 2)
    assert first.task_token != second.task_token
    with pytest.raises(RPCError) as caught:
        await worked.decide(first, "REJECTED")
    assert caught.value.status is RPCStatusCode.NOT_FOUND
    await worked.decide(second, "APPROVED")
    assert await handle.result() == "APPROVED"
    # The ids of the activity stay the same for all attempts.
    del first.form["task_token"], second.form["task_token"]
    assert first.form == second.form


async def test_waiting_holds_no_slot(expenses: Expenses, site: Site, scripted: sites.ScriptedSite):
    """W7: with a single slot, five expenses wait at the same time."""
    ids = ["1", "2", "3", "4", "5"]
    async with expenses.worked(ExpenseActivities(site).all(), max_concurrent_activities=1):
        handles = [await expenses.start(expense_id) for expense_id in ids]
        registrations = [await registration(scripted, expense_id) for expense_id in ids]
        assert scripted.requests_to("/action") == []
        for request in registrations:
            await expenses.decide(request, "APPROVED")
        assert [await handle.result() for handle in handles] == ["COMPLETED"] * 5


async def test_a_decision_without_a_worker_reaches_the_next_worker(
    expenses: Expenses, site: Site, scripted: sites.ScriptedSite
):
    """W7: a wait survives its worker."""
    activities = ExpenseActivities(site).all()
    async with expenses.worked(activities):
        handle = await expenses.start("1")
        request = await registration(scripted, "1")
    await expenses.decide(request, "APPROVED")
    assert scripted.requests_to("/action") == []
    async with expenses.worked(activities):
        assert await handle.result() == "COMPLETED"
    assert len(scripted.requests_to("/registerCallback")) == 1


async def test_the_log_names_expense_and_step_and_no_token(
    worked: Expenses, scripted: sites.ScriptedSite, caplog: pytest.LogCaptureFixture
):
    """W8, E10: of the workflow and of each activity."""
    caplog.set_level(logging.INFO)

    def said(logger: str, handle: WorkflowHandle[Any, str]) -> list[str]:
        return [
            record.getMessage().split(" ({")[0]
            for record in caplog.records
            if record.name == logger and handle.id in record.getMessage()
        ]

    approved, rejected = await worked.start("50%d off"), await worked.start("no")
    for handle, expense_id, decision in (
        (approved, "50%d off", "APPROVED"),
        (rejected, "no", "REJECTED"),
    ):
        request = await registration(scripted, expense_id)
        await eventually(lambda handle=handle: len(said("temporalio.activity", handle)) == 2)
        await worked.decide(request, decision)
        await handle.result()
        assert request.form["task_token"] not in caplog.text
    assert said("temporalio.workflow", approved) == [
        "Expense '50%d off': decision 'APPROVED'",
        "Expense '50%d off': paid",
    ]
    assert said("temporalio.workflow", rejected) == ["Expense 'no': decision 'REJECTED'"]
    assert said("temporalio.activity", approved) == [
        "Expense '50%d off' created",
        "Expense '50%d off' waits for a decision",
        "Expense '50%d off' paid",
    ]
    assert said("temporalio.activity", rejected) == [
        "Expense 'no' created",
        "Expense 'no' waits for a decision",
    ]
