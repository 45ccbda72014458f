"""Changes of expenses, and what follows from a decision, which approvals.services takes.

A change is one transaction: a compare-and-set on the state, the audit entry, and the message to the
workflow.
"""

import hashlib
import logging
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Final, NoReturn

from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from access.actors import Actor
from approvals import rows
from approvals import services as approvals
from approvals.kinds import Kind
from approvals.models import Approval, AuditEntry, Verdict
from expenses.models import CallbackAddress, Expense, LedgerEntry, State
from outbox import handlers
from outbox import services as outbox
from outbox.models import Message
from temporal import addresses
from worker import contracts

log = logging.getLogger(__name__)

DECIDE: Final = "expenses.decide_expense"
CARRY: Final = "expenses.carry_expense"
SUBMIT: Final = "expenses.submit_expense"

# The value that completes the waiting activity (E1, E9).
_VALUE_OF = {
    Verdict.APPROVED: contracts.APPROVED,
    Verdict.REJECTED: contracts.REJECTED,
    Verdict.WITHDRAWN: contracts.CANCELLED,
}
_STATE_OF = {verdict: State(verdict.value) for verdict in _VALUE_OF}


class ExpenseExists(Exception):
    """Another expense already uses this id or this workflow."""


class NotPayable(approvals.WrongState):
    """The expense is not approved, so it is not paid."""


class NotWaiting(approvals.WrongState):
    """The expense is decided, so it takes no callback."""


class CallbackRefused(Exception):
    """The callback and the expense belong to different workflows (requirements X7)."""


def visible_to(actor: Actor) -> QuerySet[Expense]:
    """Return the expenses that the actor sees on every route (requirements X10).

    These are all expenses with the permission to view or to carry them, else the actor's own.
    """
    expenses = with_approval()
    return expenses if KIND.is_seen_by(actor) else expenses.filter(approval__submitter=actor.user)


def with_approval() -> QuerySet[Expense]:
    return Expense.objects.select_related("approval__submitter", "approval__entry", "payment")


def create_expense(expense_id: str, *, workflow_id: str | None, act: approvals.Act) -> Expense:
    """Create an expense with nothing but an id (E5).

    If the workflow of an existing expense asks again, the result is that expense, even one that was
    submitted with details. Raises ExpenseExists.
    """
    try:
        with transaction.atomic(durable=True):
            expense = Expense(
                expense_id=expense_id,
                workflow_id=workflow_id,
                owns_workflow=workflow_id is not None,
                approval=approvals.open_approval(
                    KIND, expense_id, at=act.at, opened_by=act.actor.user
                ),
                created_at=act.at,
            )
            rows.insert(expense)
            approvals.record(AuditEntry.Event.CREATED, KIND.name, expense.expense_id, act)
    except IntegrityError as error:
        if not approvals.is_duplicate(error):
            raise
        same = Expense.objects.filter(expense_id=expense_id, workflow_id=workflow_id).first()
        if workflow_id is None or same is None:
            _refuse_taken(expense_id, workflow_id)
        return same
    log.info("%s created by %s", expense_id, act.actor.name)
    return expense


@dataclass(frozen=True, kw_only=True)
class ExpenseDetails:
    """The details that an employee gives; `amount` is in units of `currency` (ISO 4217)."""

    amount: Decimal
    currency: str
    merchant: str = ""
    category: str = ""
    description: str = ""
    incurred_on: date | None = None


def submit_expense(expense_id: str, *, details: ExpenseDetails, act: approvals.Act) -> Expense:
    """Create an expense in a person's name, and queue the start of its workflow.

    Raises ExpenseExists, approvals.TooManySubmissions.
    """
    workflow_id = contracts.expense_workflow_id(expense_id)
    try:
        with transaction.atomic():
            expense = Expense.objects.create(
                expense_id=expense_id,
                workflow_id=workflow_id,
                owns_workflow=True,
                approval=approvals.open_approval(
                    KIND,
                    expense_id,
                    at=act.at,
                    submitter=act.actor.user,
                    amount=details.amount,
                    currency=details.currency,
                    title=details.merchant,
                    category=details.category,
                    search=details.description,
                ),
                merchant=details.merchant,
                description=details.description,
                incurred_on=details.incurred_on,
                created_at=act.at,
            )
            approvals.record_submission(KIND.name, expense_id, act)
            outbox.enqueue(
                handlers.START_WORKFLOW, KIND.key("start", expense_id), start_payload(expense_id)
            )
    except IntegrityError as error:
        if not approvals.is_duplicate(error):
            raise
        _refuse_taken(expense_id, workflow_id)
    log.info("%s submitted by %s", expense_id, act.actor.name)
    return expense


