"""What the database itself refuses, whoever writes."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from approvals.models import Approval, AuditEntry, Verdict
from expenses.models import CallbackAddress, Expense, LedgerEntry, State
from outbox.models import Message
from temporal.outcomes import Outcome
from tests import factories

pytestmark = pytest.mark.django_db

MONEY = "amount_with_currency"
NOT_NULL = "NOT NULL|not-null"
UNIQUE = "UNIQUE|unique"


def refused(constraint: str, write: Callable[[], Any]) -> None:
    before = factories.records()
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        write()
    assert factories.records() == before


@pytest.mark.parametrize(
    ("model", "change", "constraint"),
    [
        (Expense, {"state": None}, NOT_NULL),
        (Expense, {"expense_id": None}, NOT_NULL),
        (Expense, {"approval": None}, NOT_NULL),
        (Approval, {"verdict": Verdict.APPROVED}, "approval_verdict_tied_to_entry"),
    ],
    ids=str,
)
def test_a_column_that_must_have_a_value_has_one(
    model: Any, change: dict[str, Any], constraint: str
) -> None:
    """E1, X1: a verdict has its audit entry. What follows for the state is in
    tests/expensesite/test_guards.py."""
    factories.expense()
    refused(constraint, lambda: model.objects.update(**change))


@pytest.mark.parametrize(
    "money", [{"amount": 1}, {"currency": "EUR"}, {"amount": -1, "currency": "EUR"}], ids=str
)
def test_an_approval_has_a_positive_amount_with_a_currency_or_none(money: dict[str, Any]) -> None:
    """E1: the database refuses any other."""
    approval = Approval(kind="expense", reference="x", opened_at=factories.NOW, **money)
    refused(MONEY, lambda: Approval.objects.bulk_create([approval]))


def test_an_expense_has_one_ledger_row() -> None:
    """X2: the database refuses a second one."""
    entry = LedgerEntry(expense=factories.expense(state=State.COMPLETED), paid_at=factories.NOW)
    refused(UNIQUE, lambda: LedgerEntry.objects.bulk_create([entry]))


@pytest.mark.parametrize(
    "money", [{"amount": 1}, {"currency": "EUR"}, {"amount": -1, "currency": "EUR"}], ids=str
)
def test_a_ledger_row_has_a_positive_amount_with_a_currency_or_none(money: dict[str, Any]) -> None:
    """X2: the database refuses any other."""
    entry = LedgerEntry(expense=factories.expense(), paid_at=factories.NOW, **money)
    refused(MONEY, lambda: LedgerEntry.objects.bulk_create([entry]))


def test_a_rejection_has_a_reason() -> None:
    """X3, X5: the database refuses an entry without one."""
    entry = AuditEntry(event="rejected", actor="a", route="admin", at=factories.NOW)
    refused("audit_rejection_has_reason", lambda: AuditEntry.objects.bulk_create([entry]))


@pytest.mark.parametrize(
    ("settled", "constraint"),
    [
        ({"outcome": Outcome.DELIVERED}, "message_settled_with_outcome"),
        ({"settled_at": factories.NOW}, "message_settled_with_outcome"),
        ({"outcome": "GAVE_UP", "settled_at": factories.NOW}, "message_outcome_known"),
        ({"outcome": "", "settled_at": factories.NOW}, "message_outcome_known"),
    ],
    ids=str,
)
def test_a_message_is_open_or_settled_with_a_known_outcome(
    settled: dict[str, Any], constraint: str
) -> None:
    """X1, X6: a settled message has its time."""
    factories.expense(state=State.APPROVED, callback=factories.address("wf-1"))
    refused(constraint, lambda: Message.objects.update(**settled))


def test_a_decision_has_one_message() -> None:
    """X1: the database refuses a second one."""
    factories.expense(state=State.APPROVED, callback=factories.address("wf-1"))
    message = Message.objects.get()
    message.pk = None
    refused(UNIQUE, lambda: Message.objects.bulk_create([message]))


def test_two_expenses_share_no_token() -> None:
    """X7: the database refuses it."""
    first = factories.expense("a", callback=factories.address("wf-a"))
    second = factories.expense("b", callback=factories.address("wf-b"))
    others = CallbackAddress.objects.filter(expense=second)
    refused(UNIQUE, lambda: others.update(token_hash=first.callback.token_hash))
