"""Runs that were begun by a released version continue with this one."""

from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from tests.worker.record_histories import HISTORIES
from worker import contracts
from worker.expenses.workflows import SampleExpenseWorkflow
from worker.jobs.workflows import SayHelloWorkflow

# The commands of each path as they stand in running workflows. A change of the workflow that
# alters one of them goes behind `workflow.patched`, with a history of its own.
COMMANDS = {
    "approved": [
        "create_expense_activity",
        "wait_for_decision_activity",
        "payment_activity",
        '"COMPLETED"',
    ],
    "rejected": ["create_expense_activity", "wait_for_decision_activity", '""'],
    "retried": [
        "create_expense_activity",
        "wait_for_decision_activity",
        "payment_activity",
        '"COMPLETED"',
    ],
    "decided-before": [
        "create_expense_activity",
        "wait_for_decision_activity",
        "payment_activity",
        '"COMPLETED"',
    ],
    "job": ["say_hello_activity", '{"attempt":1,"msg":"Hello Temporal"}'],
    "job-second-attempt": ["say_hello_activity", '{"attempt":2,"msg":"Hello Temporal"}'],
    "job-failed": ["say_hello_activity", "msg is empty"],
}
WORKFLOWS = [SampleExpenseWorkflow, SayHelloWorkflow]


@workflow.defn(name=contracts.EXPENSE_WORKFLOW, sandboxed=False)
class WithoutCreate:
    """The workflow with its first command gone."""

    @workflow.run
    async def run(self, expense_id: str) -> str:
        return await workflow.execute_activity(
            contracts.WAIT_FOR_DECISION,
            expense_id,
            result_type=str,
            start_to_close_timeout=timedelta(minutes=10),
        )


@workflow.defn(name=contracts.JOB_WORKFLOW, sandboxed=False)
class WithoutHello:
    """The workflow with its one command gone."""

    @workflow.run
    async def run(self, job: contracts.Job) -> contracts.JobResult:
        return contracts.JobResult(1, "")


def history_of(name: str) -> WorkflowHistory:
    text = (HISTORIES / f"{name}.json").read_text()
    return WorkflowHistory.from_json(name, text)


def test_every_history_is_listed():
    """Design rule 6: no committed history is left out."""
    assert {path.stem for path in HISTORIES.glob("*.json")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str):
    """W1, W2, J3: what each history shows: the activities scheduled, in order, and the result, or
    the cause of the failure."""
    commands = []
    for event in history_of(name).events:
        if event.HasField("activity_task_scheduled_event_attributes"):
            commands.append(event.activity_task_scheduled_event_attributes.activity_type.name)
        elif event.HasField("workflow_execution_completed_event_attributes"):
            [result] = event.workflow_execution_completed_event_attributes.result.payloads
            commands.append(result.data.decode())
        elif event.HasField("workflow_execution_failed_event_attributes"):
            commands.append(event.workflow_execution_failed_event_attributes.failure.cause.message)
    assert commands == COMMANDS[name]


def test_retried_history_has_retries():
    """W6: the retried run needed two attempts to create and two to pay."""
    attempts = [
        event.activity_task_started_event_attributes.attempt
        for event in history_of("retried").events
        if event.HasField("activity_task_started_event_attributes")
    ]
    assert attempts == [2, 1, 2]


@pytest.mark.parametrize("name", COMMANDS)
async def test_replay(name: str):
    """W1, W7, J1: the workflow as it is replays each committed history."""
    await Replayer(workflows=WORKFLOWS).replay_workflow(history_of(name))


@pytest.mark.parametrize("name", COMMANDS)
async def test_replay_shows_a_change(name: str):
    """W1: a workflow that begins otherwise does not replay, so test_replay proves something."""
    with pytest.raises(workflow.NondeterminismError):
        await Replayer(workflows=[WithoutCreate, WithoutHello]).replay_workflow(history_of(name))
