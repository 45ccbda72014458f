"""A workflow that waits for one asynchronous activity, and the address of that activity."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from temporal.addresses import Address


@workflow.defn
class Waiting:
    """Wait for the activity: at most `attempts` attempts of `seconds` each (0: no limit)."""

    @workflow.run
    async def run(self, seconds: float, attempts: int) -> Any:
        return await workflow.execute_activity(
            "wait",
            workflow.info().workflow_id,
            start_to_close_timeout=timedelta(seconds=seconds),
            retry_policy=RetryPolicy(
                initial_interval=timedelta(milliseconds=100), maximum_attempts=attempts
            ),
        )


@dataclass
class Wait:
    """A running workflow, and the addresses of the attempts of its activity, in order."""

    handle: WorkflowHandle[Any, Any]
    addresses: asyncio.Queue[Address]

    async def address(self) -> Address:
        async with asyncio.timeout(20):
            return await self.addresses.get()


Waiter = Callable[..., Awaitable[Wait]]


class waiter:  # noqa: N801 (used as a context manager)
    """A worker for :class:`Waiting`. Entering it returns the function that starts a workflow."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue = f"waiting-{uuid.uuid4()}"
        self._addresses: dict[str, asyncio.Queue[Address]] = {}

        @activity.defn(name="wait")
        async def wait(_: str) -> None:
            info = activity.info()
            await self._addresses[info.workflow_id].put(
                Address(info.task_token, info.workflow_id, info.workflow_run_id, info.activity_id)
            )
            activity.raise_complete_async()

        self._worker = Worker(
            client,
            task_queue=self._queue,
            workflows=[Waiting],
            activities=[wait],
            workflow_runner=UnsandboxedWorkflowRunner(),
        )

    async def start(
        self,
        seconds: float = 60,
        attempts: int = 0,
        workflow_id: str | None = None,
        memo: dict[str, Any] | None = None,
    ) -> Wait:
        workflow_id = workflow_id or f"waiting-{uuid.uuid4()}"
        self._addresses[workflow_id] = asyncio.Queue()
        handle = await self._client.start_workflow(
            Waiting.run,
            args=[seconds, attempts],
            id=workflow_id,
            task_queue=self._queue,
            memo=memo,
        )
        return Wait(handle, self._addresses[workflow_id])

    async def __aenter__(self) -> Waiter:
        await self._worker.__aenter__()
        return self.start

    async def __aexit__(self, *error: Any) -> None:
        await self._worker.__aexit__(*error)
