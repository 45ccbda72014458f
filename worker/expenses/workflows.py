"""The expense workflow. Put changes behind `workflow.patched`: runs wait here for days."""

from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from worker import contracts

# No limit of attempts: an expense outlasts any outage (requirements W6).
RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=30),
    maximum_attempts=0,
    non_retryable_error_types=["ValueError"],
)


@workflow.defn(name=contracts.EXPENSE_WORKFLOW)
class SampleExpenseWorkflow:
    """Create, wait for the decision, pay (requirements W1, W2)."""

    @workflow.run
    async def run(self, expense_id: str) -> str:
        """Return `COMPLETED` when an approved expense is paid, `""` after any other decision.

        A failed activity fails the run; its error is the cause of the caller's error.
        """
        await workflow.execute_activity(
            contracts.CREATE_EXPENSE,
            expense_id,
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RETRIES,
        )
        decision = await workflow.execute_activity(
            contracts.WAIT_FOR_DECISION,
            expense_id,
            result_type=str,
            start_to_close_timeout=timedelta(minutes=10),
            retry_policy=RETRIES,
        )
        # No arguments: the SDK appends the ids to the format, and an id may contain a %.
        workflow.logger.info(f"Expense {expense_id!r}: decision {decision!r}")
        if decision != contracts.APPROVED:
            return ""
        await workflow.execute_activity(
            contracts.PAYMENT,
            expense_id,
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RETRIES,
        )
        workflow.logger.info(f"Expense {expense_id!r}: paid")
        return contracts.COMPLETED
