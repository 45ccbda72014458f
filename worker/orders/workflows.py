"""The order workflow: approval where an order needs it, then a saga of steps.

Put changes behind `workflow.patched`: runs wait here for days.

The workflow takes no decision. It asks the site, whose records decide each fork (approved or not,
completed or compensated) by compare-and-set, so neither a late signal nor a lost answer can make
the workflow contradict them. The site reads the signals from the history of the run.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from datetime import timedelta
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
# The workflow asks the site about signals once in this many seconds at most.
PAUSE_SECONDS: Final = 1


@workflow.defn(name=contracts.ORDER_WORKFLOW)
class OrderWorkflow:
    """Wait for the decision if one is needed, then check, reserve, pay and send. After a failure
    undo the steps in reverse (requirements O1-O5)."""

    @workflow.init
    def __init__(self, order: contracts.Order) -> None:
        self._order = order
        self._request = contracts.StepRequest(order.order, order.attempt, order.fail_at)
        self._state = contracts.PENDING if order.needs_approval else contracts.RUNNING
        self._failure_reason: str | None = None
        self._events: list[contracts.Event] = []
        self._approval = "pending" if order.needs_approval else "not_required"
        self._approval_reason = ""
        # A signal came since the workflow last asked the site about signals.
        self._signalled = False
        self._answers: dict[str, Any] = {}

    @workflow.run
    async def run(self, order: contracts.Order) -> contracts.OrderResult:
        """Return the result of a completed or cancelled order.

        A failed order fails the run with the reason of the failed step. A run that was cancelled
        in Temporal ends as cancelled. In both cases all steps are undone first.
        """
        try:
            if order.needs_approval and not await self._is_approved():
                return self._result(contracts.ORDER_CANCELLED, self._failure_reason or "")
            for step in order.steps:
                self._answers[step] = await self._ask(step)
            # A cancellation must not interrupt this: the answer says whether to undo the steps.
            answer: contracts.OrderState = await _shielded(self._ask(contracts.COMPLETE_ORDER))
            if answer.state != contracts.ORDER_COMPLETED:
                raise ApplicationError(answer.reason, type="NotCompleted")
        except (ActivityError, ApplicationError, asyncio.CancelledError) as error:
            return await _shielded(self._compensate(error))
        return await _shielded(self._complete())

    @workflow.signal(dynamic=True)
    def any_signal(self, name: str, arguments: Sequence[RawValue]) -> None:
        """Make the workflow ask the site about `approve_order(reason)` and `reject_order(reason)`.

        This handler takes any name and leaves the arguments undecoded (requirements O3): a handler
        that fails would stop the run, and the SDK drops a signal whose arguments it cannot decode.
        """
        self._signalled = True

    @workflow.query
    def get_approval_status(self) -> str:
        """Return `pending`, `approved`, `rejected`, `expired`, `not_required`, or `undecided` if
        the order ended before a decision."""
        return self._approval

    @workflow.query
    def get_approval_reason(self) -> str:
        """Return the reason of the decision; "" before there is one."""
        return self._approval_reason

    @workflow.query
    def get_status(self) -> contracts.OrderStatus:
        return contracts.order_status(
            self._order.order_id,
            self._state,
            self._order.steps,
            self._events,
            self._failure_reason,
        )

    async def _is_approved(self) -> bool:
        """Wait until the site has a decision or the window is over.

        The site says how long to wait, and a timer of this run measures that time, so the clocks
        of Temporal and of the site need not agree.
        """
        answer: contracts.OrderState = await self._ask(contracts.AWAIT_APPROVAL)
        while answer.state == contracts.PENDING:
            with contextlib.suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: self._signalled, timeout=timedelta(seconds=answer.seconds_left or 1)
                )
            self._signalled = False
            answer = await self._ask(contracts.SETTLE_APPROVAL)
            if answer.state == contracts.PENDING:
                await workflow.sleep(PAUSE_SECONDS)
        self._record_decision(answer)
        # If an earlier run was terminated after the completion, this run repeats the steps, which
        # the records answer.
        if answer.state in (contracts.RUNNING, contracts.ORDER_COMPLETED):
            self._state = contracts.RUNNING
            return True
        if answer.state == contracts.ORDER_CANCELLED and self._approval != "approved":
            self._failure_reason = answer.reason
            return False
        raise ApplicationError(answer.reason, type="NotRunning", non_retryable=True)

    def _record_decision(self, answer: contracts.OrderState) -> None:
        """Keep the decision for the queries, or the fact that there will be none."""
        if answer.verdict:
            self._approval = answer.verdict.lower()
            self._approval_reason = answer.approval_reason
        elif self._approval == "pending":
            self._approval = "undecided"

    async def _complete(self) -> contracts.OrderResult:
        self._state = contracts.ORDER_COMPLETED
        try:
            await self._ask(contracts.SEND_CONFIRMATION)
        except ActivityError as error:
            # The order stays completed; the events contain the failure.
            workflow.logger.warning(f"Order {self._order.order!r}: {_reason(error)}")
        return self._result(contracts.ORDER_COMPLETED, "Order processed successfully")

    async def _compensate(self, error: BaseException) -> contracts.OrderResult:
        """Undo in reverse the steps that may have been done, and end as the site decides."""
        cancelled = is_cancelled_exception(error)
        self._state = contracts.COMPENSATING
        answer: contracts.OrderState = await self._ask(
            contracts.BEGIN_COMPENSATION,
            contracts.CompensationRequest(
                **vars(self._request),
                failed_step=self._events[-1].step if self._events else "",
                reason="" if cancelled else _reason(error),
                cancelled=cancelled,
            ),
        )
        self._record_decision(answer)
        if answer.state == contracts.ORDER_COMPLETED:
            await self._ask(contracts.COMPLETE_ORDER)
            return await self._complete()
        self._failure_reason = answer.reason
        # The record knows the steps that this run and earlier, terminated runs began.
        for step in reversed(answer.begun or []):
            if undo := contracts.STEPS[step].undo:
                await self._ask(undo)
        answer = await self._ask(contracts.CLOSE_ORDER)
        if answer.state != contracts.ORDER_CANCELLED:
            self._state = contracts.FAILED
            # Without a cause: this run's own error may differ from the reason on the record.
            raise ApplicationError(answer.reason, type="OrderFailed", non_retryable=True) from None
        self._state = contracts.ORDER_CANCELLED
        if cancelled:
            raise asyncio.CancelledError
        return self._result(contracts.ORDER_CANCELLED, answer.reason)

    async def _ask(self, name: str, request: contracts.StepRequest | None = None) -> Any:
        """Ask the site to carry out a step. Return an answer of the step's type. Raises
        ActivityError."""
        step = contracts.STEPS[name]
        undoes = step.kind is contracts.StepKind.UNDO
        self._note(name, "started")
        try:
            answer = await workflow.execute_activity(
                name,
                request or self._request,
                result_type=step.answer,
                start_to_close_timeout=UNDO_TIMEOUT if undoes else STEP_TIMEOUT,
                retry_policy=RETRIES,
            )
        except ActivityError as error:
            self._note(name, "failed", _reason(error))
            raise
        message = answer.message if isinstance(answer, contracts.StepResult) else ""
        self._note(name, "compensated" if undoes else "completed", message)
        return answer

    def _note(self, step: str, status: str, message: str = "") -> None:
        self._events.append(contracts.Event(step, status, message, workflow.now()))

    def _result(self, status: str, message: str) -> contracts.OrderResult:
        self._state = status
        return contracts.OrderResult(
            self._order.order_id,
            status,
            message,
            payment=self._answers.get(contracts.PROCESS_PAYMENT),
            inventory=self._answers.get(contracts.RESERVE_INVENTORY),
            delivery=self._answers.get(contracts.UPDATE_WAREHOUSE),
        )


def _reason(error: BaseException) -> str:
    """Return the message of the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    # `message` lacks the type that the SDK puts before it in str(). The site would refuse a text
    # that it cannot store.
    return contracts.storable(error.message if isinstance(error, FailureError) else str(error))


async def _shielded(work: Coroutine[Any, Any, T]) -> T:
    """Finish the work even if the run is cancelled meanwhile."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await workflow.wait([task])
    return task.result()
