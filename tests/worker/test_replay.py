"""Runs that were begun by a released version continue with this one."""

import json
from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from tests.worker.record_histories import HISTORIES
from worker import contracts
from worker.expenses.workflows import SampleExpenseWorkflow
from worker.jobs.workflows import SayHelloWorkflow
from worker.orders.workflows import OrderWorkflow

ORDER_STEPS = ["check_inventory", "reserve_inventory", "process_payment", "update_warehouse"]
ORDER_UNDOES = ["revert_warehouse", "refund_payment_by_idempotency_key", "release_inventory"]
ORDER_END = ["complete_order", "send_confirmation"]
APPROVAL = ["await_approval", "timer", "settle_approval"]
ORDERED = "completed: Order processed successfully"


def undone(*undoes: str) -> list[str]:
    return ["begin_compensation", *undoes, "close_order"]


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
    "order-completed": [*ORDER_STEPS, *ORDER_END, ORDERED],
    "order-approved": [*APPROVAL, *ORDER_STEPS, *ORDER_END, ORDERED],
    "order-rejected": [*APPROVAL, "cancelled: bad customer"],
    "order-expired": [*APPROVAL, "cancelled: approval timed out"],
    # After a refused signal a pause, and the rest of the window.
    "order-signal-refused": [
        *APPROVAL,
        "timer",
        "timer",
        "settle_approval",
        *ORDER_STEPS,
        *ORDER_END,
        ORDERED,
    ],
    "order-decided-before": ["await_approval", *ORDER_STEPS, *ORDER_END, ORDERED],
    "order-failed-check-inventory": [*ORDER_STEPS[:1], *undone(), "No."],
    "order-failed-reserve-inventory": [*ORDER_STEPS[:2], *undone("release_inventory"), "No."],
    "order-failed-process-payment": [
        *ORDER_STEPS[:3],
        *undone("refund_payment_by_idempotency_key", "release_inventory"),
        "No.",
    ],
    "order-failed-update-warehouse": [*ORDER_STEPS, *undone(*ORDER_UNDOES), "No."],
    "order-undo-retried": [*ORDER_STEPS, *undone(*ORDER_UNDOES), "No."],
    "order-cancelled-waiting": ["await_approval", "timer", *undone(), "cancelled"],
    "order-cancelled-in-a-step": [
        *ORDER_STEPS[:3],
        *undone("refund_payment_by_idempotency_key", "release_inventory"),
        "cancelled",
    ],
    "order-cancelled-at-the-pivot": [
        *ORDER_STEPS,
        "complete_order",
        *undone(*ORDER_UNDOES),
        "cancelled: cancelled in Temporal",
    ],
    "order-confirmation-refused": [*ORDER_STEPS, *ORDER_END, ORDERED],
}
WORKFLOWS = [SampleExpenseWorkflow, SayHelloWorkflow, OrderWorkflow]


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


@workflow.defn(name=contracts.ORDER_WORKFLOW, sandboxed=False)
class WithoutSteps:
    """The workflow with its first command gone."""

    @workflow.run
    async def run(self, order: contracts.Order) -> contracts.OrderResult:
        return contracts.OrderResult(order.order_id, "completed", "")


@workflow.defn(name=contracts.JOB_WORKFLOW, sandboxed=False)
class WithoutHello:
    """The workflow with its one command gone."""

    @workflow.run
    async def run(self, job: contracts.Job) -> contracts.JobResult:
        return contracts.JobResult(1, "")


CHANGED = [WithoutCreate, WithoutHello, WithoutSteps]


def history_of(name: str) -> WorkflowHistory:
    text = (HISTORIES / f"{name}.json").read_text()
    return WorkflowHistory.from_json(name, text)


def test_every_history_is_listed():
    """Design rule 6: no committed history is left out."""
    assert {path.stem for path in HISTORIES.glob("*.json")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str):
    """W1, W2, J3, O2, O5: what each history shows: the activities scheduled and the timers, in
    order, and the result, or the cause of the failure."""
    commands = []
    for event in history_of(name).events:
        if event.HasField("activity_task_scheduled_event_attributes"):
            commands.append(event.activity_task_scheduled_event_attributes.activity_type.name)
        elif event.HasField("timer_started_event_attributes"):
            commands.append("timer")
        elif event.HasField("workflow_execution_completed_event_attributes"):
            [result] = event.workflow_execution_completed_event_attributes.result.payloads
            ended = json.loads(result.data) if name.startswith("order-") else {}
            commands.append(
                "{status}: {message}".format(**ended) if ended else result.data.decode()
            )
        elif event.HasField("workflow_execution_failed_event_attributes"):
            failure = event.workflow_execution_failed_event_attributes.failure
            commands.append(failure.cause.message or failure.message)
        elif event.HasField("workflow_execution_canceled_event_attributes"):
            commands.append("cancelled")
    assert commands == COMMANDS[name]


def test_retried_history_has_retries():
    """W6: the retried run needed two attempts to create and two to pay."""
    attempts = [
        event.activity_task_started_event_attributes.attempt
        for event in history_of("retried").events
        if event.HasField("activity_task_started_event_attributes")
    ]
    assert attempts == [2, 1, 2]


def test_undo_was_retried():
    """O5: the refund of that run needed three attempts."""
    attempts = [
        event.activity_task_started_event_attributes.attempt
        for event in history_of("order-undo-retried").events
        if event.HasField("activity_task_started_event_attributes")
    ]
    assert attempts == [1, 1, 1, 1, 1, 1, 3, 1, 1]


@pytest.mark.parametrize("name", COMMANDS)
async def test_replay(name: str):
    """W1, W7, J1, O2: the workflow as it is replays each committed history."""
    await Replayer(workflows=WORKFLOWS).replay_workflow(history_of(name))


@pytest.mark.parametrize("name", COMMANDS)
async def test_replay_shows_a_change(name: str):
    """W1: a workflow that begins otherwise does not replay, so test_replay proves something."""
    with pytest.raises(workflow.NondeterminismError):
        await Replayer(workflows=CHANGED).replay_workflow(history_of(name))
