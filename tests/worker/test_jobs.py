"""The workflow of a job and its activity, on a real Temporal server."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.common.v1 import RetryPolicy
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ActivityError, ApplicationError, RetryState
from temporalio.worker import Worker

from worker import contracts
from worker.contracts import Job, JobResult
from worker.jobs.activities import say_hello_activity
from worker.jobs.workflows import SayHelloWorkflow


@contextlib.asynccontextmanager
async def worked(client: Client, say_hello: Any = say_hello_activity) -> AsyncIterator[str]:
    """A task queue that a worker serves."""
    queue = str(uuid.uuid4())
    async with Worker(
        client,
        task_queue=queue,
        workflows=[SayHelloWorkflow],
        activities=[say_hello],
        max_cached_workflows=0,
    ):
        yield queue


async def start(client: Client, queue: str, job: Job) -> WorkflowHandle[Any, JobResult]:
    return await client.start_workflow(
        contracts.JOB_WORKFLOW,
        job,
        id=contracts.job_workflow_id(uuid.uuid4()),
        task_queue=queue,
        result_type=JobResult,
    )


async def failure_of(handle: WorkflowHandle[Any, Any]) -> tuple[RetryState | None, str | None, str]:
    """The retry state of a failed run's activity, and its error's type and message."""
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    error = caught.value.cause
    assert isinstance(error, ActivityError)
    assert isinstance(error.cause, ApplicationError)
    return error.retry_state, error.cause.type, error.cause.message


async def only(handle: WorkflowHandle[Any, Any], kind: str) -> Any:
    """The attributes of the run's one event of this kind."""
    field = f"activity_task_{kind}_event_attributes"
    events: list[HistoryEvent] = (await handle.fetch_history()).events
    [found] = [getattr(event, field) for event in events if event.HasField(field)]
    return found


async def test_a_job_is_one_activity_with_its_timeout_and_retries(client: Client):
    """J1, J3: on the workflow's queue."""
    async with worked(client) as queue:
        handle = await start(client, queue, Job("Temporal é😀 %s"))
        assert await handle.result() == JobResult(attempt=1, msg="Hello Temporal é😀 %s")
    scheduled = await only(handle, "scheduled")
    assert scheduled.activity_type.name == "say_hello_activity"
    assert scheduled.task_queue.name == queue
    assert scheduled.start_to_close_timeout.ToTimedelta() == timedelta(seconds=5)
    expected = RetryPolicy(
        backoff_coefficient=2, maximum_attempts=3, non_retryable_error_types=["ValueError"]
    )
    expected.initial_interval.FromTimedelta(timedelta(seconds=1))
    expected.maximum_interval.FromTimedelta(timedelta(seconds=100))  # the server's; never reached
    assert scheduled.retry_policy == expected


async def test_a_failed_first_attempt_succeeds_with_the_second(client: Client):
    """J3: the result says attempt 2."""
    async with worked(client) as queue:
        handle = await start(client, queue, Job("Temporal", fail_first_attempt=True))
        assert await handle.result() == JobResult(attempt=2, msg="Hello Temporal")
    assert (await only(handle, "started")).attempt == 2


async def test_the_third_failure_fails_the_run(client: Client):
    """J3: after three attempts."""
    attempts = []

    @activity.defn(name=contracts.SAY_HELLO)
    async def failing(job: Job) -> None:
        attempts.append(activity.info().attempt)
        raise RuntimeError(f"no hello to {job.msg}")

    async with worked(client, failing) as queue:
        handle = await start(client, queue, Job("Temporal"))
        assert await failure_of(handle) == (
            RetryState.MAXIMUM_ATTEMPTS_REACHED,
            "RuntimeError",
            "no hello to Temporal",
        )
    assert attempts == [1, 2, 3]


async def test_bad_input_is_not_retried(client: Client):
    """J3: an empty message fails at the first attempt."""
    async with worked(client) as queue:
        handle = await start(client, queue, Job("", fail_first_attempt=True))
        expected = (RetryState.NON_RETRYABLE_FAILURE, "ValueError", "msg is empty")
        assert await failure_of(handle) == expected
    assert (await only(handle, "started")).attempt == 1
