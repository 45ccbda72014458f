"""The workflow of a job: the shortest way through site, Temporal and worker."""

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
        """The greeting, with the attempt that made it. A failed activity fails the run."""
        result: contracts.JobResult = await workflow.execute_activity(
            contracts.SAY_HELLO,
            job,
            result_type=contracts.JobResult,
            # It only formats a string; what takes longer was lost with its worker.
            start_to_close_timeout=timedelta(seconds=5),
            retry_policy=RETRIES,
        )
        return result
