"""The workflow of a job, which shows that site, Temporal and worker work together."""

from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from worker import contracts

# Three attempts, after 1 and 2 s (requirements J3).
RETRIES: Final = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2.0,
    maximum_attempts=3,
    non_retryable_error_types=["ValueError"],
)


@workflow.defn(name=contracts.JOB_WORKFLOW)
class SayHelloWorkflow:
    """Say hello (requirements J1)."""

    @workflow.run
    async def run(self, job: contracts.Job) -> contracts.JobResult:
        """Return the greeting and the number of its attempt. A failed activity fails the run."""
        result: contracts.JobResult = await workflow.execute_activity(
            contracts.SAY_HELLO,
            job,
            result_type=contracts.JobResult,
            # The activity only formats a string: after 5 s its worker must have died.
            start_to_close_timeout=timedelta(seconds=5),
            retry_policy=RETRIES,
        )
        return result
