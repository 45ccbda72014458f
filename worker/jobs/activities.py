"""The activity of a job."""

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from worker import contracts


@activity.defn(name=contracts.SAY_HELLO)
async def say_hello_activity(job: contracts.Job) -> contracts.JobResult:
    """Return a greeting. With `fail_first_attempt` the first attempt fails and the second succeeds.

    Raises ValueError, which is not retried, for an empty message (requirements J3).
    """
    if not job.msg:
        raise ValueError("msg is empty")
    attempt = activity.info().attempt
    if job.fail_first_attempt and attempt == 1:
        # BENIGN: the worker does not log the failure, since the job asked for it.
        raise ApplicationError(
            "the first attempt fails, as asked for", category=ApplicationErrorCategory.BENIGN
        )
    return contracts.JobResult(attempt, f"Hello {job.msg}")
