"""Questions to Temporal: how a run is, which signals it had, what it returned."""

import asyncio
from collections.abc import AsyncIterator, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowFailureError, WorkflowHistoryEventFilterType
from temporalio.service import RPCError

from temporal.client import Temporal, Unreachable, bounded
from worker import contracts

# The longest time to read the signals of a run, and how many of its first events are read.
# Somebody who floods a run with signals can make the read neither slow nor costly.
SIGNALS_SECONDS = 1.5
SIGNALS_EVENTS = 1000
# For a page of the visibility store, which may be on another machine.
PAGE_SECONDS = 10.0
PAGE_SIZE = 1000


class WorkflowFailed(Exception):
    """The workflow ended without a result; the text is its cause."""


@dataclass(frozen=True)
class OpenActivity:
    """An activity that is scheduled and not ended. Its last attempt was scheduled at
    `scheduled_at`."""

    id: str
    type: str
    scheduled_at: datetime


@dataclass(frozen=True)
class Run:
    """The current run of a workflow. The times are UTC.

    `status` is the server's name: "running", "paused", "completed", "failed", "canceled",
    "terminated", "timed out". A running workflow waits for the activities in `waits_for`; it is
    `idle` where it waits for a signal or a timer alone, so that no worker has anything to do for
    it. `attempt` is the highest attempt that began of the activities that have not ended; 0 where
    none did.
    """

    id: str
    type: str
    status: str
    started_at: datetime
    ended_at: datetime | None
    attempt: int
    waits_for: tuple[OpenActivity, ...] = ()
    idle: bool = False
    # The result, where it is one of those asked for.
    returned: str | None = None
    # Why the run failed or was terminated, where its history was read and says why.
    cause: str = ""


@dataclass(frozen=True)
class Signal:
    """A signal in the history of a run.

    `reason` is its first argument as a text that can be stored, "" where that is unreadable.
    `sender` is the identity that the client claimed.
    """

    event_id: int
    name: str
    reason: str
    sender: str


@dataclass(frozen=True)
class Signals:
    """Signals of a run, oldest first. `complete` is False where Temporal did not answer in full.
    Events after the first :data:`SIGNALS_EVENTS` are never read."""

    run_id: str = ""
    found: tuple[Signal, ...] = ()
    complete: bool = True


async def run_of(
    temporal: Temporal, workflow_id: str, *, results: Sequence[str] = ()
) -> Run | None:
    """Return the current run under this id; None where the server knows none, or no longer.

    With `results`, :attr:`Run.returned` says which of them a completed run returned. Raises
    Unreachable.
    """
    description = await temporal.describe(workflow_id)
    if description is None:
        return None
    info = description.workflow_execution_info
    status = WorkflowExecutionStatus.Name(info.status)
    pending = description.pending_activities
    run = Run(
        id=info.execution.run_id,
        type=info.type.name,
        status=status.removeprefix("WORKFLOW_EXECUTION_STATUS_").lower().replace("_", " "),
        started_at=info.start_time.ToDatetime(UTC),
        ended_at=info.close_time.ToDatetime(UTC) if info.HasField("close_time") else None,
        # The server counts an attempt before it begins.
        attempt=max(
            (
                activity.attempt - (not activity.HasField("last_started_time"))
                for activity in pending
            ),
            default=0,
        ),
    )
    # A closed workflow still lists the activities that waited when it closed.
    if run.status == "running":
        return replace(
            run,
            idle=not (pending or description.HasField("pending_workflow_task")),
            waits_for=tuple(
                OpenActivity(
                    activity.activity_id,
                    activity.activity_type.name,
                    activity.scheduled_time.ToDatetime(UTC),
                )
                for activity in pending
            ),
        )
    if run.status == "completed" and results:
        return replace(run, returned=await _returned(temporal, workflow_id, run.id, results))
    return run


async def run_with_history(temporal: Temporal, workflow_id: str) -> Run | None:
    """Return the current run under this id, with its `cause`; `attempt` counts ended activities
    too.

    Raises Unreachable.
    """
    run = await run_of(temporal, workflow_id)
    if run is None:
        return None
    events = await temporal.history(workflow_id, run.id)
    # The history holds an attempt once the activity has ended.
    ended = [event.activity_task_started_event_attributes.attempt for event in events]
    return replace(run, attempt=max([run.attempt, *ended]), cause=_cause(events[-1]))


