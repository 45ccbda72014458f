"""What can happen to an expense. Each change is one transaction: compare-and-set on the state,
the record of it, and the message that carries it on."""

import hashlib
import logging
import uuid
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final

from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from access import actors
from approvals import services as approvals
from approvals.models import AuditEntry, Decision, Route, Verdict
from expenses.models import CallbackAddress, Expense, LedgerEntry, State
from outbox import handlers
from outbox import services as outbox
from outbox.models import Message
from temporal import addresses
from worker import contracts

log = logging.getLogger(__name__)

SUBJECT: Final = "expense"
DECIDE: Final = "expenses.decide_expense"
CARRY: Final = "expenses.carry_expense"
SUBMIT: Final = "expenses.submit_expense"

# What the waiting activity is completed with (E1, E9).
_VALUE_OF = {
    Verdict.APPROVED: contracts.APPROVED,
    Verdict.REJECTED: contracts.REJECTED,
    Verdict.WITHDRAWN: contracts.CANCELLED,
}
_STATE_OF = {verdict: State(verdict.value) for verdict in _VALUE_OF}


class ExpenseExists(Exception):
    """Another expense already uses this id or this workflow."""

    def __init__(self, expense: Expense, text: str) -> None:
        self.expense = expense
        super().__init__(text)


class NotPayable(approvals.WrongState):
    """Only an approved expense is paid."""


class NotWaiting(approvals.WrongState):
    """The expense is decided, so no callback is registered for it any more."""


class CallbackRefused(Exception):
    """The callback belongs to another workflow than the expense (requirements X7)."""


def visible_to(actor: actors.Actor) -> QuerySet[Expense]:
    """Return the expenses that the actor sees on every route (requirements X10).

    These are all expenses with the permission to view or to carry them, else the actor's own.
    """
    expenses = Expense.objects.select_related("submitter", "decision", "payment")
    if actor.may("expenses.view_expense") or actor.may(CARRY):
        return expenses
    return expenses.filter(submitter=actor.user)


def may_decide(expense: Expense, actor: actors.Actor) -> bool:
    """Whether the rule lets the actor decide `expense`, whatever its state; for pages that offer
    it."""
    return approvals.may_decide(
        actor,
        permission=DECIDE,
        submitter_id=expense.submitter_id,
        opened_by_id=expense.opened_by_id,
    )


def create_expense(
    expense_id: str,
    *,
    workflow_id: str | None,
    actor: actors.Actor,
    route: Route,
    now: datetime,
) -> Expense:
    """Create an expense of which just the id is known (E5).

    A repeat from the workflow that the expense belongs to returns the expense that is there, also
    one that was submitted with details. Raises ExpenseExists.
    """
    try:
        with transaction.atomic(durable=True):
            expense = Expense.objects.create(
                expense_id=expense_id,
                workflow_id=workflow_id,
                owns_workflow=workflow_id is not None,
                opened_by=actor.user,
                created_at=now,
            )
            _record(AuditEntry.Event.CREATED, expense, actor=actor, route=route, now=now)
    except IntegrityError:
        taken = _already_exists(expense_id, workflow_id)
        same = taken.expense.expense_id == expense_id and taken.expense.workflow_id == workflow_id
        if workflow_id is None or not same:
            raise taken from None
        return taken.expense
    log.info("%s created by %s", expense_id, actor.name)
    return expense


@dataclass(frozen=True, kw_only=True)
class Details:
    """What an employee says of an expense; `amount` in units of `currency` (ISO 4217)."""

    amount: Decimal
    currency: str
    merchant: str = ""
    category: str = ""
    description: str = ""
    incurred_on: date | None = None


