"""The one home of Temporal calls on the site.

Errors are classified by gRPC status and detail type, never by message. A call that may or may not
have been applied raises Unreachable: the caller tries again, and NOT_FOUND then asks the server
what happened.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from temporalio import common
from temporalio.api import enums
from temporalio.api.common.v1 import Payload, WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowHistoryEventFilterType,
)
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RetryConfig, RPCError, RPCStatusCode

from temporal import addresses
from temporal.outcomes import Outcome
from worker import contracts

DEFAULT_ADDRESS = "localhost:7233"
CALL_SECONDS = 2.0
# The longest time to read the signals of a run, and how many of its first events are looked at.
# Somebody who floods a run with signals can make the read neither slow nor costly.
SIGNALS_SECONDS = 1.5
SIGNALS_EVENTS = 1000
# Of a page of the visibility store, which may be another machine's.
PAGE_SECONDS = 10.0
PAGE_SIZE = 1000

# Without it the SDK repeats a call to a dead server for 9 s; rpc_timeout counts per attempt.
_RETRIES = RetryConfig(max_retries=2, max_elapsed_time_millis=2000)
_ENDED_UNANSWERED = (
    EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED,
    EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT,
    EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED,
)


class Unreachable(Exception):
    """The call had no certain answer; try again. `down` says that the server did not answer at
    all, so that others need not try now."""

    def __init__(self, text: str, *, down: bool = True) -> None:
        self.down = down
        super().__init__(text)


class Paused(Unreachable):
    """Somebody paused the workflow in Temporal."""

    def __init__(self) -> None:
        super().__init__("The workflow is paused in Temporal.", down=False)


class WorkflowFailed(Exception):
    """The workflow ended without a result; the text is its cause."""


@dataclass(frozen=True)
class OpenActivity:
    """An activity that is scheduled and not ended; `scheduled_at` is that of its last attempt."""

    id: str
    type: str
    scheduled_at: datetime


@dataclass(frozen=True)
class Run:
    """The current run of a workflow, by its id: `status` by the server's name ("running", "paused",
    "completed", "failed", "canceled", "terminated", "timed out"), what it waits for while it runs,
    and what it returned, as far as that is one of the values asked for."""

    id: str
    status: str
    waits_for: tuple[OpenActivity, ...] = ()
    returned: str | None = None
    # It runs, and waits for a signal or a timer alone: no worker has anything to do for it.
    idle: bool = False


@dataclass(frozen=True)
class Execution:
    """The current run of a workflow: its type, `status` by the server's name as in :class:`Run`,
    the highest attempt of any of its activities that began (0: none did), and why it failed or was
    terminated, where that was said. The times are UTC."""

    type: str
    status: str
    started_at: datetime
    ended_at: datetime | None
    attempt: int
    cause: str


@dataclass(frozen=True)
class Signal:
    """A signal in the history of a run. `reason` is its first argument as a text that can be
    stored, "" where that is unreadable; `sender` is the identity that the client claimed."""

    event_id: int
    name: str
    reason: str
    sender: str


@dataclass(frozen=True)
class Signals:
    """Signals of a run, oldest first. `complete` is False where Temporal did not answer in full:
    there may be more."""

    run_id: str = ""
    found: tuple[Signal, ...] = ()
    complete: bool = True


def connect_options() -> dict[str, Any]:
    """Arguments for `Client.connect`, from `TEMPORAL_*` and TOML profiles (envconfig).

    Raises ValueError where a variable or a profile cannot be read.
    """
    try:
        options: dict[str, Any] = dict(ClientConfig.load_client_connect_config())
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"The TEMPORAL_* settings cannot be read: {error}") from error
    options.setdefault("target_host", DEFAULT_ADDRESS)
    return options


class Temporal:
    """Bounded calls over one lazily made connection.

    Make one per process and event loop, after any fork; making it connects to nothing.
    """

    def __init__(self) -> None:
        self._client: Client | None = None
        self._connecting: asyncio.Task[Client] | None = None

    async def client(self) -> Client:
        """The connected client. Raises Unreachable."""
        if self._client is None:
            if self._connecting is None or self._connecting.done():
                self._connecting = asyncio.create_task(_connect())
                # Its callers may have given up meanwhile.
                self._connecting.add_done_callback(
                    lambda task: task.cancelled() or task.exception()
                )
            # One attempt answers all who wait.
            self._client = await asyncio.shield(self._connecting)
        return self._client

    async def complete_activity(self, address: addresses.Address, value: str) -> Outcome:
        """Complete the activity that waits at `address` with `value` (requirements E9).

        The token first; where the server does not know it, by ids, after asking what became of
        the activity (design rule 3). Raises Unreachable.
        """
        try:
            await self._complete(value, task_token=address.token)
        except RPCError as error:
            if error.status is RPCStatusCode.INVALID_ARGUMENT:
                if not address.workflow_id:
                    return Outcome.DEAD
            elif error.status is not RPCStatusCode.NOT_FOUND or (
                _is_unknown_namespace(error) and not address.workflow_id
            ):
                _raise_unreachable(error)
            return await self._complete_by_ids(address, value)
        return Outcome.DELIVERED

    async def complete_wait(
        self, workflow_id: str, activity_type: str, argument: str, value: str, *, started: bool
    ) -> Outcome:
        """Complete the activity of this type and argument, though nobody registered where it waits.

        A server or a worker that is killed may lose the task before it registers; no attempt does
        then until this one times out, minutes later. The argument tells the wait from that of
        another run, for which the workflow id serves by now (requirements X7). `started` is False
        where the workflow's start was still under way when this was asked for. Raises Unreachable.
        """
        description = await self._describe(workflow_id)
        if description is None:
            if not started:
                raise Unreachable("The workflow is not started yet.", down=False)
            return Outcome.UNDELIVERABLE
        waits = await self._scheduled(description, activity_type, argument)
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
        """Start a workflow under its id, anew where the last run failed; ALREADY_COMPLETED where
        one was completed, or (unless `exist_ok`) runs, under it.

        With a `memo`, which tells the runs under an id apart, another run that was completed is a
        CONFLICT, and the end of one that runs is waited for. Raises Unreachable.
        """
        client = await self.client()
        join = exist_ok and memo is None
        try:
            async with asyncio.timeout(CALL_SECONDS):
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
        except (RPCError, RuntimeError, TimeoutError) as error:
            _raise_unreachable(error)
        return Outcome.DELIVERED

    async def _started_before(self, workflow_id: str, memo: dict[str, Any]) -> Outcome:
        """Whether the run under this id is the one with this memo."""
        description = await self._describe(workflow_id)
        if await self._has_memo(description, memo):
            return Outcome.ALREADY_COMPLETED
        if description is not None and description.status is WorkflowExecutionStatus.COMPLETED:
            return Outcome.CONFLICT
        # One that has failed since leaves its id.
        raise Unreachable("Another run under its workflow id has not ended.", down=False)

    async def _has_memo(
        self, description: WorkflowExecutionDescription | None, memo: dict[str, Any]
    ) -> bool:
        # Not decoded: what another client wrote may not be readable here.
        encode = (await self.client()).data_converter.encode
        wanted = {name: (await encode([value]))[0] for name, value in memo.items()}
        return description is not None and wanted == dict(description.raw_info.memo.fields)

    async def signal_workflow(
        self,
        workflow_id: str,
        signal: str,
        argument: str,
        *,
        memo: dict[str, Any],
        started: bool,
    ) -> Outcome:
        """Signal the run with this memo, at least once; ALREADY_COMPLETED where it came to its end
        without.

        `started` is False where the start of the run was still under way when this was asked for:
        it is waited for then. Raises Unreachable.
        """
        return await self._tell(
            workflow_id, memo, started, lambda handle: handle.signal(signal, argument)
        )

    async def cancel_workflow(
        self, workflow_id: str, *, memo: dict[str, Any], started: bool
    ) -> Outcome:
        """Ask the run with this memo to cancel itself; otherwise as :meth:`signal_workflow`."""
        return await self._tell(workflow_id, memo, started, lambda handle: handle.cancel())

    async def _tell(
        self,
        workflow_id: str,
        memo: dict[str, Any],
        started: bool,
        call: Callable[[WorkflowHandle[Any, Any]], Awaitable[None]],
    ) -> Outcome:
        # Asked first: a closed workflow accepts its cancellation, and the id may serve another.
        description = await self._describe(workflow_id)
        if description is None or not await self._has_memo(description, memo):
            if not started:
                raise Unreachable("The workflow is not started yet.", down=False)
            return Outcome.UNDELIVERABLE
        if description.status is not WorkflowExecutionStatus.RUNNING:
            came_to_its_end = description.status in (
                WorkflowExecutionStatus.COMPLETED,
                WorkflowExecutionStatus.CANCELED,
            )
            return Outcome.ALREADY_COMPLETED if came_to_its_end else Outcome.UNDELIVERABLE
        handle = (await self.client()).get_workflow_handle(workflow_id, run_id=description.run_id)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await call(handle)
        except (RPCError, RuntimeError, TimeoutError) as error:
            # NOT_FOUND: it ended since the description. The next attempt asks.
            _raise_unreachable(error)
        return Outcome.DELIVERED

    async def result(self, workflow_id: str) -> Any:
        """What the workflow returned, however long it takes. Raises WorkflowFailed."""
        while True:
            try:
                return await (await self.client()).get_workflow_handle(workflow_id).result()
            except WorkflowFailureError as error:
                cause: BaseException = error
                while cause.__cause__ is not None:
                    cause = cause.__cause__
                raise WorkflowFailed(str(cause)) from error
            except (RPCError, RuntimeError, Unreachable):
                await asyncio.sleep(1)

    async def run_of(self, workflow_id: str, *, results: Sequence[str]) -> Run | None:
        """The current run under this id; None where the server knows none (any more).

        `results` are those that :attr:`Run.returned` tells from others. Raises Unreachable.
        """
        try:
            description = await self._describe(workflow_id)
        except Paused:
            return Run("", "paused")
        if description is None or description.status is None:
            return None
        status = description.status.name.lower().replace("_", " ")
        match description.status:
            case WorkflowExecutionStatus.RUNNING:
                raw = description.raw_description
                return Run(
                    description.run_id,
                    status,
                    idle=not (raw.pending_activities or raw.HasField("pending_workflow_task")),
                    waits_for=tuple(
                        OpenActivity(
                            activity.activity_id,
                            activity.activity_type.name,
                            activity.scheduled_time.ToDatetime(UTC),
                        )
                        for activity in raw.pending_activities
                    ),
                )
            case WorkflowExecutionStatus.COMPLETED:
                returned = await self._returned(description, results)
                return Run(description.run_id, status, returned=returned)
        return Run(description.run_id, status)

    async def signals_of(
        self, workflow_id: str, *, memo: dict[str, Any], names: Set[str], after: tuple[str, int]
    ) -> Signals:
        """Read the signals of these names from the history of the current run, if it has this
        memo; none where it has another.

        `after` is a run id and an event id: in that run, only later events count. Looks at the
        first :data:`SIGNALS_EVENTS` events of the run, within :data:`SIGNALS_SECONDS`. Raises
        Unreachable where Temporal does not say which run there is.
        """
        found: list[Signal] = []
        run_id, complete = "", False
        try:
            async with asyncio.timeout(SIGNALS_SECONDS):
                description = await self._describe(workflow_id)
                if description is None or not await self._has_memo(description, memo):
                    return Signals()
                run_id = description.run_id
                judged = after[1] if after[0] == run_id else 0
                handle = (await self.client()).get_workflow_handle(workflow_id, run_id=run_id)
                async for event in handle.fetch_history_events():
                    signal = event.workflow_execution_signaled_event_attributes
                    if signal.signal_name in names and event.event_id > judged:
                        reason = await self._text(signal.input.payloads)
                        found.append(
                            Signal(event.event_id, signal.signal_name, reason, signal.identity)
                        )
                    if event.event_id >= SIGNALS_EVENTS:
                        break
                complete = True
        except (RPCError, RuntimeError, TimeoutError) as error:
            if not run_id:
                _raise_unreachable(error)
        return Signals(run_id, tuple(found), complete)

    async def _text(self, arguments: Sequence[Payload]) -> str:
        """The first argument as a text that can be stored; "" where there is none to read."""
        if not arguments:
            return ""
        converter = (await self.client()).data_converter
        try:
            [value] = await converter.decode(arguments[:1])
            return contracts.storable(value)
        except Exception:  # noqa: BLE001 (another client wrote it, by whatever converter)
            return ""

    async def execution_of(self, workflow_id: str) -> Execution | None:
        """The current run under this id, whatever its type; None where the server knows none (any
        more). Raises Unreachable."""
        client = await self.client()
        request = DescribeWorkflowExecutionRequest(
            namespace=client.namespace, execution=WorkflowExecution(workflow_id=workflow_id)
        )
        try:
            async with asyncio.timeout(CALL_SECONDS):
                # Not by the SDK's handle, which cannot read the status of a paused workflow.
                described = await client.workflow_service.describe_workflow_execution(
                    request, retry=True
                )
                info = described.workflow_execution_info
                handle = client.get_workflow_handle(workflow_id, run_id=info.execution.run_id)
                events = [event async for event in handle.fetch_history_events()]
        except (RPCError, RuntimeError, TimeoutError) as error:
            if _is_unknown_workflow(error):
                return None
            _raise_unreachable(error)
        status = enums.v1.WorkflowExecutionStatus.Name(info.status)
        return Execution(
            type=info.type.name,
            status=status.removeprefix("WORKFLOW_EXECUTION_STATUS_").lower().replace("_", " "),
            started_at=info.start_time.ToDatetime(UTC),
            ended_at=info.close_time.ToDatetime(UTC) if info.HasField("close_time") else None,
            attempt=_highest_attempt(described.pending_activities, events),
            cause=_cause(events[-1]),
        )

    async def workflow_ids(self, query: str) -> AsyncIterator[list[str]]:
        """The ids of the workflows that a visibility query finds, a page at a time; one that has
        several runs may come as often. The store lags behind. Raises Unreachable."""
        found = (await self.client()).list_workflows(query, page_size=PAGE_SIZE)
        while True:
            try:
                async with asyncio.timeout(PAGE_SECONDS):
                    await found.fetch_next_page()
            except (RPCError, RuntimeError, TimeoutError) as error:
                _raise_unreachable(error)
            yield [workflow.id for workflow in found.current_page or ()]
            if found.next_page_token is None:
                return

    async def _returned(
        self, completed: WorkflowExecutionDescription, results: Sequence[str]
    ) -> str | None:
        """Which of `results` the run returned."""
        client = await self.client()
        handle = client.get_workflow_handle(completed.id, run_id=completed.run_id)
        returned = None
        try:
            async with asyncio.timeout(CALL_SECONDS):
                async for event in handle.fetch_history_events(
                    event_filter_type=WorkflowHistoryEventFilterType.CLOSE_EVENT
                ):
                    returned = event.workflow_execution_completed_event_attributes.result.payloads
        except (RPCError, RuntimeError, TimeoutError) as error:
            _raise_unreachable(error)
        for result in results:
            # Not decoded: what another client's workflow returned may not be readable here.
            if returned == await client.data_converter.encode([result]):
                return result
        return None

    async def _complete(self, value: str, **where: Any) -> None:
        """Raises RPCError where the server answered, Unreachable where it did not."""
        handle = (await self.client()).get_async_activity_handle(**where)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await handle.complete(value)
        except (RuntimeError, TimeoutError) as error:
            _raise_unreachable(error)

    async def _complete_by_ids(self, address: addresses.Address, value: str) -> Outcome:
        workflow_id, activity_id = address.workflow_id, address.activity_id
        # Without its run, the ids might name another activity by now.
        if not (workflow_id and address.run_id and activity_id):
            return Outcome.UNDELIVERABLE
        # The current run: after a reset it is not the one that registered.
        description = await self._describe(workflow_id)
        if description is None:
            return Outcome.UNDELIVERABLE
        if not await self._is_same_chain(description, address.run_id):
            return Outcome.UNDELIVERABLE
        return await self._complete_in(description, {activity_id}, value)

    async def _complete_in(
        self, description: WorkflowExecutionDescription, activity_ids: Set[str], value: str
    ) -> Outcome:
        """Complete the activity with one of these ids, or tell how it ended."""
        running = description.status is WorkflowExecutionStatus.RUNNING
        # A closed workflow still lists the activities that waited when it closed.
        pending = description.raw_description.pending_activities if running else []
        for activity in pending:
            if activity.activity_id not in activity_ids:
                continue
            try:
                await self._complete(
                    value,
                    workflow_id=description.id,
                    run_id=description.run_id,
                    activity_id=activity.activity_id,
                )
            except RPCError as error:
                # NOT_FOUND: somebody completed it since the description. The next attempt asks.
                _raise_unreachable(error)
            return Outcome.DELIVERED
        outcome = await self._outcome_in_history(description, activity_ids, value)
        if outcome is None and running:
            # The wait lies ahead, after a reset say; its registration is then told the decision.
            raise Unreachable("The workflow does not wait for this activity now.", down=False)
        return outcome or Outcome.UNDELIVERABLE

    async def _is_same_chain(self, current: WorkflowExecutionDescription, run_id: str) -> bool:
        """Whether the current run is the one that registered, or stems from it by a reset; not
        another one that was started later under the same workflow id."""
        if run_id == current.run_id:
            return True
        registered = await self._describe(current.id, run_id)
        return registered is not None and _first_run_id(registered) == _first_run_id(current)

    async def _describe(
        self, workflow_id: str, run_id: str | None = None
    ) -> WorkflowExecutionDescription | None:
        """The workflow's current run, or that run; None where the server knows none (retention)."""
        handle = (await self.client()).get_workflow_handle(workflow_id, run_id=run_id)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await handle.describe()
        except ValueError as error:  # the SDK knows no such status
            raise Paused from error
        except (RPCError, RuntimeError, TimeoutError) as error:
            if _is_unknown_workflow(error):
                return None
            _raise_unreachable(error)

    async def _scheduled(
        self, description: WorkflowExecutionDescription, activity_type: str, argument: str
    ) -> set[str]:
        """The ids of the run's activities of this type and argument."""
        # Not decoded: what another client wrote may not be readable here.
        wanted = await (await self.client()).data_converter.encode([argument])
        return {
            scheduled.activity_id
            for event in await self._history(description)
            if (scheduled := event.activity_task_scheduled_event_attributes).activity_type.name
            == activity_type
            and list(scheduled.input.payloads) == wanted
        }

    async def _outcome_in_history(
        self, description: WorkflowExecutionDescription, activity_ids: Set[str], value: str
    ) -> Outcome | None:
        """How the activity ended, read from the history; None where it has not ended."""
        scheduled: set[int] = set()
        for event in await self._history(description):
            if event.activity_task_scheduled_event_attributes.activity_id in activity_ids:
                scheduled.add(event.event_id)
            elif _scheduled_event_id(event) in scheduled:
                if event.event_type in _ENDED_UNANSWERED:
                    return Outcome.UNDELIVERABLE
                if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                    result = event.activity_task_completed_event_attributes.result
                    wanted = await (await self.client()).data_converter.encode([value])
                    same = list(result.payloads) == wanted
                    return Outcome.ALREADY_COMPLETED if same else Outcome.CONFLICT
        return None

    async def _history(self, description: WorkflowExecutionDescription) -> list[HistoryEvent]:
        client = await self.client()
        handle = client.get_workflow_handle(description.id, run_id=description.run_id)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return [event async for event in handle.fetch_history_events()]
        except (RPCError, RuntimeError, TimeoutError) as error:
            _raise_unreachable(error)


