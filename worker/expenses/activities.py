"""The activities of an expense: requests to the site, and their answers sorted by retryability.

Retried: network errors, 5xx, and the statuses in _PASSING_STATUS. Not retried: an empty id, ERROR
bodies, any other status, an answer outside the protocol (requirements W3-W6).
Log messages have no arguments: the SDK appends the ids to the format, and an id may contain a %.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import httpx
from temporalio import activity
from temporalio.exceptions import ApplicationError

from worker import contracts
from worker.site import Site

# The decision to return if the expense is in this state when the wait registers (requirements W5).
_DECISION_OF_STATE: Final = {
    "APPROVED": contracts.APPROVED,
    "COMPLETED": contracts.APPROVED,
    "REJECTED": contracts.REJECTED,
    "WITHDRAWN": contracts.CANCELLED,
}
# 401, 403 and 404 come from the worker's token or a wrong address, and not from the expense.
_PASSING_STATUS: Final = frozenset({401, 403, 404, 408, 425, 429})
# The history stores each failure text.
_MESSAGE_LIMIT: Final = 1000


class ExpenseActivities:
    """The three activities of SampleExpenseWorkflow, bound to one site."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def all(self) -> list[Callable[[str], Awaitable[str | None]]]:
        """Return what a worker registers."""
        return [
            self.create_expense_activity,
            self.wait_for_decision_activity,
            self.payment_activity,
        ]

    @activity.defn(name=contracts.CREATE_EXPENSE)
    async def create_expense_activity(self, expense_id: str) -> None:
        """Create the expense's record on the site (requirements W4)."""
        answer = await self._ask("GET", "/create", expense_id, is_api_call="true")
        if answer != contracts.SUCCEED:
            raise _refusal(answer)
        activity.logger.info(f"Expense {expense_id!r} created")

    @activity.defn(name=contracts.WAIT_FOR_DECISION)
    async def wait_for_decision_activity(self, expense_id: str) -> str:
        """Return the decision if there is one; otherwise the site completes this attempt later.

        Each attempt registers its own task token (requirements W5, W7).
        """
        info = activity.info()
        answer = await self._ask(
            "POST",
            "/registerCallback",
            expense_id,
            form={
                "task_token": info.task_token.hex(),
                "workflow_id": info.workflow_id or "",
                "run_id": info.workflow_run_id or "",
                "activity_id": info.activity_id,
            },
        )
        if answer == contracts.SUCCEED:
            activity.logger.info(f"Expense {expense_id!r} waits for a decision")
            activity.raise_complete_async()
        if answer == contracts.INVALID_STATE:
            state = await self._ask("GET", "/status", expense_id)
            if decision := _DECISION_OF_STATE.get(state):
                activity.logger.info(f"Expense {expense_id!r} was decided before: {decision}")
                return decision
            # Refused although undecided: the expense belongs to another workflow (requirements X7).
        raise _refusal(answer, "register callback failed status: ")

    @activity.defn(name=contracts.PAYMENT)
    async def payment_activity(self, expense_id: str) -> None:
        """Pay the expense (requirements W4)."""
        answer = await self._ask("GET", "/action", expense_id, type="payment", is_api_call="true")
        if answer != contracts.SUCCEED:
            raise _refusal(answer)
        activity.logger.info(f"Expense {expense_id!r} paid")

    async def _ask(
        self,
        method: str,
        path: str,
        expense_id: str,
        *,
        form: dict[str, str] | None = None,
        **params: str,
    ) -> str:
        if not expense_id.strip():
            raise ValueError("expense id is empty")
        try:
            return await self._site.request(
                method,
                path,
                workflow_id=activity.info().workflow_id or "",
                params={"id": expense_id, **params},
                data=form,
            )
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in _PASSING_STATUS or status >= 500:
                raise
            raise ApplicationError(
                str(error)[:_MESSAGE_LIMIT], type="HTTPStatusError", non_retryable=True
            ) from None


def _refusal(answer: str, prefix: str = "") -> ApplicationError:
    return ApplicationError(
        prefix + (answer[:_MESSAGE_LIMIT] or "(empty answer)"),
        type="SiteRefused" if answer.startswith(contracts.ERROR_PREFIX) else "UnexpectedAnswer",
        non_retryable=True,
    )