async def signals_of(
    temporal: Temporal,
    workflow_id: str,
    *,
    memo: dict[str, Any],
    names: Set[str],
    after: tuple[str, int],
) -> Signals:
    """Read the signals of these names from the history of the current run, if it has this memo;
    none where it has another memo.

    `after` is a run id and an event id: in that run, only later events count. Reads the first
    :data:`SIGNALS_EVENTS` events of the run, within :data:`SIGNALS_SECONDS`. Raises Unreachable
    where Temporal does not say which run there is.
    """
    found: list[Signal] = []
    run_id, complete = "", False
    try:
        async with bounded(SIGNALS_SECONDS):
            description = await temporal.describe(workflow_id)
            if description is None or not await temporal.has_memo(description, memo):
                return Signals()
            run_id = description.workflow_execution_info.execution.run_id
            judged = after[1] if after[0] == run_id else 0
            handle = (await temporal.client()).get_workflow_handle(workflow_id, run_id=run_id)
            async for event in handle.fetch_history_events():
                signal = event.workflow_execution_signaled_event_attributes
                if signal.signal_name in names and event.event_id > judged:
                    reason = await _text(temporal, signal.input.payloads)
                    found.append(
                        Signal(event.event_id, signal.signal_name, reason, signal.identity)
                    )
                if event.event_id >= SIGNALS_EVENTS:
                    break
            complete = True
    except Unreachable:
        if not run_id:
            raise
    return Signals(run_id, tuple(found), complete)


async def result_of(temporal: Temporal, workflow_id: str) -> Any:
    """Wait for the workflow's result, without a limit. Raises WorkflowFailed."""
    while True:
        try:
            return await (await temporal.client()).get_workflow_handle(workflow_id).result()
        except WorkflowFailureError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise WorkflowFailed(str(cause)) from error
        except (RPCError, RuntimeError, Unreachable):
            await asyncio.sleep(1)


async def workflow_ids(temporal: Temporal, query: str) -> AsyncIterator[list[str]]:
    """Yield pages of the ids of the workflows that a visibility query finds.

    A workflow with several runs may come several times. The store lags behind. Raises Unreachable.
    """
    found = (await temporal.client()).list_workflows(query, page_size=PAGE_SIZE)
    while True:
        async with bounded(PAGE_SECONDS):
            await found.fetch_next_page()
        yield [workflow.id for workflow in found.current_page or ()]
        if found.next_page_token is None:
            return


async def _returned(
    temporal: Temporal, workflow_id: str, run_id: str, results: Sequence[str]
) -> str | None:
    """Return which of `results` the completed run returned."""
    handle = (await temporal.client()).get_workflow_handle(workflow_id, run_id=run_id)
    returned = None
    async with bounded():
        async for event in handle.fetch_history_events(
            event_filter_type=WorkflowHistoryEventFilterType.CLOSE_EVENT
        ):
            returned = event.workflow_execution_completed_event_attributes.result.payloads
    for result in results:
        if returned == await temporal.encoded(result):
            return result
    return None


async def _text(temporal: Temporal, arguments: Sequence[Payload]) -> str:
    """Return the first argument as a text that can be stored; "" where there is none to read."""
    if not arguments:
        return ""
    converter = (await temporal.client()).data_converter
    try:
        [value] = await converter.decode(arguments[:1])
        return contracts.storable(value)
    except Exception:  # noqa: BLE001 (another client wrote it, by whatever converter)
        return ""


def _cause(last: HistoryEvent) -> str:
    """Return why the run failed or was terminated, as its last event says."""
    failure = last.workflow_execution_failed_event_attributes.failure
    while failure.HasField("cause"):
        failure = failure.cause
    words = (
        failure.application_failure_info.type,
        failure.message,
        last.workflow_execution_terminated_event_attributes.reason,
    )
    return ": ".join(filter(None, words))
