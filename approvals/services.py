"""Approvals of every kind: who may decide them, the one way to decide, and the audit trail.

Lock an approval before its request, in every transaction that changes both.
"""

import logging
import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet

from access.actors import Actor
from approvals import rows
from approvals.kinds import KINDS, Kind
from approvals.models import Approval, AuditEntry, Route, Verdict
from outbox.models import Message

log = logging.getLogger(__name__)

SUBMISSION_WINDOW: Final = timedelta(hours=1)


@dataclass(frozen=True)
class Act:
    """Who does something, by which route, when, and why."""

    actor: Actor
    route: Route
    at: datetime
    reason: str = ""


class Refused(Exception):
    """The actor may not decide this way. The text is a sentence for the person."""


class NotPermitted(Refused):
    pass


class SelfApproval(Refused):
    pass


class ReasonMissing(Refused):
    pass


class WrongState(Exception):
    """The state of the request does not allow the change. The text is a sentence for the person,
    with the request's name."""


class AlreadyDecided(WrongState):
    """The approval was decided before; `verdict` says how."""

    def __init__(self, approval: Approval) -> None:
        self.verdict, entry = Verdict(str(approval.verdict)), approval.decision
        said = "waits for no decision: it ended or was retried meanwhile"
        if self.verdict == Verdict.EXPIRED:
            said = "was already expired: nobody decided in time"
        elif entry is not None:
            said = f"was already {self.verdict.label} by {entry.actor}"
        super().__init__(f"{approval.reference} {said}.")


class TooManySubmissions(Exception):
    """The person has submitted SUBMISSIONS_PER_HOUR requests, and can submit again in
    `wait_seconds`."""

    def __init__(self, wait_seconds: int) -> None:
        self.wait_seconds = wait_seconds
        super().__init__(
            f"You have submitted {settings.SUBMISSIONS_PER_HOUR} requests within an hour; nothing "
            f"was submitted. Try again in {wait_seconds} s."
        )


def open_approval(
    kind: Kind,
    reference: str,
    *,
    at: datetime,
    submitter: User | None = None,
    opened_by: User | None = None,
    amount: Decimal | None = None,
    currency: str = "",
    title: str = "",
    category: str = "",
    search: str = "",
) -> Approval:
    """Insert an undecided approval, in the transaction that creates its request.

    A search finds it by its reference, title and category, and by the words of `search`.
    """
    words = (reference, title, category, search)
    approval = Approval(
        kind=kind.name,
        reference=reference,
        submitter=submitter,
        opened_by=opened_by,
        amount=amount,
        currency=currency,
        title=title,
        category=category,
        search_text=" ".join(filter(None, words)).casefold(),
        opened_at=at,
    )
    rows.insert(approval)
    return approval


def decide(approval: Approval, verdict: Verdict, act: Act) -> Message | None:
    """Take the one verdict on an approval of any kind (requirements X1, X3).

    - Approving and rejecting need the kind's permission. Rejecting needs a reason.
    - Nobody approves or rejects a request that they submitted or, outside open access, created over
      the protocol. This includes superusers.
    - Nobody who carries requests for others decides any request.
    - Only the submitter withdraws a request.
    - Only the workflow of a request says that its approval window is over (O4).

    Returns the message to the workflow, None where no workflow needs one. Raises NotPermitted or
    SelfApproval, which are audited, ReasonMissing, so that the person is asked for the reason, and
    AlreadyDecided where somebody was first. Nothing else changes then.
    """
    kind = KINDS[approval.kind]
    _check(kind, approval, verdict, act)
    if approval.verdict is not None:
        raise AlreadyDecided(approval)
    with transaction.atomic(durable=True):
        entry = record(_EVENT_OF[verdict], kind.name, approval.reference, act)
        undecided = Approval.objects.filter(pk=approval.pk, verdict=None)
        if not undecided.update(verdict=verdict, entry=entry):
            raise AlreadyDecided(Approval.objects.select_related("entry").get(pk=approval.pk))
        approval.verdict, approval.entry = verdict, entry
        message = kind.decided(approval, act)
    log.info("%s %s by %s", approval.reference, verdict.label, act.actor.name)
    return message


