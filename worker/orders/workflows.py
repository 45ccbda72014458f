"""The order workflow: approval where it is needed, and a saga of steps. Changes go behind
`workflow.patched`: runs wait here for days.

The site's records decide each fork (approved or not, completed or compensated), by
compare-and-set; this workflow asks, and does what it is told. So neither a late signal nor a lost
answer can make it contradict them. Nor does it say what a signal was: the site reads the signals
from the history of the run.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    FailureError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from worker import contracts

T = TypeVar("T")

STEP_TIMEOUT: Final = timedelta(seconds=30)
UNDO_TIMEOUT: Final = timedelta(seconds=60)
# No limit of attempts: an order outlasts any outage (requirements W6).
RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=30),
    maximum_attempts=0,
)
# However many signals come, the site is asked about them once in so many seconds.
PAUSE_SECONDS: Final = 1
_UNDOES: Final = frozenset(undo for _, undo in contracts.SAGA)


@dataclass
class Event:
    """`status` is "started", "completed", "failed" or "compensated"."""

    step: str
    status: str
    message: str
    timestamp: datetime


@dataclass
class Status:
    """What the query `get_status` answers (requirements O3)."""

    order_id: str
    status: str
    current_step: str | None = None
    steps_completed: list[str] = field(default_factory=list)
    compensation_triggered: bool = False
    failure_reason: str | None = None
    events: list[Event] = field(default_factory=list)


@workflow.defn(name=contracts.ORDER_WORKFLOW)
class OrderWorkflow:
    """Wait for the decision if one is needed, then check, reserve, pay and send; what fails is
    undone in reverse (requirements O1-O5)."""

    @workflow.init
    def __init__(self, order: contracts.Order) -> None:
        self._order = order
        self._status = Status(
            order.order_id, contracts.PENDING if order.needs_approval else contracts.RUNNING
        )
        self._approval = "pending" if order.needs_approval else "not_required"
        self._approval_reason = ""
        # Whether a signal came since the site was last asked to look for one.
        self._signalled = False
        self._answers: dict[str, dict[str, Any]] = {}

    @workflow.run
    async def run(self, order: contracts.Order) -> contracts.OrderResult:
        """The result of an order that was completed or cancelled.

        A failed order fails the run, when all is undone, with the reason of the step that failed;
        a run that was cancelled in Temporal ends as cancelled, when all is undone.
        """
        try:
            if order.needs_approval and not await self._is_approved():
                return self._result(contracts.ORDER_CANCELLED, self._status.failure_reason or "")
            for step, _ in contracts.SAGA:
                self._answers[step] = await self._ask(step)
            # Not to be interrupted: its answer tells whether there is anything to undo.
            standing = await _shielded(self._ask(contracts.COMPLETE_ORDER))
            if standing["state"] != contracts.ORDER_COMPLETED:
                raise ApplicationError(standing["reason"], type="NotCompleted")
        except (ActivityError, ApplicationError, asyncio.CancelledError) as error:
            return await _shielded(self._compensate(error))
        return await _shielded(self._complete())

    @workflow.signal(dynamic=True)
    def any_signal(self, name: str, arguments: Sequence[RawValue]) -> None:
        """Have the site look for `approve_order(reason)` and `reject_order(reason)` (O3).

        It takes any name and leaves the arguments undecoded: a handler that fails would stop the
        run, and the SDK drops a signal whose arguments it cannot decode.
        """
        self._signalled = True

    @workflow.query
    def get_approval_status(self) -> str:
        """`pending`, `approved`, `rejected`, `expired`, `not_required`, or `undecided` where the
        order ended before a decision."""
        return self._approval

    @workflow.query
    def get_approval_reason(self) -> str:
        """Why it was decided so; "" before."""
        return self._approval_reason

    @workflow.query
    def get_status(self) -> Status:
        return self._status

    async def _is_approved(self) -> bool:
        """Wait for the decision until the site says that there is one, or that the window is over.

        The site says how long to wait, and this run's own timer measures it, so that the clocks of
        Temporal and of the site need not agree.
        """
        standing = await self._ask(contracts.AWAIT_APPROVAL)
        while standing["state"] == contracts.PENDING:
            with contextlib.suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: self._signalled, timeout=timedelta(seconds=standing["seconds_left"])
                )
            self._signalled = False
            standing = await self._ask(contracts.SETTLE_APPROVAL)
            if standing["state"] == contracts.PENDING:
                await workflow.sleep(PAUSE_SECONDS)
        self._hear(standing)
        # Completed, it is carried out once more from the records: an earlier run was terminated.
        if standing["state"] in (contracts.RUNNING, contracts.ORDER_COMPLETED):
            self._status.status = contracts.RUNNING
            return True
        if standing["state"] == contracts.ORDER_CANCELLED and self._approval != "approved":
            self._status.failure_reason = standing["reason"]
            return False
        raise ApplicationError(standing["reason"], type="NotRunning", non_retryable=True)

    def _hear(self, standing: dict[str, Any]) -> None:
        """The decision that was taken, or that there will be none."""
        if standing["verdict"]:
            self._approval = standing["verdict"].lower()
            self._approval_reason = standing["approval_reason"]
        elif self._approval == "pending":
            self._approval = "undecided"

    async def _complete(self) -> contracts.OrderResult:
        self._status.status = contracts.ORDER_COMPLETED
        try:
            await self._ask(contracts.SEND_CONFIRMATION)
        except ActivityError as error:
            # Its failure is among the events; the order stays completed.
            workflow.logger.warning(f"Order {self._order.order!r}: {_reason(error)}")
        self._status.current_step = None
        return self._result(contracts.ORDER_COMPLETED, "Order processed successfully")

    async def _compensate(self, error: BaseException) -> contracts.OrderResult:
        """Undo in reverse what may have been done, and end as the site decides."""
        cancelled = is_cancelled_exception(error)
        failed_step = self._status.current_step or ""
        self._status.status = contracts.COMPENSATING
        standing = await self._ask(
            contracts.BEGIN_COMPENSATION,
            failed_step=failed_step,
            reason="" if cancelled else _reason(error),
            cancelled=cancelled,
        )
        self._hear(standing)
        if standing["state"] == contracts.ORDER_COMPLETED:
            await self._ask(contracts.COMPLETE_ORDER)
            return await self._complete()
        self._status.failure_reason = standing["reason"]
        # The record knows what was begun, by a run that was terminated before this one too.
        for step, undo in reversed(contracts.SAGA):
            if undo and step in standing.get("begun", ()):
                self._status.compensation_triggered = True
                await self._ask(undo)
        standing = await self._ask(contracts.CLOSE_ORDER)
        self._status.status = standing["state"]
        self._status.current_step = None
        if standing["state"] != contracts.ORDER_CANCELLED:
            self._status.status = contracts.FAILED
            # Alone: a run after the one that failed has another error of its own.
            raise ApplicationError(
                standing["reason"], type="OrderFailed", non_retryable=True
            ) from None
        if cancelled:
            raise asyncio.CancelledError
        return self._result(contracts.ORDER_CANCELLED, standing["reason"])

    async def _ask(self, step: str, **details: Any) -> dict[str, Any]:
        """Have the site carry out a step. Raises ActivityError."""
        undoes = step in _UNDOES
        self._note(step, "started")
        try:
            answer: dict[str, Any] = await workflow.execute_activity(
                step,
                contracts.Step(
                    self._order.order, self._order.attempt, self._order.fail_at, details
                ),
                result_type=dict[str, Any],
                start_to_close_timeout=UNDO_TIMEOUT if undoes else STEP_TIMEOUT,
                retry_policy=RETRIES,
            )
        except ActivityError as error:
            self._note(step, "failed", _reason(error))
            raise
        self._note(step, "compensated" if undoes else "completed", answer.get("message", ""))
        if "message" in answer and not undoes:
            self._status.steps_completed.append(step)
        return answer

    def _note(self, step: str, status: str, message: str = "") -> None:
        self._status.current_step = step
        self._status.events.append(Event(step, status, message, workflow.now()))

    def _result(self, status: str, message: str) -> contracts.OrderResult:
        self._status.status = status
        self._status.current_step = None
        return contracts.OrderResult(
            self._order.order_id,
            status,
            message,
            payment=self._answers.get(contracts.PROCESS_PAYMENT),
            inventory=self._answers.get(contracts.RESERVE_INVENTORY),
            delivery=self._answers.get(contracts.UPDATE_WAREHOUSE),
        )


def _reason(error: BaseException) -> str:
    """The words of what went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    # Without the type that the SDK puts before it.
    # Storable, or the site would refuse it each time.
    return contracts.storable(error.message if isinstance(error, FailureError) else str(error))


async def _shielded(work: Coroutine[Any, Any, T]) -> T:
    """Finish it, though the run is cancelled meanwhile."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await workflow.wait([task])
    return task.result()
