"""Names, ids and values that the site and the worker share. Standard library only.

Never change the name of a workflow, activity, signal or queue, nor an id or a field of a dataclass:
the histories of running workflows contain them.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote, unquote

# Where the site listens by default (requirements E13).
SITE_HOST: Final = "127.0.0.1"
SITE_PORT: Final = 8099
SITE_URL: Final = f"http://{SITE_HOST}:{SITE_PORT}"

# Temporal's address without TEMPORAL_ADDRESS.
TEMPORAL_ADDRESS: Final = "localhost:7233"

EXPENSE_QUEUE: Final = "expense"
EXPENSE_WORKFLOW: Final = "SampleExpenseWorkflow"

CREATE_EXPENSE: Final = "create_expense_activity"
WAIT_FOR_DECISION: Final = "wait_for_decision_activity"
PAYMENT: Final = "payment_activity"

# The values with which the site completes the waiting activity (requirements E1, E9).
APPROVED: Final = "APPROVED"
REJECTED: Final = "REJECTED"
CANCELLED: Final = "CANCELLED"

# The plain protocol's answers to programs: each ERROR word is the whole body (requirements E4-E7).
SUCCEED: Final = "SUCCEED"
ERROR_PREFIX: Final = "ERROR:"
FORBIDDEN: Final = "ERROR:FORBIDDEN"
ID_ALREADY_EXISTS: Final = "ERROR:ID_ALREADY_EXISTS"
INVALID_FORM_DATA: Final = "ERROR:INVALID_FORM_DATA"
INVALID_ID: Final = "ERROR:INVALID_ID"
INVALID_STATE: Final = "ERROR:INVALID_STATE"
INVALID_TYPE: Final = "ERROR:INVALID_TYPE"

# The workflow's result for a paid expense; for every other expense it is "" (requirements W2).
COMPLETED: Final = "COMPLETED"

ORDER_QUEUE: Final = "orders"
ORDER_WORKFLOW: Final = "OrderWorkflow"

# Signals to an order's workflow, each with the reason as its argument. The site reads them from the
# history of the run (requirements O3).
APPROVE_ORDER: Final = "approve_order"
REJECT_ORDER: Final = "reject_order"

# What an order's workflow asks of the site: each is the name of an activity and of the site's step.
AWAIT_APPROVAL: Final = "await_approval"
SETTLE_APPROVAL: Final = "settle_approval"
CHECK_INVENTORY: Final = "check_inventory"
RESERVE_INVENTORY: Final = "reserve_inventory"
PROCESS_PAYMENT: Final = "process_payment"
UPDATE_WAREHOUSE: Final = "update_warehouse"
COMPLETE_ORDER: Final = "complete_order"
SEND_CONFIRMATION: Final = "send_confirmation"
BEGIN_COMPENSATION: Final = "begin_compensation"
REVERT_WAREHOUSE: Final = "revert_warehouse"
REFUND_PAYMENT: Final = "refund_payment_by_idempotency_key"
RELEASE_INVENTORY: Final = "release_inventory"
CLOSE_ORDER: Final = "close_order"

# The states of an order in the site's answers (requirements O3).
PENDING: Final = "pending"
RUNNING: Final = "running"
COMPENSATING: Final = "compensating"
ORDER_COMPLETED: Final = "completed"
ORDER_CANCELLED: Final = "cancelled"
FAILED: Final = "failed"

# A workflow waits for a decision 30 days at most.
LONGEST_APPROVAL_SECONDS: Final = 30 * 24 * 3600


@dataclass(frozen=True)
class Order:
    """Argument of an order's workflow. Names and addresses of people stay on the site.

    `order` is the UUID of the record. `attempt` counts the order's runs from 1. `steps` are the
    names of the steps that the run carries out, in their sequence. `fail_at` is a key of
    :data:`FAIL_AT` or "".
    """

    order: str
    order_id: str
    attempt: int
    needs_approval: bool
    steps: list[str]
    fail_at: str = ""


@dataclass(frozen=True)
class StepRequest:
    """Argument of an order's activity, and of the site's step."""

    order: str
    attempt: int
    fail_at: str = ""


@dataclass(frozen=True)
class CompensationRequest(StepRequest):
    """Argument of `begin_compensation`: the step that failed and why, or that the run was cancelled
    in Temporal."""

    failed_step: str = ""
    reason: str = ""
    cancelled: bool = False


@dataclass(frozen=True)
class OrderState:
    """The state of an order: the site's answer to a step that asks.

    `reason` is why the order failed or was cancelled. `seconds_left` is after how many whole
    seconds, at least 1, the workflow asks again about a pending order. `begun` are the steps that a
    compensation undoes.
    """

    state: str
    verdict: str
    approval_reason: str
    reason: str
    seconds_left: int | None = None
    begun: list[str] | None = None


@dataclass(frozen=True)
class StepResult:
    """The site's answer to a step that has an effect, or to its undo; `message` is for people."""

    message: str


