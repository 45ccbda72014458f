"""Every change of an expense. A change is one transaction: a compare-and-set on the state, the
audit entry, and the message to the workflow."""

import hashlib
import logging
import uuid
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final, NoReturn

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


def visible_to(actor: actors.Actor) -> QuerySet[Expense]:
    """Return the expenses that the actor sees on every route (requirements X10).

    These are all expenses with the permission to view or to carry them, else the actor's own.
    """
    expenses = Expense.objects.select_related("submitter", "decision", "payment")
    if actor.may("expenses.view_expense") or actor.may(CARRY):
        return expenses
    return expenses.filter(submitter=actor.user)


def may_decide(expense: Expense, actor: actors.Actor) -> bool:
    """Return whether the actor may decide `expense` in any state, so that pages offer it."""
    return approvals.may_decide(
        actor,
        permission=DECIDE,
        submitter_id=expense.submitter_id,
        opened_by_id=expense.opened_by_id,
    )


def may_withdraw(expense: Expense, actor: actors.Actor) -> bool:
    """Return whether the actor may withdraw `expense` now, so that pages offer it."""
    own = approvals.may_withdraw(actor, submitter_id=expense.submitter_id)
    return own and expense.state == State.CREATED


def create_expense(
    expense_id: str,
    *,
    workflow_id: str | None,
    actor: actors.Actor,
    route: Route,
    now: datetime,
) -> Expense:
    """Create an expense with nothing but an id (E5).

    If the workflow of an existing expense asks again, the result is that expense, even one that was
    submitted with details. Raises ExpenseExists.
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
        same = Expense.objects.filter(expense_id=expense_id, workflow_id=workflow_id).first()
        if workflow_id is None or same is None:
            _refuse_taken(expense_id, workflow_id)
        return same
    log.info("%s created by %s", expense_id, actor.name)
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


def submit_expense(
    expense_id: str,
    *,
    details: ExpenseDetails,
    actor: actors.Actor,
    route: Route,
    now: datetime,
) -> Expense:
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
                submitter=actor.user,
                created_at=now,
                **vars(details),
            )
            approvals.record_submission(SUBJECT, expense_id, actor=actor, route=route, now=now)
            outbox.enqueue(
                handlers.START_WORKFLOW, start_key(expense_id), start_payload(expense_id)
            )
    except IntegrityError:
        _refuse_taken(expense_id, workflow_id)
    log.info("%s submitted by %s", expense_id, actor.name)
    return expense


def start_payload(expense_id: str) -> dict[str, Any]:
    """Return the payload of the message that starts the workflow of an expense (E13)."""
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
    """Decide `expense`, once (requirements X1).

    Returns the message that notifies the waiting workflow. Without a known workflow there is none:
    a workflow that registers later gets the decision as the answer.
    Raises approvals.Refused where the rule forbids it, and approvals.AlreadyDecided where somebody
    was first. In both cases nothing changes but the audit trail.
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
        decided=expense.state != State.CREATED,
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
    # The decision has locked the expense, so no registration can come in between.
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
    decision = expense.decision
    assert decision is not None  # noqa: S101 (the CHECK on the state)
    value, key = _VALUE_OF[Verdict(decision.verdict)], decision_key(expense.expense_id)
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
        outbox.supersede(decision_key(expense.expense_id))
        return outbox.enqueue_again(
            handlers.START_WORKFLOW,
            start_key(expense.expense_id),
            start_payload(expense.expense_id),
        )


def record_payment(
    expense: Expense, *, actor: actors.Actor, route: Route, now: datetime
) -> LedgerEntry:
    """Pay an approved expense: APPROVED → COMPLETED, and a ledger row (requirements X2).

    A repeat returns the existing row. Raises NotPayable.
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


# The prefixes of the keys of an expense's messages, and the words for each message.
MESSAGES: Final = {"expense-start:": "start of", "expense-decision:": "decision on"}
_START, _DECISION = MESSAGES


def decision_key(expense_id: str) -> str:
    """Return the key of the outbox message that carries the decision to the workflow."""
    return _DECISION + expense_id


def start_key(expense_id: str) -> str:
    """Return the key of the outbox message that starts the workflow."""
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
