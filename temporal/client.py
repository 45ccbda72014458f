"""The connection to Temporal, and the calls that change something there.

Errors are classified by gRPC status and detail type, never by message. A call that may or may not
have been applied raises Unreachable. The caller tries again, and the next attempt asks the server
what happened.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence, Set
from typing import Any

from temporalio import common
from temporalio.api.common.v1 import Payload, WorkflowExecution
from temporalio.api.enums.v1 import EventType, WorkflowExecutionStatus
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
)
from temporalio.client import Client, WorkflowHandle
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RetryConfig, RPCError, RPCStatusCode

from temporal import addresses
from temporal.outcomes import Outcome
from worker import contracts

CALL_SECONDS = 2.0

# Without these limits the SDK repeats a call to a dead server for 9 s; rpc_timeout counts per
# attempt.
_RETRIES = RetryConfig(max_retries=2, max_elapsed_time_millis=2000)
_RUNNING = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
_COMPLETED = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED
_CANCELED = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_CANCELED
_PAUSED = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED
_ENDED_UNANSWERED = (
    EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED,
    EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT,
    EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED,
)
_SILENT = (
    RPCStatusCode.CANCELLED,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.UNAVAILABLE,
)

Description = DescribeWorkflowExecutionResponse


class Unreachable(Exception):
    """The call had no certain answer, or its workflow cannot take it yet; try again.

    It cannot while the workflow is paused, is not started or has not come to the wait. `down` is
    True where the server did not answer at all, so that others need not ask now.
    `status` is the server's answer, None where it gave none.
    """

    def __init__(
        self, text: str, *, down: bool = True, status: RPCStatusCode | None = None
    ) -> None:
        self.down = down
        self.status = status
        super().__init__(text)


class UnknownNamespace(Unreachable):
    """The server has another namespace, or was wiped: a configuration error, not an answer."""

    def __init__(self) -> None:
        super().__init__(
            "Temporal does not know the namespace; check TEMPORAL_ADDRESS and TEMPORAL_NAMESPACE.",
            down=False,
        )


@contextlib.asynccontextmanager
async def bounded(seconds: float | None = None) -> AsyncIterator[None]:
    """Give the calls inside `seconds`, :data:`CALL_SECONDS` by default. Raises Unreachable."""
    try:
        async with asyncio.timeout(CALL_SECONDS if seconds is None else seconds):
            yield
    except RPCError as error:
        raise _unanswered(error) from error
    except (RuntimeError, TimeoutError) as error:
        raise Unreachable("Temporal does not answer.") from error


def connect_options() -> dict[str, Any]:
    """Return the arguments for `Client.connect`, from `TEMPORAL_*` and TOML profiles (envconfig).

    Raises ValueError where a variable or a profile cannot be read.
    """
    try:
        options: dict[str, Any] = dict(ClientConfig.load_client_connect_config())
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"The TEMPORAL_* settings cannot be read: {error}") from error
    options.setdefault("target_host", contracts.TEMPORAL_ADDRESS)
    return options


class Temporal:
    """Bounded calls over one connection, which the first call makes.

    Make one per process and event loop, after any fork. Making it connects to nothing.
    """

    def __init__(self) -> None:
        self._client: Client | None = None
        self._connecting: asyncio.Task[Client] | None = None

    async def client(self) -> Client:
        """Return the connected client. Raises Unreachable."""
        if self._client is None:
            if self._connecting is None or self._connecting.done():
                self._connecting = asyncio.create_task(_connect())
                # Its callers may have given up meanwhile.
                self._connecting.add_done_callback(
                    lambda task: task.cancelled() or task.exception()
                )
            # All who wait share one attempt.
            self._client = await asyncio.shield(self._connecting)
        return self._client

    async def describe(self, workflow_id: str, run_id: str = "") -> Description | None:
        """Describe the workflow's current run, or the run with this id.

        None where the server knows no such run, or no longer (retention). Raises Unreachable.
        """
        client = await self.client()
        request = DescribeWorkflowExecutionRequest(
            namespace=client.namespace,
            execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
        )
        try:
            async with bounded():
                # The SDK's own describe() fails on the status of a paused workflow.
                return await client.workflow_service.describe_workflow_execution(
                    request, retry=True
                )
        except Unreachable as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise

    async def history(self, workflow_id: str, run_id: str) -> list[HistoryEvent]:
        """Return the events of a run, oldest first. Raises Unreachable."""
        handle = (await self.client()).get_workflow_handle(workflow_id, run_id=run_id)
        async with bounded():
            return [event async for event in handle.fetch_history_events()]

    async def encoded(self, *values: Any) -> list[Payload]:
        """Return the values as this site sends them.

        Compare payloads, and decode none: what another client wrote may not be readable here.
        """
        return await (await self.client()).data_converter.encode(values)

    async def has_memo(self, description: Description, memo: dict[str, Any]) -> bool:
        """Return whether the described run has exactly this memo."""
        wanted = dict(zip(memo, await self.encoded(*memo.values()), strict=True))
        return wanted == dict(description.workflow_execution_info.memo.fields)

    async def complete_activity(self, address: addresses.Address, value: str) -> Outcome:
        """Complete the activity that waits at `address` with `value` (requirements E9).

        The token first; where the server does not know it, by ids, after asking what became of
        the activity. Raises Unreachable.
        """
        try:
            await self._complete(value, task_token=address.token)
        except UnknownNamespace:
            # The token has the namespace's id, which is another after the server was wiped.
            if not address.workflow_id:
                raise
        except Unreachable as error:
            if error.status is RPCStatusCode.INVALID_ARGUMENT and not address.workflow_id:
                return Outcome.DEAD
            if error.status not in (RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.NOT_FOUND):
                raise
        else:
            return Outcome.DELIVERED
        return await self._complete_by_ids(address, value)

    async def complete_wait(
        self, workflow_id: str, activity_type: str, argument: str, value: str, *, started: bool
    ) -> Outcome:
        """Complete the activity of this type and argument, though nobody registered its address.

        A server or a worker that is killed may lose the task before it registers. No attempt
        follows until the lost one times out, minutes later. By the argument the wait is not
        confused with a wait of another run, which may use the workflow id by now (requirements
        X7). `started` is False where the start of the workflow was still under way when the caller
        decided. Raises Unreachable.
        """
        description = await self.describe(workflow_id)
        if description is None:
            return _not_there(started=started)
        wanted = await self.encoded(argument)
        waits = {
            scheduled.activity_id
            for event in await self.history(workflow_id, _run_id(description))
            if (scheduled := event.activity_task_scheduled_event_attributes).activity_type.name
            == activity_type
            and list(scheduled.input.payloads) == wanted
        }
        return await self._complete_in(description, waits, value)

    async def start_workflow(
        self,
        workflow: str,
        argument: Any,
        *,
        workflow_id: str,
        queue: str,
        exist_ok: bool = True,
        memo: dict[str, Any] | None = None,
    ) -> Outcome:
        """Start a workflow under its id; start it again where the last run failed.

        ALREADY_COMPLETED where a run under the id was completed or (unless `exist_ok`) still runs.
        A `memo` distinguishes the runs under one id: another run that was completed is a CONFLICT,
        and another run that has not ended raises Unreachable. Raises Unreachable.
        """
        client = await self.client()
        join = exist_ok and memo is None
        try:
            async with bounded():
                await client.start_workflow(
                    workflow,
                    argument,
                    id=workflow_id,
                    task_queue=queue,
                    memo=memo,
                    id_reuse_policy=common.WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                    id_conflict_policy=common.WorkflowIDConflictPolicy.USE_EXISTING
                    if join
                    else common.WorkflowIDConflictPolicy.FAIL,
                )
        except WorkflowAlreadyStartedError:
            return (
                await self._started_before(workflow_id, memo) if memo else Outcome.ALREADY_COMPLETED
            )
        return Outcome.DELIVERED

    async def signal_workflow(
        self,
        workflow_id: str,
        signal: str,
        argument: str,
        *,
        memo: dict[str, Any],
        started: bool,
    ) -> Outcome:
        """Signal the run with this memo, at least once; OBSOLETE where it has completed or was
        cancelled.

        `started` is False where the start of the run was still under way when the caller decided:
        a run that is not there is then Unreachable. Raises Unreachable.
        """
        return await self._call_run(
            workflow_id, memo, started, lambda handle: handle.signal(signal, argument)
        )

    async def cancel_workflow(
        self, workflow_id: str, *, memo: dict[str, Any], started: bool
    ) -> Outcome:
        """Ask the run with this memo to cancel itself; otherwise as :meth:`signal_workflow`."""
        return await self._call_run(workflow_id, memo, started, lambda handle: handle.cancel())

    async def _started_before(self, workflow_id: str, memo: dict[str, Any]) -> Outcome:
        """Return ALREADY_COMPLETED where the run under this id has this memo, and CONFLICT where
        another run has completed. Raises Unreachable."""
        description = await self.describe(workflow_id)
        if description is not None:
            if await self.has_memo(description, memo):
                return Outcome.ALREADY_COMPLETED
            if description.workflow_execution_info.status == _COMPLETED:
                return Outcome.CONFLICT
        # If that run has failed meanwhile, its id is free and the next attempt starts the workflow.
        raise Unreachable("Another run under its workflow id has not ended.", down=False)

    async def _call_run(
        self,
        workflow_id: str,
        memo: dict[str, Any],
        started: bool,
        call: Callable[[WorkflowHandle[Any, Any]], Awaitable[None]],
    ) -> Outcome:
        # Described first: a closed workflow accepts a cancellation, and the id may serve another
        # run.
        description = await self.describe(workflow_id)
        if description is None or not await self.has_memo(description, memo):
            return _not_there(started=started)
        if not _is_running(description):
            finished = description.workflow_execution_info.status in (_COMPLETED, _CANCELED)
            return Outcome.OBSOLETE if finished else Outcome.UNDELIVERABLE
        handle = (await self.client()).get_workflow_handle(workflow_id, run_id=_run_id(description))
        # NOT_FOUND: the run ended since the description. The next attempt asks.
        async with bounded():
            await call(handle)
        return Outcome.DELIVERED

    async def _complete(self, value: str, **where: Any) -> None:
        handle = (await self.client()).get_async_activity_handle(**where)
        async with bounded():
            await handle.complete(value)

    async def _complete_by_ids(self, address: addresses.Address, value: str) -> Outcome:
        workflow_id, activity_id = address.workflow_id, address.activity_id
        # Without its run, the ids might name another activity by now.
        if not (workflow_id and address.run_id and activity_id):
            return Outcome.UNDELIVERABLE
        # The current run: after a reset it is not the run that registered.
        description = await self.describe(workflow_id)
        if description is None or not await self._is_same_chain(description, address.run_id):
            return Outcome.UNDELIVERABLE
        return await self._complete_in(description, {activity_id}, value)

    async def _complete_in(
        self, description: Description, activity_ids: Set[str], value: str
    ) -> Outcome:
        """Complete the activity with one of these ids, or return how it ended."""
        workflow_id = description.workflow_execution_info.execution.workflow_id
        run_id = _run_id(description)
        running = _is_running(description)
        # A closed workflow still lists the activities that waited when it closed.
        for activity in description.pending_activities if running else ():
            if activity.activity_id in activity_ids:
                # NOT_FOUND: it was completed since the description. The next attempt asks.
                await self._complete(
                    value,
                    workflow_id=workflow_id,
                    run_id=run_id,
                    activity_id=activity.activity_id,
                )
                return Outcome.DELIVERED
        history = await self.history(workflow_id, run_id)
        outcome = _outcome_in(history, activity_ids, await self.encoded(value))
        if outcome is None and running:
            # The workflow has not come to the wait, for example after a reset. The wait registers
            # then, and its registration is answered with the decision.
            raise Unreachable("The workflow does not wait for this activity now.", down=False)
        return outcome or Outcome.UNDELIVERABLE

    async def _is_same_chain(self, current: Description, run_id: str) -> bool:
        """Return whether the current run registered, or stems by a reset from the run that did.

        Another run may have been started later under the same workflow id.
        """
        if run_id == _run_id(current):
            return True
        workflow_id = current.workflow_execution_info.execution.workflow_id
        registered = await self.describe(workflow_id, run_id)
        return registered is not None and _first_run_id(registered) == _first_run_id(current)


async def _connect() -> Client:
    try:
        options = connect_options()
        async with asyncio.timeout(CALL_SECONDS):
            return await Client.connect(**options, retry_config=_RETRIES)
    except ValueError as error:
        raise Unreachable(f"The address of Temporal or its settings are wrong: {error}") from error
    except (RuntimeError, RPCError, TimeoutError) as error:
        raise Unreachable(f"Temporal at {options['target_host']} does not answer.") from error


def _not_there(*, started: bool) -> Outcome:
    """Return the outcome where the run is unknown. Raises Unreachable while the run may still be
    started."""
    if not started:
        raise Unreachable("The workflow is not started yet.", down=False)
    return Outcome.UNDELIVERABLE


def _is_running(description: Description) -> bool:
    """Return whether the run goes on. Raises Unreachable where somebody paused the workflow."""
    status = description.workflow_execution_info.status
    if status == _PAUSED:
        raise Unreachable("The workflow is paused in Temporal.", down=False)
    return status == _RUNNING


def _outcome_in(
    history: Sequence[HistoryEvent], activity_ids: Set[str], value: Sequence[Payload]
) -> Outcome | None:
    """Return how the activity with one of these ids ended; None where it has not ended."""
    scheduled: set[int] = set()
    for event in history:
        if event.activity_task_scheduled_event_attributes.activity_id in activity_ids:
            scheduled.add(event.event_id)
        elif _scheduled_event_id(event) in scheduled:
            if event.event_type in _ENDED_UNANSWERED:
                return Outcome.UNDELIVERABLE
            if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                result = event.activity_task_completed_event_attributes.result
                same = list(result.payloads) == value
                return Outcome.ALREADY_COMPLETED if same else Outcome.CONFLICT
    return None


def _scheduled_event_id(event: HistoryEvent) -> int:
    """Return the id of the event that scheduled the activity whose end `event` records; 0 for other
    events."""
    kind = event.WhichOneof("attributes")
    return int(getattr(getattr(event, kind), "scheduled_event_id", 0)) if kind else 0


def _run_id(description: Description) -> str:
    return description.workflow_execution_info.execution.run_id


def _first_run_id(description: Description) -> str:
    return description.workflow_execution_info.first_run_id or _run_id(description)


def _unanswered(error: RPCError) -> Unreachable:
    if any(detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details):
        return UnknownNamespace()
    return Unreachable(
        f"Temporal answers {error.status.name}.", down=error.status in _SILENT, status=error.status
    )