@dataclass(frozen=True)
class ReservationResult(StepResult):
    reservation_id: str


@dataclass(frozen=True)
class PaymentResult(StepResult):
    charge_id: str


@dataclass(frozen=True)
class DeliveryResult(StepResult):
    """`estimated_delivery` is a date, ISO 8601."""

    tracking_number: str
    estimated_delivery: str


class StepKind(Enum):
    """How the worker treats a refusal of the site.

    A refused APPROVAL or SAGA step fails the order. The worker asks again for a TRANSITION and an
    UNDO until the site accepts, so that no order is left half undone. A refused FOLLOW_UP has no
    effect.
    """

    APPROVAL = "approval"
    SAGA = "saga"
    TRANSITION = "transition"
    FOLLOW_UP = "follow-up"
    UNDO = "undo"


@dataclass(frozen=True)
class Step:
    """A step of an order: `name` is the name of the activity and of the site's step.

    `undo` is the name of the step that undoes it. `fail_at` is the word that makes it fail after
    its effect (requirements O6).
    """

    name: str
    kind: StepKind
    answer: type[StepResult] | type[OrderState] = StepResult
    undo: str = ""
    fail_at: str = ""


# All steps of orders, by name; the steps of the saga are in their sequence (requirements O2, O5). A
# step that is added here is for orders that begin later. Never remove a step: orders have it.
STEPS: Final = MappingProxyType(
    {
        step.name: step
        for step in (
            Step(AWAIT_APPROVAL, StepKind.APPROVAL, OrderState),
            Step(SETTLE_APPROVAL, StepKind.APPROVAL, OrderState),
            Step(CHECK_INVENTORY, StepKind.SAGA, fail_at="inventory-check"),
            Step(
                RESERVE_INVENTORY, StepKind.SAGA, ReservationResult, RELEASE_INVENTORY, "inventory"
            ),
            Step(PROCESS_PAYMENT, StepKind.SAGA, PaymentResult, REFUND_PAYMENT, "payment"),
            Step(UPDATE_WAREHOUSE, StepKind.SAGA, DeliveryResult, REVERT_WAREHOUSE, "warehouse"),
            Step(COMPLETE_ORDER, StepKind.TRANSITION, OrderState),
            Step(SEND_CONFIRMATION, StepKind.FOLLOW_UP),
            Step(BEGIN_COMPENSATION, StepKind.TRANSITION, OrderState),
            Step(REVERT_WAREHOUSE, StepKind.UNDO),
            Step(REFUND_PAYMENT, StepKind.UNDO),
            Step(RELEASE_INVENTORY, StepKind.UNDO),
            Step(CLOSE_ORDER, StepKind.TRANSITION, OrderState),
        )
    }
)

# The step after whose effect a failure is injected, by the value of `fail_at` (requirements O6).
FAIL_AT: Final = {step.fail_at: step.name for step in STEPS.values() if step.fail_at}


def saga_step_names() -> list[str]:
    """Return the names of the steps that an order carries out when it begins now."""
    return [step.name for step in STEPS.values() if step.kind is StepKind.SAGA]


@dataclass(frozen=True)
class Event:
    """`status` is "started", "completed", "failed" or "compensated"."""

    step: str
    status: str
    message: str
    timestamp: datetime


@dataclass(frozen=True)
class OrderStatus:
    """The status of an order, as `get_status` and `…/status` return it (requirements O3)."""

    order_id: str
    status: str
    current_step: str | None
    steps_completed: list[str]
    compensation_triggered: bool
    failure_reason: str | None
    events: list[Event]


