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
def test_the_database_refuses_a_state_without_its_decision_or_payment(
    before: State, change: dict[str, Any], constraint: str
) -> None:
    """E1: an amount also needs its currency, and an id is not empty."""
    factories.expense(state=before)
    refused(constraint, lambda: Expense.objects.update(**change))


@pytest.mark.parametrize("shared", ["expense_id", "decision_id", "payment_id"])
def test_two_expenses_share_no_id_decision_or_payment(shared: str) -> None:
    """E1, X2: the database refuses it."""
    factories.expense("a", State.COMPLETED)
    factories.expense("b", State.COMPLETED)
    value = Expense.objects.values_list(shared, flat=True).get(expense_id="a")
    other = Expense.objects.filter(expense_id="b")
    refused(UNIQUE, lambda: other.update(**{shared: value}))


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


@pytest.mark.parametrize(
    ("verdict", "reason", "constraint"),
    [
        ("REJECTED", "", "decision_rejection_has_reason"),
        ("PENDING", "r", "decision_verdict_known"),
        ("", "r", "decision_verdict_known"),
        ("approved", "r", "decision_verdict_known"),
    ],
)
def test_the_database_refuses_an_unknown_verdict_and_a_rejection_without_a_reason(
    verdict: str, reason: str, constraint: str
) -> None:
    """X3, X5: a decision has a known verdict."""
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
