"""Runs that a released version began continue with this version."""

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


# What each history shows: the activities scheduled and the timers, in order, and the result or the
# cause of the failure. A change of a workflow that alters one of them goes behind
# `workflow.patched`, with a history of its own.
COMMANDS = {
    "approved": [
        "create_expense_activity",
        "wait_for_decision_activity",
        "payment_activity",
        '"COMPLETED"',
    ],
    "rejected": ["create_expense_activity", "wait_for_decision_activity", '""'],
    "job": ["say_hello_activity", '{"attempt":1,"msg":"Hello Temporal"}'],
    "job-failed": ["say_hello_activity", "msg is empty"],
    "order-completed": [*ORDER_STEPS, *ORDER_END, ORDERED],
    "order-of-fewer-steps": [*ORDER_STEPS[:3], *ORDER_END, ORDERED],
    "order-approved": [*APPROVAL, *ORDER_STEPS, *ORDER_END, ORDERED],
    "order-rejected": [*APPROVAL, "cancelled: bad customer"],
    "order-expired": [*APPROVAL, "cancelled: approval timed out"],
    # After a refused signal the run pauses, then waits for the rest of the window.
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
    """The workflow without its first command."""

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
    """The workflow without its first command."""

    @workflow.run
    async def run(self, order: contracts.Order) -> contracts.OrderResult:
        return contracts.OrderResult(order.order_id, "completed", "")


@workflow.defn(name=contracts.JOB_WORKFLOW, sandboxed=False)
class WithoutHello:
    """The workflow without its only command."""

    @workflow.run
    async def run(self, job: contracts.Job) -> contracts.JobResult:
        return contracts.JobResult(1, "")


def history_of(name: str) -> WorkflowHistory:
    return WorkflowHistory.from_json(name, (HISTORIES / f"{name}.json").read_text())


def commands(history: WorkflowHistory) -> list[str]:
    found = []
    for event in history.events:
        if event.HasField("activity_task_scheduled_event_attributes"):
            found.append(event.activity_task_scheduled_event_attributes.activity_type.name)
        elif event.HasField("timer_started_event_attributes"):
            found.append("timer")
        elif event.HasField("workflow_execution_completed_event_attributes"):
            [result] = event.workflow_execution_completed_event_attributes.result.payloads
            order = history.workflow_id.startswith("order-")
            ended = json.loads(result.data) if order else {}
            found.append("{status}: {message}".format(**ended) if order else result.data.decode())
        elif event.HasField("workflow_execution_failed_event_attributes"):
            failure = event.workflow_execution_failed_event_attributes.failure
            found.append(failure.cause.message or failure.message)
        elif event.HasField("workflow_execution_canceled_event_attributes"):
            found.append("cancelled")
    return found


def test_every_history_is_replayed() -> None:
    """W1, W7: no committed history is left out."""
    assert {path.stem for path in HISTORIES.glob("*.json")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
async def test_workflow_of_today_continues_the_run(name: str) -> None:
    """W1, W2, W7, J1, J3, O2-O5: a run of a released version, which shows the path that its name
    says, replays with the workflow of today."""
    history = history_of(name)
    assert commands(history) == COMMANDS[name]
    await Replayer(workflows=WORKFLOWS).replay_workflow(history)


@pytest.mark.parametrize(
    ("changed", "name"),
    [(WithoutCreate, "approved"), (WithoutHello, "job"), (WithoutSteps, "order-completed")],
)
async def test_changed_workflow_fails_the_replay(changed: type, name: str) -> None:
    """W1, J1, O2: a workflow whose first command is gone does not continue an old run, so the
    replay notices a change."""
    with pytest.raises(workflow.NondeterminismError):
        await Replayer(workflows=[changed]).replay_workflow(history_of(name))