def _check(kind: Kind, approval: Approval, verdict: Verdict, act: Act) -> None:
    refusal = _refusal(act.actor, kind, approval, verdict=verdict, act=act)
    if isinstance(refusal, NotPermitted | SelfApproval):
        record_refusal(kind.name, approval.reference, f"{verdict.label}: {refusal}", act)
    if refusal is not None:
        raise refusal


_EVENT_OF: Final[dict[Verdict, AuditEntry.Event]] = {
    verdict: AuditEntry.Event(verdict.value.lower())
    for verdict in Verdict
    if verdict != Verdict.VOID
}


def _refusal(
    actor: Actor,
    kind: Kind,
    approval: Approval | None,
    *,
    verdict: Verdict = Verdict.APPROVED,
    act: Act | None = None,
) -> Refused | None:
    """Return why the actor may not take the verdict; None where they may.

    Without an approval the answer is about requests of other people, and without an act about any
    route and reason.
    """
    if verdict not in kind.verdicts:
        return NotPermitted(f"A request of this kind cannot be {verdict.label}.")
    if verdict == Verdict.EXPIRED:
        if act is not None and act.route == Route.WORKFLOW:
            return None
        return NotPermitted("Only its workflow says that an approval window is over.")
    user_id = actor.user and actor.user.pk
    own = user_id is not None and approval is not None and user_id == approval.submitter_id
    if verdict == Verdict.WITHDRAWN:
        if own:
            return None
        return NotPermitted("Only the person who submitted a request can withdraw it.")
    if actor.carries or not actor.may(kind.permission):
        why = "acts for other people, so it cannot decide; ask an approver"
        if not actor.carries:
            why = "has no permission to decide; ask for the Approver group"
        return NotPermitted(f"{actor.name} {why}.")
    # On a laptop one person tries out every part.
    alone = settings.EXPENSES_PROTOCOL_ACCESS == "open"
    opened = user_id is not None and approval is not None and user_id == approval.opened_by_id
    if own or (opened and not alone):
        return SelfApproval("Nobody decides their own request; ask another approver.")
    rejects = verdict == Verdict.REJECTED and act is not None and not act.reason
    if rejects and approval is not None and approval.verdict is None:
        return ReasonMissing("A rejection needs a reason; say why.")
    return None


def may_decide(actor: Actor, kind: Kind, approval: Approval | None = None) -> bool:
    """Return whether :func:`decide` would let the actor approve, so that pages offer it.

    Without an approval the answer is about requests of other people.
    """
    return _refusal(actor, kind, approval) is None


def may_withdraw(actor: Actor, approval: Approval) -> bool:
    """Return whether :func:`decide` would let the actor withdraw the approval now."""
    refusal = _refusal(actor, KINDS[approval.kind], approval, verdict=Verdict.WITHDRAWN)
    return refusal is None and approval.verdict is None


def check_may_decide(actor: Actor, kind: Kind) -> None:
    """Raise NotPermitted unless the actor may decide requests of other people."""
    if refusal := _refusal(actor, kind, None):
        raise refusal


def approval_of(kind: Kind, request: Any, verdict: Verdict, act: Act) -> Approval:
    """Return the approval of a request of this kind, for :func:`decide`.

    Raises WrongState where the request needs no decision, after the same checks as `decide`.
    """
    approval: Approval | None = request.approval
    if approval is not None and approval.verdict != Verdict.VOID:
        return approval
    reference = getattr(request, kind.own_id)
    about = Approval(kind=kind.name, reference=reference, submitter=request.submitter)
    _check(kind, about, verdict, act)
    request.refresh_from_db()
    if request.approval != approval:
        raise WrongState(f"{reference} was retried meanwhile; decide once more.")
    raise WrongState(f"{reference} waits for no decision: it is {request.get_state_display()}.")


