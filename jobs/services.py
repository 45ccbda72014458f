"""Jobs: runs of a workflow that says hello, and the state of any run of this project.

Jobs live in Temporal alone: the site keeps no record and no message of them.
"""

import uuid
from enum import IntEnum
from typing import Any, Final

from temporal import client, inspection, loop
from worker import contracts

RUN: Final = "jobs.run_job"
VIEW: Final = "jobs.view_run"


class Status(IntEnum):
    """The status of a run, with the numbers of requirements J2."""

    RUNNING = 1
    COMPLETED = 2
    FAILED = 3


def start_job(msg: str, *, fail_first_attempt: bool) -> str:
    """Start a job and return its id (requirements J1). Raises client.Unreachable."""
    job_id = contracts.job_workflow_id(uuid.uuid4())
    loop.ask(
        lambda temporal: temporal.start_workflow(
            contracts.JOB_WORKFLOW,
            contracts.Job(msg, fail_first_attempt),
            workflow_id=job_id,
            queue=contracts.JOB_QUEUE,
        )
    )
    return job_id


def result_of(job_id: str, *, seconds: float) -> Any:
    """Return the result of the job; None where it is not known after `seconds`.

    Raises inspection.WorkflowFailed where it ended without a result.
    """
    try:
        return loop.ask(lambda temporal: inspection.result_of(temporal, job_id), seconds=seconds)
    except client.Unreachable:
        return None


def run_of(workflow_id: str) -> inspection.Run | None:
    """Return the current run under this id, of a job, an expense or an order (requirements J2).

    None where Temporal knows no such run, or a run of another type. Raises client.Unreachable.
    """
    run = loop.ask(lambda temporal: inspection.run_with_history(temporal, workflow_id))
    return run if run is not None and run.type in contracts.WORKFLOWS else None


def status_of(run: inspection.Run) -> tuple[Status, str]:
    """Return the status, and the reason where it is FAILED ("" otherwise)."""
    match run.status:
        case "running" | "paused":
            return Status.RUNNING, ""
        case "completed":
            return Status.COMPLETED, ""
    words = (run.status.replace("canceled", "cancelled"), run.cause)
    return Status.FAILED, ": ".join(filter(None, words))
