"""A model of Temporal's frontend: its answers about workflows that wait for one activity, as the
server was measured to give them (tests/temporal/test_client.py asks a real one)."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import any_pb2
from temporalio.api.common.v1 import (
    ActivityType,
    GrpcStatus,
    Payload,
    Payloads,
    WorkflowExecution,
)
from temporalio.api.enums.v1 import EventType
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure, NotFoundFailure
from temporalio.api.history.v1 import (
    ActivityTaskCompletedEventAttributes,
    ActivityTaskScheduledEventAttributes,
    ActivityTaskTimedOutEventAttributes,
    History,
    HistoryEvent,
)
from temporalio.api.workflow.v1 import PendingActivityInfo, WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryResponse,
)
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import ConnectConfig, RPCError, RPCStatusCode, ServiceClient

ACTIVITY_ID, ACTIVITY_TYPE = "2", "wait"
ARGUMENT = "expense"
Error = Callable[[], Exception]


def _rpc_error(status: RPCStatusCode, *details: Any) -> Error:
    packed = [any_pb2.Any() for _ in details]
    for one, detail in zip(packed, details, strict=True):
        one.Pack(detail)
    raw = GrpcStatus(code=status.value, details=packed).SerializeToString()
    return lambda: RPCError("as modelled", status, raw)


NOT_FOUND = _rpc_error(RPCStatusCode.NOT_FOUND, NotFoundFailure())
UNKNOWN_NAMESPACE = _rpc_error(RPCStatusCode.NOT_FOUND, NamespaceNotFoundFailure())
UNREADABLE_TOKEN = _rpc_error(RPCStatusCode.INVALID_ARGUMENT)
# What a call may end with whether it was applied or not.
UNCERTAIN: tuple[Error, ...] = (
    *(
        _rpc_error(status)
        for status in (
            RPCStatusCode.UNAVAILABLE,
            RPCStatusCode.CANCELLED,
            RPCStatusCode.DEADLINE_EXCEEDED,
            RPCStatusCode.RESOURCE_EXHAUSTED,
        )
    ),
    TimeoutError,
    lambda: RuntimeError("as modelled"),
)


def token(workflow_id: str, run_id: str, attempt: int) -> bytes:
    return f"{workflow_id}/{run_id}/{attempt}".encode()


def payload(value: str) -> Payload:
    return Payload(metadata={"encoding": b"json/plain"}, data=json.dumps(value).encode())


@dataclass
class Run:
    """A run of a workflow, and the one activity in it that somebody answers."""

    id: str
    first_id: str
    argument: str = ARGUMENT
    running: bool = True
    known: bool = True
    scheduled: bool = False
    attempt: int = 1
    timed_out: bool = False
    result: Payload | None = None
    # Completed by a request of the site, not by the schedule.
    told: bool = False

    @property
    def waits(self) -> bool:
        return self.running and self.scheduled and not self.timed_out and self.result is None


@dataclass
class Server:
    """Workflows by their id, each the list of its runs, the current one last."""

    workflows: dict[str, list[Run]] = field(default_factory=dict)
    late: list[Callable[[], Any]] = field(default_factory=list)

    def catch_up(self) -> None:
        """Apply the requests that were late."""
        while self.late:
            with suppress(RPCError):
                self.late.pop(0)()

    def respond_activity_task_completed(self, request: Any) -> None:
        workflow_id, _, rest = request.task_token.decode().partition("/")
        run_id, _, attempt = rest.partition("/")
        if workflow_id not in self.workflows:
            raise UNREADABLE_TOKEN()
        run = self._run(workflow_id, run_id)
        if run.attempt != int(attempt):
            raise NOT_FOUND()
        self._complete(run, request.result)

    def respond_activity_task_completed_by_id(self, request: Any) -> None:
        if request.activity_id != ACTIVITY_ID:
            raise NOT_FOUND()
        self._complete(self._run(request.workflow_id, request.run_id), request.result)

    def describe_workflow_execution(self, request: Any) -> DescribeWorkflowExecutionResponse:
        workflow_id = request.execution.workflow_id
        run = self._run(workflow_id, request.execution.run_id)
        status = WorkflowExecutionStatus.RUNNING if run.running else WorkflowExecutionStatus.FAILED
        # A closed workflow still lists the activities that waited when it closed.
        pending = run.scheduled and not run.timed_out and run.result is None
        activity = PendingActivityInfo(
            activity_id=ACTIVITY_ID, activity_type=ActivityType(name=ACTIVITY_TYPE)
        )
        return DescribeWorkflowExecutionResponse(
            workflow_execution_info=WorkflowExecutionInfo(
                execution=WorkflowExecution(workflow_id=workflow_id, run_id=run.id),
                status=int(status),  # type: ignore[arg-type]
                first_run_id=run.first_id,
            ),
            pending_activities=[activity] if pending else [],
        )

    def get_workflow_execution_history(self, request: Any) -> GetWorkflowExecutionHistoryResponse:
        run = self._run(request.execution.workflow_id, request.execution.run_id)
        # Another activity came first.
        events = [_scheduled(5, "1", "create", run.argument), _completed(6, 5, payload("made"))]
        if run.scheduled:
            events.append(_scheduled(7, ACTIVITY_ID, ACTIVITY_TYPE, run.argument))
        if run.timed_out:
            timed_out = ActivityTaskTimedOutEventAttributes(scheduled_event_id=7)
            events.append(
                HistoryEvent(
                    event_id=8,
                    event_type=EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT,
                    activity_task_timed_out_event_attributes=timed_out,
                )
            )
        if run.result is not None:
            events.append(_completed(8, 7, run.result))
        return GetWorkflowExecutionHistoryResponse(history=History(events=events))

    def _run(self, workflow_id: str, run_id: str) -> Run:
        runs = self.workflows.get(workflow_id, [])
        for run in reversed(runs):
            if run.known and run_id in ("", run.id):
                return run
        raise NOT_FOUND()

    def _complete(self, run: Run, result: Payloads) -> None:
        if not run.waits:
            raise NOT_FOUND()
        (run.result,), run.told = result.payloads, True


def _scheduled(event_id: int, activity_id: str, activity_type: str, argument: str) -> HistoryEvent:
    return HistoryEvent(
        event_id=event_id,
        event_type=EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
        activity_task_scheduled_event_attributes=ActivityTaskScheduledEventAttributes(
            activity_id=activity_id,
            activity_type=ActivityType(name=activity_type),
            input=Payloads(payloads=[payload(argument)]),
        ),
    )


def _completed(event_id: int, scheduled: int, result: Payload) -> HistoryEvent:
    return HistoryEvent(
        event_id=event_id,
        event_type=EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED,
        activity_task_completed_event_attributes=ActivityTaskCompletedEventAttributes(
            scheduled_event_id=scheduled, result=Payloads(payloads=[result])
        ),
    )


@dataclass
class Call:
    """A request on its way. `apply` is its effect on the server, and the answer to it."""

    apply: Callable[[], Any]
    answered: "asyncio.Future[Any]"


class Frontend(ServiceClient):
    """The server as one process reaches it. Each request waits in `calls` for :meth:`answer`,
    or is answered at once and truly while `well`."""

    worker_service_client = None  # type: ignore[assignment]

    def __init__(self, server: Server) -> None:
        super().__init__(ConnectConfig(target_host="model"))
        self.server = server
        self.calls: list[Call] = []
        self.well = False

    async def connect(self) -> Client:
        await self._call(lambda: None)
        return Client(self)

    def answer(self, call: Call, error: Error | None = None, applied: str = "now") -> None:
        """Answer truly, or with `error` whether it was applied "now", "never" or is "late".

        "twice": the SDK repeated a call that was applied, and passes on the second answer.
        """
        self.calls.remove(call)
        if error is not None or applied == "twice":
            self.lose(call, applied)
        try:
            if error is not None:
                raise error()
            call.answered.set_result(call.apply())
        except (RPCError, RuntimeError, TimeoutError) as answer:
            call.answered.set_exception(answer)

    def lose(self, call: Call, applied: str) -> None:
        """What becomes of a request whose sender does not learn of it."""
        if applied == "late":
            self.server.late.append(call.apply)
        elif applied != "never":
            with suppress(RPCError):
                call.apply()

    async def _rpc_call(self, rpc: str, req: Any, resp_type: Any, **_: Any) -> Any:
        answer = getattr(self.server, rpc)
        return await self._call(lambda: answer(req) or resp_type())

    async def _call(self, apply: Callable[[], Any]) -> Any:
        if self.well:
            return apply()
        call = Call(apply, asyncio.get_running_loop().create_future())
        self.calls.append(call)
        return await call.answered

    def update_rpc_metadata(self, metadata: Any) -> None:
        raise NotImplementedError

    def update_api_key(self, api_key: str | None) -> None:
        raise NotImplementedError


# By which the process that is running reaches Temporal.
reached: ContextVar[Frontend] = ContextVar("reached")


async def connect(target_host: str, **_: Any) -> Client:
    """In place of `Client.connect`."""
    return await reached.get().connect()
