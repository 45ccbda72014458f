"""Names, ids and values that the site and the worker share. Standard library only.

Never change the name of a workflow, activity, signal or queue, nor an id or a field of a dataclass:
the histories of running workflows contain them.
"""

import uuid
from dataclasses import dataclass
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

# The steps of an order in their sequence, each with its undo (requirements O2, O5).
SAGA: Final = (
    (CHECK_INVENTORY, None),
    (RESERVE_INVENTORY, RELEASE_INVENTORY),
    (PROCESS_PAYMENT, REFUND_PAYMENT),
    (UPDATE_WAREHOUSE, REVERT_WAREHOUSE),
)

# The step after whose effect a failure is injected, by the value of `fail_at` (requirements O6).
FAIL_AT: Final = {
    "inventory-check": CHECK_INVENTORY,
    "inventory": RESERVE_INVENTORY,
    "payment": PROCESS_PAYMENT,
    "warehouse": UPDATE_WAREHOUSE,
}

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

    `order` is the UUID of the record. `attempt` counts the order's runs from 1. `fail_at` is a key
    of :data:`FAIL_AT` or "".
    """

    order: str
    order_id: str
    attempt: int
    needs_approval: bool
    fail_at: str = ""


@dataclass(frozen=True)
class Step:
    """Argument of each activity of an order. `details` are further fields of the request."""

    order: str
    attempt: int
    fail_at: str = ""
    details: dict[str, Any] | None = None


@dataclass(frozen=True)
class OrderResult:
    """Result of the workflow of a completed or cancelled order; the run of a failed order fails.

    `payment`, `inventory` and `delivery` are the site's answers to these steps, each with a
    `message`; None if the step was not done.
    """

    order_id: str
    status: str
    message: str
    payment: dict[str, Any] | None = None
    inventory: dict[str, Any] | None = None
    delivery: dict[str, Any] | None = None


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