def is_submitted(expense_id: str, details: ExpenseDetails, actor: Actor) -> bool:
    """Return whether the actor has submitted an expense with this id and these details."""
    return Expense.objects.filter(
        expense_id=expense_id,
        approval__submitter=actor.user,
        **{
            f"approval__{name}" if name in ("amount", "currency", "category") else name: value
            for name, value in vars(details).items()
        },
    ).exists()


def start_payload(expense_id: str) -> dict[str, Any]:
    """Return the payload of the message that starts the workflow of an expense (E13)."""
    return {
        "workflow": contracts.EXPENSE_WORKFLOW,
        "argument": expense_id,
        "workflow_id": contracts.expense_workflow_id(expense_id),
        "queue": contracts.EXPENSE_QUEUE,
    }


def register_callback(expense: Expense, address: addresses.Address, act: approvals.Act) -> None:
    """Store where the decision on `expense` is to be delivered (E7, X7).

    An expense that belongs to no workflow is bound to the first that is named. The first
    registration and the binding are audited; a repeated registration replaces the address.
    Raises NotWaiting, or CallbackRefused, which is audited.
    """
    named, inside = address.workflow_id, addresses.ids_in_token(address.token)
    try:
        with transaction.atomic(durable=True):
            # Locked against a decision and against another registration.
            locked = Expense.objects.select_for_update().get(pk=expense.pk)
            if locked.state != State.CREATED:
                raise NotWaiting(f"{expense.expense_id} is decided.")
            if locked.workflow_id not in (None, named):
                raise CallbackRefused("It names another workflow than the expense's, or none.")
            if named and inside.workflow_id not in ("", named):
                raise CallbackRefused("Its token belongs to another workflow than it names.")
            owners = Expense.objects.exclude(pk=expense.pk).filter(
                owns_workflow=True, workflow_id__in=filter(None, (named, inside.workflow_id))
            )
            if not locked.owns_workflow and owners.exists():
                raise CallbackRefused("Its workflow belongs to another expense.")
            binds = locked.workflow_id is None and named != ""
            if binds:
                Expense.objects.filter(pk=expense.pk).update(workflow_id=named)
            _, first = CallbackAddress.objects.update_or_create(
                expense=expense,
                defaults={
                    **address.with_ids_of(inside).sealed(),
                    "token_hash": hashlib.sha256(address.token).hexdigest(),
                    "registered_at": act.at,
                },
            )
            if first or binds:
                approvals.record(AuditEntry.Event.REGISTERED, KIND.name, expense.expense_id, act)
    except IntegrityError as error:
        if not approvals.is_duplicate(error):
            raise
        refusal = CallbackRefused("Its token or its activity belongs to another expense.")
    except CallbackRefused as error:
        refusal = error
    else:
        log.info("%s: callback registered by %s", expense.expense_id, act.actor.name)
        return
    approvals.record_refusal(KIND.name, expense.expense_id, f"callback: {refusal}", act)
    raise refusal


def _decided(approval: Approval, act: approvals.Act) -> Message | None:
    """Write the state, and notify the workflow that waits. Without a known workflow there is no
    message: a workflow that registers later gets the decision as the answer."""
    verdict, expense = Verdict(str(approval.verdict)), approval.expense
    Expense.objects.filter(pk=expense.pk).update(state=_STATE_OF[verdict])
    return _notify(expense, _VALUE_OF[verdict])


