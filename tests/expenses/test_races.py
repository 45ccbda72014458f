"""Two changes of one expense at the same moment, over real connections, in every pair."""

import itertools
from collections.abc import Callable

import pytest

from access import groups
from approvals import services as approvals
from approvals.models import Approval, Verdict
from expenses import services
from expenses.models import CallbackAddress, Expense, LedgerEntry, State
from outbox.models import Message
from tests import factories
from tests.conftest import at_once

EXPENSES = 12
VALUES = {"APPROVED": "APPROVED", "REJECTED": "REJECTED", "WITHDRAWN": "CANCELLED"}


def decide(verdict: Verdict) -> Callable[[Expense], None]:
    def change(expense: Expense) -> None:
        person = expense.approval.submitter if verdict == Verdict.WITHDRAWN else None
        approvals.decide(expense.approval, verdict, factories.act(person, reason="r"))

    return change


def register(expense: Expense) -> None:
    address = factories.address(str(expense.workflow_id))
    services.register_callback(expense, address, factories.act())


def pay(expense: Expense) -> None:
    services.record_payment(expense, factories.act())


CHANGES = {
    "approve": decide(Verdict.APPROVED),
    "reject": decide(Verdict.REJECTED),
    "withdraw": decide(Verdict.WITHDRAWN),
    "register": register,
    "pay": pay,
}


PAIRS = list(itertools.combinations_with_replacement(CHANGES, 2))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.django_db(transaction=True)
def test_racing_changes_leave_one_consistent_expense(pair: tuple[str, str]) -> None:
    """X1, X2, E11: whichever comes first, state, verdict, ledger, trail and message agree, and
    each call was done or refused with the product's own words."""
    person = factories.user(groups.EMPLOYEE)
    for number in range(EXPENSES):
        factories.expense(f"exp-{number}", submitter=person)
    done: dict[str, list[str]] = {f"exp-{number}": [] for number in range(EXPENSES)}

    def call(expense_id: str, name: str) -> None:
        expense = Expense.objects.select_related("approval__submitter").get(expense_id=expense_id)
        try:
            CHANGES[name](expense)
        except approvals.WrongState:
            return
        done[expense_id].append(name)

    for expense_id in done:
        at_once([lambda name=name, one=expense_id: call(one, name) for name in pair])  # type: ignore[misc]
    for expense in Expense.objects.select_related("approval__entry"):
        check(expense, done[expense.expense_id])


def check(expense: Expense, done: list[str]) -> None:
    verdicts = [name for name in done if name in ("approve", "reject", "withdraw")]
    approval: Approval = expense.approval
    assert len(verdicts) == int(approval.verdict is not None)
    paid = LedgerEntry.objects.filter(expense=expense).count()
    assert paid == int("pay" in done)
    assert expense.state == (State.COMPLETED if paid else approval.verdict or State.CREATED)
    trail = approvals.trail("expense", expense.expense_id)
    taken = trail.filter(event__in=["approved", "rejected", "withdrawn"])
    assert list(taken) == ([approval.entry] if approval.entry else [])
    messages = Message.objects.filter(key=f"expense-decision:{expense.expense_id}")
    values = [message.payload["value"] for message in messages]
    assert values == [VALUES[verdict] for verdict in (approval.verdict,) if verdict]
    # A registration that came before the decision gets it by its address.
    if approval.verdict and CallbackAddress.objects.filter(expense=expense).exists():
        assert messages.get().kind == "complete_activity"