def submit_expense(
    expense_id: str,
    *,
    details: Details,
    actor: actors.Actor,
    route: Route,
    now: datetime,
) -> Expense:
    """Create an expense in a person's name and have its workflow started.

    Raises ExpenseExists, approvals.TooManySubmissions.
    """
    workflow_id = contracts.expense_workflow_id(expense_id)
    try:
        with transaction.atomic():
            expense = Expense.objects.create(
                expense_id=expense_id,
                workflow_id=workflow_id,
                owns_workflow=True,
                submitter=actor.user,
                created_at=now,
                **vars(details),
            )
            approvals.record_submission(SUBJECT, expense_id, actor=actor, route=route, now=now)
            outbox.enqueue(handlers.START_WORKFLOW, start_key(expense_id), _start(expense_id))
    except IntegrityError:
        raise _already_exists(expense_id, workflow_id) from None
    log.info("%s submitted by %s", expense_id, actor.name)
    return expense


def _start(expense_id: str) -> dict[str, Any]:
    """Payload of the message that starts an expense's workflow (E13)."""
    return {
        "workflow": contracts.EXPENSE_WORKFLOW,
        "argument": expense_id,
        "workflow_id": contracts.expense_workflow_id(expense_id),
        "queue": contracts.EXPENSE_QUEUE,
    }


def register_callback(
    expense: Expense,
    address: addresses.Address,
    *,
    actor: actors.Actor,
    route: Route,
    now: datetime,
) -> None:
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
                    "registered_at": now,
                },
            )
            if first or binds:
                _record(AuditEntry.Event.REGISTERED, expense, actor=actor, route=route, now=now)
    except IntegrityError:
        refusal = CallbackRefused("Its token or its activity belongs to another expense.")
    except CallbackRefused as error:
        refusal = error
    else:
        log.info("%s: callback registered by %s", expense.expense_id, actor.name)
        return
    approvals.record_refusal(
        SUBJECT,
        expense.expense_id,
        f"callback: {refusal}",
        actor=actor,
        route=route,
        now=now,
    )
    raise refusal


def decide_expense(
    expense: Expense,
    *,
    verdict: Verdict,
    actor: actors.Actor,
    route: Route,
    now: datetime,
    reason: str = "",
) -> Message | None:
    """Take the one decision on `expense` (design rule 1).

    Returns the message that tells the waiting workflow; None where none is known: its registration
    is then told the decision.
    Raises approvals.Refused where the actor may not (audited, but for a missing reason),
    approvals.AlreadyDecided where somebody was first; either way nothing changes.
    """
    approvals.check_may_decide(
        actor,
        verdict=verdict,
        permission=DECIDE,
        subject=SUBJECT,
        subject_id=expense.expense_id,
        submitter_id=expense.submitter_id,
        opened_by_id=expense.opened_by_id,
        reason=reason,
        route=route,
        now=now,
    )
    with transaction.atomic(durable=True):
        decision_id = uuid.uuid4()
        if not Expense.objects.filter(pk=expense.pk, state=State.CREATED).update(
            state=_STATE_OF[verdict], decision_id=decision_id
        ):
            decision = Decision.objects.get(expense=expense)
            raise approvals.AlreadyDecided(expense.expense_id, decision)
        approvals.record_decision(
            decision_id,
            verdict=verdict,
            subject=SUBJECT,
            subject_id=expense.expense_id,
            actor=actor,
            route=route,
            reason=reason,
            now=now,
        )
        message = _notify(expense, _VALUE_OF[verdict])
    log.info("%s %s by %s", expense.expense_id, verdict.label, actor.name)
    return message


def _notify(expense: Expense, value: str) -> Message | None:
    # Read after the decision took the row: no registration can come between.
    callback = CallbackAddress.objects.filter(expense=expense).first()
    key = decision_key(expense.expense_id)
    if callback is not None:
        payload = {"address": callback.sealed(), "value": value}
        return outbox.enqueue(handlers.COMPLETE_ACTIVITY, key, payload)
    if not expense.owns_workflow:
        return None
    started = not outbox.waiting([start_key(expense.expense_id)])
    return outbox.enqueue(handlers.COMPLETE_WAIT, key, _wait(expense, value, started=started))


