"""Names, ids and values on which the site and the worker agree. Standard library only.

All of them are frozen: they stand in the histories of running workflows.
"""

from typing import Final
from urllib.parse import quote, unquote

EXPENSE_QUEUE: Final = "expense"
EXPENSE_WORKFLOW: Final = "SampleExpenseWorkflow"

CREATE_EXPENSE: Final = "create_expense_activity"
WAIT_FOR_DECISION: Final = "wait_for_decision_activity"
PAYMENT: Final = "payment_activity"

# What the waiting activity is completed with (requirements E1, E9).
APPROVED: Final = "APPROVED"
REJECTED: Final = "REJECTED"
CANCELLED: Final = "CANCELLED"

# What the workflow returns for a paid expense; it returns "" for every other (W2).
COMPLETED: Final = "COMPLETED"


def expense_workflow_id(expense_id: str) -> str:
    """The workflow id of an expense that the site or the starter command began (E13)."""
    return f"expense_{expense_id}"


def idempotency_key(workflow_id: str) -> str:
    """`Idempotency-Key` header of a workflow's requests: its id, percent-encoded as a header
    carries only ASCII. Never the run id: a reset or a retry is the same piece of work."""
    return quote(workflow_id, safe="")


def workflow_id_of_key(key: str) -> str:
    """The workflow id in an `Idempotency-Key` header; inverse of :func:`idempotency_key`."""
    return unquote(key)
