"""Jobs: runs of a workflow that says hello, and the state of any run of this project.

They live in Temporal alone: there is no record, no message, and nothing that outlasts its
retention.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Final

from temporal import client, inspection, loop
from temporal.outcomes import Outcome
from worker import contracts

RUN: Final = "jobs.run_job"
VIEW: Final = "jobs.view_run"


class Status(IntEnum):
    """How a run stands, by the numbers of requirements J2."""

    RUNNING = 1
    COMPLETED = 2
    FAILED = 3


@dataclass(frozen=True)
class Run:
    """`attempt` is the highest of any activity that began, 0 while none did; `reason` says why
    `status` is FAILED, and is None otherwise."""

    status: Status
    started_at: datetime
    ended_at: datetime | None
    attempt: int
    reason: str | None


def start_job(msg: str, *, fail_first_attempt: bool) -> str:
    """The id of the job, which has begun (requirements J1). Raises client.Unreachable."""
    job_id = contracts.job_workflow_id(uuid.uuid4())

    async def start(temporal: client.Temporal) -> Outcome:
        return await temporal.start_workflow(
            contracts.JOB_WORKFLOW,
            contracts.Job(msg, fail_first_attempt),
            workflow_id=job_id,
            queue=contracts.JOB_QUEUE,
        )

    loop.ask(start)
    return job_id


def result_of(job_id: str, *, seconds: float) -> Any:
    """What the job returned; None where that is not known after `seconds`.

    Raises inspection.WorkflowFailed where it ended without a result.
    """
    try:
        return loop.ask(lambda temporal: inspection.result_of(temporal, job_id), seconds=seconds)
    except client.Unreachable:
        return None


def run_of(workflow_id: str) -> Run | None:
    """The current run under this id, an expense's and an order's included (requirements J2); None
    where Temporal knows none, or another's. Raises client.Unreachable."""
    run = loop.ask(lambda temporal: inspection.run_with_history(temporal, workflow_id))
    if run is None or run.type not in contracts.WORKFLOWS:
        return None
    match run.status:
        case "running" | "paused":
            status, reason = Status.RUNNING, None
        case "completed":
            status, reason = Status.COMPLETED, None
        case end:
            words = (end.replace("canceled", "cancelled"), run.cause)
            status, reason = Status.FAILED, ": ".join(filter(None, words))
    return Run(status, run.started_at, run.ended_at, run.attempt, reason)