def _wait(expense: Expense, value: str, *, started: bool = True) -> dict[str, Any]:
    """Payload of the message that completes the wait of the workflow that an expense owns."""
    return {
        "workflow_id": expense.workflow_id,
        "activity_type": contracts.WAIT_FOR_DECISION,
        "argument": expense.expense_id,
        "value": value,
        "started": started,
    }


def deliver_again(expense: Expense) -> bool:
    """Queue the decision on `expense` for the workflow that still waits for it; False where it
    is queued already.

    To the wait of the workflow that the expense owns, else to the address that was registered.
    """
    decision = expense.decision
    assert decision is not None  # noqa: S101 (the CHECK on the state)
    value, key = _VALUE_OF[Verdict(decision.verdict)], decision_key(expense.expense_id)
    if expense.owns_workflow:
        return outbox.enqueue_again(handlers.COMPLETE_WAIT, key, _wait(expense, value))
    payload = {"address": expense.callback.sealed(), "value": value}
    return outbox.enqueue_again(handlers.COMPLETE_ACTIVITY, key, payload)


def start_again(expense: Expense) -> bool:
    """Queue the start of the workflow `expense_<id>` that ended without a result, or that Temporal
    lost; False where it is queued already.

    What was done is answered as done (design rule 4). Its wait is told the decision when it
    registers, so that a message that found nobody needs no attention any more.
    """
    with transaction.atomic():
        outbox.supersede(decision_key(expense.expense_id))
        return outbox.enqueue_again(
            handlers.START_WORKFLOW, start_key(expense.expense_id), _start(expense.expense_id)
        )


def record_payment(
    expense: Expense, *, actor: actors.Actor, route: Route, now: datetime
) -> LedgerEntry:
    """Pay an approved expense: APPROVED → COMPLETED and its ledger row (design rule 5).

    A repeat returns the row that is there. Raises NotPayable.
    """
    with transaction.atomic(durable=True):
        payment_id = uuid.uuid4()
        if not Expense.objects.filter(pk=expense.pk, state=State.APPROVED).update(
            state=State.COMPLETED, payment_id=payment_id
        ):
            paid: LedgerEntry | None = LedgerEntry.objects.filter(expense=expense).first()
            if paid is None:
                raise NotPayable(f"{expense.expense_id} is not approved, so it is not paid.")
            return paid
        entry: LedgerEntry = LedgerEntry.objects.create(
            id=payment_id,
            expense=expense,
            amount=expense.amount,
            currency=expense.currency,
            paid_at=now,
        )
        _record(AuditEntry.Event.PAID, expense, actor=actor, route=route, now=now)
    log.info("%s paid by %s", expense.expense_id, actor.name)
    return entry


def _already_exists(expense_id: str, workflow_id: str | None) -> ExpenseExists:
    """Which unique id a new expense shares, and with which expense."""
    if expense := Expense.objects.filter(expense_id=expense_id).first():
        return ExpenseExists(
            expense, f"There is an expense {expense_id} already. Choose another ID."
        )
    expense = Expense.objects.filter(workflow_id=workflow_id, owns_workflow=True).latest(
        "created_at"
    )
    return ExpenseExists(
        expense,
        f"The workflow {workflow_id} carries {expense} already. Use another workflow id.",
    )


# The prefixes of the keys of an expense's messages, and the words for each message.
MESSAGES: Final = {"expense-start:": "start of", "expense-decision:": "decision on"}
_START, _DECISION = MESSAGES


def decision_key(expense_id: str) -> str:
    """Key of the outbox message that carries the decision to the workflow."""
    return _DECISION + expense_id


def start_key(expense_id: str) -> str:
    """Key of the outbox message that starts the workflow."""
    return _START + expense_id


def _record(
    event: AuditEntry.Event,
    expense: Expense,
    *,
    actor: actors.Actor,
    route: Route,
    now: datetime,
) -> None:
    approvals.record_event(
        event,
        subject=SUBJECT,
        subject_id=expense.expense_id,
        actor=actor,
        route=route,
        now=now,
    )