def _notify(expense: Expense, value: str) -> Message | None:
    # The decision has locked the expense, so no registration can come in between.
    callback = CallbackAddress.objects.filter(expense=expense).first()
    key = KIND.key("decision", expense.expense_id)
    if callback is not None:
        payload = {"address": callback.sealed(), "value": value}
        return outbox.enqueue(handlers.COMPLETE_ACTIVITY, key, payload)
    if not expense.owns_workflow:
        return None
    started = not outbox.waiting([KIND.key("start", expense.expense_id)])
    return outbox.enqueue(handlers.COMPLETE_WAIT, key, _wait(expense, value, started=started))


def _wait(expense: Expense, value: str, *, started: bool = True) -> dict[str, Any]:
    """Return the payload of the message that completes the waiting activity of the expense's own
    workflow."""
    return {
        "workflow_id": expense.workflow_id,
        "activity_type": contracts.WAIT_FOR_DECISION,
        "argument": expense.expense_id,
        "value": value,
        "started": started,
    }


def notify_again(expense: Expense) -> bool:
    """Queue the decision on `expense` again, for a workflow that still waits for it.

    It goes to the waiting activity of the expense's own workflow, else to the registered address.
    Returns False where it is queued already.
    """
    value = _VALUE_OF[Verdict(str(expense.approval.verdict))]
    key = KIND.key("decision", expense.expense_id)
    if expense.owns_workflow:
        return outbox.enqueue_again(handlers.COMPLETE_WAIT, key, _wait(expense, value))
    payload = {"address": expense.callback.sealed(), "value": value}
    return outbox.enqueue_again(handlers.COMPLETE_ACTIVITY, key, payload)


def start_again(expense: Expense) -> bool:
    """Queue the start of the workflow `expense_<id>` again, after it ended without a result or
    Temporal lost it.

    The site answers the new run's repeated requests with success, and its registration with a
    decision that was made. An earlier message with the decision is therefore superseded.
    Returns False where the start is queued already.
    """
    with transaction.atomic():
        outbox.supersede(KIND.key("decision", expense.expense_id))
        return outbox.enqueue_again(
            handlers.START_WORKFLOW,
            KIND.key("start", expense.expense_id),
            start_payload(expense.expense_id),
        )


def record_payment(expense: Expense, act: approvals.Act) -> LedgerEntry:
    """Pay an approved expense: APPROVED → COMPLETED, and a ledger row (requirements X2).

    A repeat returns the existing row. Raises NotPayable.
    """
    with transaction.atomic(durable=True):
        # Locked against another payment. The database takes a ledger row of an approved expense
        # only, and the state COMPLETED only with a ledger row.
        locked = Expense.objects.select_for_update().filter(pk=expense.pk)
        state = locked.values_list("state", flat=True).get()
        if state not in (State.APPROVED, State.COMPLETED):
            raise NotPayable(f"{expense.expense_id} is not approved, so it is not paid.")
        entry: LedgerEntry
        entry, is_new = LedgerEntry.objects.get_or_create(
            expense=expense,
            defaults={
                "amount": expense.approval.amount,
                "currency": expense.approval.currency,
                "paid_at": act.at,
            },
        )
        locked.filter(state=State.APPROVED).update(state=State.COMPLETED)
        if not is_new:
            return entry
        approvals.record(AuditEntry.Event.PAID, KIND.name, expense.expense_id, act)
    log.info("%s paid by %s", expense.expense_id, act.actor.name)
    return entry


def check_id_is_free(expense_id: str) -> None:
    """Raise ExpenseExists where an expense has this id."""
    if Expense.objects.filter(expense_id=expense_id).exists():
        raise ExpenseExists(f"There is an expense {expense_id} already. Choose another ID.")


def _refuse_taken(expense_id: str, workflow_id: str | None) -> NoReturn:
    """Raise ExpenseExists for the id or the workflow that a new expense shares with another."""
    check_id_is_free(expense_id)
    owner = Expense.objects.filter(workflow_id=workflow_id, owns_workflow=True).latest("created_at")
    raise ExpenseExists(
        f"The workflow {workflow_id} carries {owner} already. Use another workflow id."
    )


KIND: Final = Kind(
    name="expense",
    model=Expense,
    own_id="expense_id",
    permission=DECIDE,
    seen_with=("expenses.view_expense", CARRY),
    verdicts=frozenset(_VALUE_OF),
    decided=_decided,
    messages={"start": "start of", "decision": "decision on"},
)