def order_status(
    order_id: str, state: str, steps: list[str], events: list[Event], failure_reason: str | None
) -> OrderStatus:
    """Return the status of an order with these steps: the answer to the workflow's query
    `get_status`, and a part of the site's answer.

    A step that was completed and failed afterwards counts as failed.
    """
    failed = {event.step for event in events if event.status == "failed"}
    completed = [event.step for event in events if event.status == "completed"]
    return OrderStatus(
        order_id=order_id,
        status=state,
        current_step=_current_step(state, steps, events),
        steps_completed=[
            step
            for step in completed
            if step not in failed and STEPS[step].answer is not OrderState
        ],
        compensation_triggered=state == COMPENSATING
        or any(event.status == "compensated" for event in events),
        failure_reason=failure_reason,
        events=events,
    )


def _current_step(state: str, steps: list[str], events: list[Event]) -> str | None:
    """Return the step that is under way; None for an order that has ended.

    The site records no beginnings, so it names the step that comes next, and for an order that is
    compensated always `begin_compensation`.
    """
    if events and events[-1].status == "started":
        return events[-1].step
    seen = {event.step for event in events}
    left = [step for step in steps if step not in seen]
    return {
        PENDING: AWAIT_APPROVAL,
        RUNNING: left[0] if left else COMPLETE_ORDER,
        COMPENSATING: BEGIN_COMPENSATION,
    }.get(state)


@dataclass(frozen=True)
class OrderResult:
    """Result of the workflow of a completed or cancelled order; the run of a failed order fails.

    `payment`, `inventory` and `delivery` are the site's answers to these steps; None if the step
    was not done.
    """

    order_id: str
    status: str
    message: str
    payment: PaymentResult | None = None
    inventory: ReservationResult | None = None
    delivery: DeliveryResult | None = None


JOB_QUEUE: Final = "jobs"
JOB_WORKFLOW: Final = "SayHelloWorkflow"

SAY_HELLO: Final = "say_hello_activity"

# The queues and the workflow types of a worker of this project.
QUEUES: Final = (EXPENSE_QUEUE, ORDER_QUEUE, JOB_QUEUE)
WORKFLOWS: Final = (EXPENSE_WORKFLOW, ORDER_WORKFLOW, JOB_WORKFLOW)


@dataclass(frozen=True)
class Job:
    """Argument of a job's workflow and of its activity (requirements J1)."""

    msg: str
    fail_first_attempt: bool = False


@dataclass(frozen=True)
class JobResult:
    """Result of a job: a greeting, and the number of the attempt that succeeded, from 1."""

    attempt: int
    msg: str


# The longest reason or message that travels between Temporal and the site, in characters.
TEXT_LENGTH: Final = 2000


def storable(said: Any) -> str:
    """Return the value as a text that every database can store, cut at :data:`TEXT_LENGTH`.

    None becomes "". NUL and lone surrogates, which no database stores, become "?".
    """
    text = "" if said is None else str(said)
    return text.encode(errors="replace").decode().replace("\0", "?")[:TEXT_LENGTH]


def expense_workflow_id(expense_id: str) -> str:
    """Return the workflow id of an expense that the site or a command starts (requirements E13)."""
    return f"{_EXPENSE_PREFIX}{expense_id}"


def order_workflow_id(order_id: str) -> str:
    """Return the workflow id of an order whose client chose none (requirements O8)."""
    return f"order-{order_id}"


def command_workflow_id(order_id: str) -> str:
    """Return the workflow id of an order from the command line (requirements O8)."""
    return f"order-workflow-{order_id}"


_EXPENSE_PREFIX: Final = "expense_"
_JOB_PREFIX: Final = "say-hello-workflow-"
# An order's workflow id does not begin like the ids of expenses and jobs (requirements X7).
OTHERS_WORKFLOW_IDS: Final = (_EXPENSE_PREFIX, _JOB_PREFIX)


def job_workflow_id(unique: uuid.UUID) -> str:
    """Return the workflow id of a job (requirements J1)."""
    return f"{_JOB_PREFIX}{unique}"


def is_job_workflow_id(workflow_id: str) -> bool:
    """Return whether :func:`job_workflow_id` made the id; no other workflow has such an id."""
    return workflow_id.startswith(_JOB_PREFIX)


def idempotency_key(workflow_id: str) -> str:
    """Return the `Idempotency-Key` header for a workflow's requests.

    It is the workflow id, percent-encoded since a header carries only ASCII. It is never the run
    id: a reset or a retry is the same piece of work.
    """
    return quote(workflow_id, safe="")


def workflow_id_of_key(key: str) -> str:
    """Return the workflow id in an `Idempotency-Key` header: inverse of :func:`idempotency_key`."""
    return unquote(key)