def visible_to(actor: Actor) -> QuerySet[Approval]:
    """Return the approvals that the actor sees on every route (requirements X10): all of a kind
    that the actor sees, otherwise the actor's own."""
    seen = [name for name, kind in KINDS.items() if kind.is_seen_by(actor)]
    approvals = Approval.objects.select_related("submitter", "entry")
    own = Q() if actor.user is None else Q(submitter=actor.user)
    return approvals.filter(Q(kind__in=seen) | own)


def lock(approval_id: Any) -> None:
    """Lock an approval until the caller's transaction ends, before it changes the request."""
    Approval.objects.select_for_update().values_list("pk").filter(pk=approval_id).first()


def void(approval_id: Any, entry: AuditEntry) -> None:
    """Close the approval where it is undecided, since its request ended otherwise: `entry` says
    how. In the caller's transaction."""
    Approval.objects.filter(pk=approval_id, verdict=None).update(verdict=Verdict.VOID, entry=entry)


def record_refusal(subject: str, subject_id: str, attempt: str, act: Act) -> None:
    """Put a refused attempt into the audit trail and the log (requirements X3)."""
    log.warning("%s refused to %s: %s", subject_id, act.actor.name, attempt)
    record(AuditEntry.Event.REFUSED, subject, subject_id, replace(act, reason=attempt))


def record_submission(subject: str, subject_id: str, act: Act) -> None:
    """Put a submission into the audit trail, in the transaction that creates the request.

    A person submits at most SUBMISSIONS_PER_HOUR requests of all kinds within an hour (requirements
    X11). A user who carries requests for others has no limit, and neither has the anonymous person
    of a local installation. Raises TooManySubmissions, which rolls the caller's transaction back.
    """
    if act.actor.user is not None and not act.actor.carries:
        # The lock lets a person submit one request at a time; SQLite has one writer anyway. It
        # does not conflict with the locks of foreign keys to the person.
        User.objects.select_for_update(no_key=True).get(pk=act.actor.user.pk)
        oldest_that_counts = (
            AuditEntry.objects.filter(
                by=act.actor.user,
                event=AuditEntry.Event.SUBMITTED,
                at__gt=act.at - SUBMISSION_WINDOW,
            )
            .order_by("-at")
            .values_list("at", flat=True)[settings.SUBMISSIONS_PER_HOUR - 1 :]
            .first()
        )
        if oldest_that_counts is not None:
            left = oldest_that_counts + SUBMISSION_WINDOW - act.at
            raise TooManySubmissions(math.ceil(left.total_seconds()))
    record(AuditEntry.Event.SUBMITTED, subject, subject_id, act)


def record(event: AuditEntry.Event, subject: str, subject_id: str, act: Act) -> AuditEntry:
    """Insert an audit entry, in the caller's transaction where there is one."""
    entry = AuditEntry(
        event=event,
        subject=subject,
        subject_id=subject_id,
        by=act.actor.user,
        actor=act.actor.name,
        route=act.route,
        reason=act.reason,
        at=act.at,
    )
    rows.insert(entry)
    return entry


def trail(subject: str, subject_id: str) -> QuerySet[AuditEntry]:
    """Return the audit entries of a request, oldest first (requirements X5)."""
    return AuditEntry.objects.filter(subject=subject, subject_id=subject_id).order_by("at", "pk")


def is_duplicate(error: IntegrityError) -> bool:
    """Return whether a row with the same unique value exists; False for the refusal of a CHECK or
    a trigger (expensesite.guards), which is a defect.

    On SQLite a trigger may find the duplicate first, with the same words.
    """
    cause = error.__cause__
    return getattr(cause, "sqlstate", "") == "23505" or str(cause).startswith("UNIQUE constraint")