async def _connect() -> Client:
    try:
        options = connect_options()
        async with asyncio.timeout(CALL_SECONDS):
            return await Client.connect(**options, retry_config=_RETRIES)
    except ValueError as error:
        raise Unreachable(f"The address of Temporal or its settings are wrong: {error}") from error
    except (RuntimeError, RPCError, TimeoutError) as error:
        raise Unreachable(f"Temporal at {options['target_host']} does not answer.") from error


def _scheduled_event_id(event: HistoryEvent) -> int:
    """The event that scheduled the activity whose end `event` records; 0 for other events."""
    kind = event.WhichOneof("attributes")
    return int(getattr(getattr(event, kind), "scheduled_event_id", 0)) if kind else 0


def _highest_attempt(pending: Iterable[PendingActivityInfo], events: Iterable[HistoryEvent]) -> int:
    # An attempt stands in the history once the activity has ended.
    ended = [event.activity_task_started_event_attributes.attempt for event in events]
    # An attempt is counted before it begins.
    begun = [one.attempt - (not one.HasField("last_started_time")) for one in pending]
    return max([*ended, *begun])


def _cause(last: HistoryEvent) -> str:
    """What the last event of a run says of why it failed or was terminated."""
    failure = last.workflow_execution_failed_event_attributes.failure
    while failure.HasField("cause"):
        failure = failure.cause
    words = (
        failure.application_failure_info.type,
        failure.message,
        last.workflow_execution_terminated_event_attributes.reason,
    )
    return ": ".join(filter(None, words))


def _first_run_id(description: WorkflowExecutionDescription) -> str:
    info = description.raw_description.workflow_execution_info
    return info.first_run_id or description.run_id


def _is_unknown_workflow(error: Exception) -> bool:
    return (
        isinstance(error, RPCError)
        and error.status is RPCStatusCode.NOT_FOUND
        and not _is_unknown_namespace(error)
    )


def _is_unknown_namespace(error: RPCError) -> bool:
    """The server has another namespace, or was wiped: a configuration error, not an answer."""
    return any(
        detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details
    )


def _raise_unreachable(error: Exception) -> NoReturn:
    if isinstance(error, RPCError):
        if _is_unknown_namespace(error):
            raise Unreachable(
                "Temporal does not know the namespace; check TEMPORAL_ADDRESS and "
                "TEMPORAL_NAMESPACE.",
                down=False,
            ) from error
        answered = error.status not in (
            RPCStatusCode.CANCELLED,
            RPCStatusCode.DEADLINE_EXCEEDED,
            RPCStatusCode.UNAVAILABLE,
        )
        raise Unreachable(f"Temporal answers {error.status.name}.", down=not answered) from error
    raise Unreachable("Temporal does not answer.") from error
