"""What the database itself refuses, whoever writes."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from approvals.models import Decision
from expenses.models import CallbackAddress, Expense, LedgerEntry, State
from outbox.models import Message
from temporal.outcomes import Outcome
from tests import factories

pytestmark = pytest.mark.django_db

TIED = "expense_state_tied_to_decision_and_payment"
MONEY = "amount_with_currency"
NOT_NULL = "NOT NULL|not-null"
UNIQUE = "UNIQUE|unique"
DECIDED = [state for state in State if state != State.CREATED]


def refused(constraint: str, write: Callable[[], Any]) -> None:
    before = factories.records()
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        write()
    assert factories.records() == before


@pytest.mark.parametrize(
    ("before", "change", "constraint"),
    [
        *((State.CREATED, {"state": state}, TIED) for state in ("PAID", "", "created", *DECIDED)),
        *((state, {"state": State.CREATED}, TIED) for state in DECIDED),
        *((state, {"decision_id": None}, TIED) for state in DECIDED),
        (State.APPROVED, {"state": State.COMPLETED}, TIED),
        *((State.COMPLETED, {"state": state}, TIED) for state in DECIDED[:3]),
        (State.COMPLETED, {"payment_id": None}, TIED),
        (State.CREATED, {"state": None}, NOT_NULL),
        (State.CREATED, {"expense_id": None}, NOT_NULL),
        (State.CREATED, {"expense_id": ""}, "expense_id_not_empty"),
        (State.CREATED, {"amount": 1}, MONEY),
        (State.CREATED, {"currency": "EUR"}, MONEY),
        (State.CREATED, {"amount": -1, "currency": "EUR"}, MONEY),
    ],
    ids=str,
)
def test_impossible_expense(before: State, change: dict[str, Any], constraint: str) -> None:
    """E1: state, decision and payment are tied; an amount has a currency; an id is not empty."""
    factories.expense(state=before)
    refused(constraint, lambda: Expense.objects.update(**change))


@pytest.mark.parametrize("shared", ["expense_id", "decision_id", "payment_id"])
def test_shared_between_expenses(shared: str) -> None:
    """E1, X2: two expenses share neither an id, nor a decision, nor a payment."""
    factories.expense("a", State.COMPLETED)
    factories.expense("b", State.COMPLETED)
    value = Expense.objects.values_list(shared, flat=True).get(expense_id="a")
    other = Expense.objects.filter(expense_id="b")
    refused(UNIQUE, lambda: other.update(**{shared: value}))


def test_second_ledger_row() -> None:
    """X2: one ledger row per expense."""
    entry = LedgerEntry(expense=factories.expense(state=State.COMPLETED), paid_at=factories.NOW)
    refused(UNIQUE, lambda: LedgerEntry.objects.bulk_create([entry]))


@pytest.mark.parametrize(
    "money", [{"amount": 1}, {"currency": "EUR"}, {"amount": -1, "currency": "EUR"}], ids=str
)
def test_impossible_ledger_row(money: dict[str, Any]) -> None:
    """X2: an amount has a currency and is not negative, in the ledger too."""
    entry = LedgerEntry(expense=factories.expense(), paid_at=factories.NOW, **money)
    refused(MONEY, lambda: LedgerEntry.objects.bulk_create([entry]))


@pytest.mark.parametrize(
    ("verdict", "reason", "constraint"),
    [
        ("REJECTED", "", "decision_rejection_has_reason"),
        ("PENDING", "r", "decision_verdict_known"),
        ("", "r", "decision_verdict_known"),
        ("approved", "r", "decision_verdict_known"),
    ],
)
def test_impossible_decision(verdict: str, reason: str, constraint: str) -> None:
    """X3, X5: a verdict is one of three, and a rejection has its reason."""
    decision = Decision(verdict=verdict, reason=reason, actor="a", route="admin", at=factories.NOW)
    refused(constraint, lambda: Decision.objects.bulk_create([decision]))


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
def test_impossible_message(settled: dict[str, Any], constraint: str) -> None:
    """X1, X6: a message is open, or settled at a time with a known outcome."""
    factories.expense(state=State.APPROVED, callback=factories.address("wf-1"))
    refused(constraint, lambda: Message.objects.update(**settled))


def test_second_message_about_one_decision() -> None:
    """X1: what a message is about has one message."""
    factories.expense(state=State.APPROVED, callback=factories.address("wf-1"))
    message = Message.objects.get()
    message.pk = None
    refused(UNIQUE, lambda: Message.objects.bulk_create([message]))


def test_shared_token() -> None:
    """X7: two expenses never share a token."""
    first = factories.expense("a", callback=factories.address("wf-a"))
    second = factories.expense("b", callback=factories.address("wf-b"))
    others = CallbackAddress.objects.filter(expense=second)
    refused(UNIQUE, lambda: others.update(token_hash=first.callback.token_hash))
