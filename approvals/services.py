"""Who may decide what, and the record of it: one home for every kind of request."""

import logging
import math
import uuid
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import QuerySet

from access import actors
from approvals.models import AuditEntry, Decision, Route, Verdict

log = logging.getLogger(__name__)

SUBMISSION_WINDOW: Final = timedelta(hours=1)


class Refused(Exception):
    """The actor may not decide this way. The text is a sentence for the person."""


class NotPermitted(Refused):
    pass


class SelfApproval(Refused):
    pass


class ReasonMissing(Refused):
    pass


class WrongState(Exception):
    """The state of the request does not allow what was asked for. The text is a sentence for the
    person, with the request's name."""


class AlreadyDecided(WrongState):
    """The one decision is taken; `verdict` is the one that stands."""

    def __init__(self, name: str, decision: Decision) -> None:
        self.verdict = Verdict(decision.verdict)
        by = f"{self.verdict.label} by {decision.actor}"
        if self.verdict == Verdict.EXPIRED:
            by = "expired: nobody decided in time"
        super().__init__(f"{name} was already {by}.")


class TooManySubmissions(Exception):
    """The person has submitted as much as SUBMISSIONS_PER_HOUR allows; `wait_seconds` says when
    they can submit again."""

    def __init__(self, wait_seconds: int) -> None:
        self.wait_seconds = wait_seconds
        super().__init__(
            f"You have submitted {settings.SUBMISSIONS_PER_HOUR} requests within an hour; nothing "
            f"was submitted. Try again in {wait_seconds} s."
        )


def check_may_decide(
    actor: actors.Actor,
    *,
    verdict: Verdict,
    permission: str,
    subject: str,
    subject_id: str,
    submitter_id: int | None,
    opened_by_id: int | None = None,
    reason: str,
    route: Route,
    now: datetime,
) -> None:
    """The rule for every kind of request and every route (requirements X3).

    Approving and rejecting take the permission. Nobody approves or rejects a request that they
    submitted or, outside open access, created over the protocol; that includes superusers. Nobody
    who carries requests for others decides any. A rejection gives its reason. Only the submitter
    withdraws. Only the request's own workflow says that its approval window is over (O4).

    Raises NotPermitted or SelfApproval, which are put into the audit trail, so this runs before
    the transaction of the decision; or ReasonMissing, which is not: whoever may decide is asked.
    """
    try:
        _apply_rule(
            actor,
            verdict=verdict,
            permission=permission,
            submitter_id=submitter_id,
            opened_by_id=opened_by_id,
            reason=reason,
            route=route,
        )
    except ReasonMissing:
        raise
    except Refused as refusal:
        attempt = f"{verdict.label}: {refusal}"
        record_refusal(subject, subject_id, attempt, actor=actor, route=route, now=now)
        raise


def _apply_rule(
    actor: actors.Actor,
    *,
    verdict: Verdict,
    permission: str,
    submitter_id: int | None,
    opened_by_id: int | None,
    reason: str = "",
    route: Route | None = None,
) -> None:
    own = actor.user is not None and actor.user.pk == submitter_id
    # On a laptop one person tries all of it.
    alone = settings.EXPENSES_PROTOCOL_ACCESS == "open"
    opened = actor.user is not None and actor.user.pk == opened_by_id and not alone
    if verdict == Verdict.EXPIRED:
        if route != Route.WORKFLOW:
            raise NotPermitted("Only its workflow says that an approval window is over.")
        return
    if verdict == Verdict.WITHDRAWN:
        if not own:
            raise NotPermitted("Only the person who submitted a request can withdraw it.")
        return
    if not actor.may(permission):
        raise not_permitted(actor)
    if actor.carries:
        raise NotPermitted(f"{actor.name} carries requests for others, and so decides none.")
    if own or opened:
        raise SelfApproval("Nobody decides their own request; ask another approver.")
    if verdict == Verdict.REJECTED and not reason:
        raise ReasonMissing("A rejection needs a reason; say why.")


def not_permitted(actor: actors.Actor) -> NotPermitted:
    """What an actor without the permission to decide is told."""
    return NotPermitted(f"{actor.name} has no permission to decide; ask for the Approver group.")


def may_decide(
    actor: actors.Actor,
    *,
    permission: str,
    submitter_id: int | None = None,
    opened_by_id: int | None = None,
) -> bool:
    """Whether :func:`check_may_decide` would let the actor approve; for pages that offer it.

    Without a submitter: whether the actor may decide any request at all.
    """
    try:
        _apply_rule(
            actor,
            verdict=Verdict.APPROVED,
            permission=permission,
            submitter_id=submitter_id,
            opened_by_id=opened_by_id,
        )
    except Refused:
        return False
    return True


def record_decision(
    decision_id: uuid.UUID,
    *,
    verdict: Verdict,
    subject: str,
    subject_id: str,
    actor: actors.Actor,
    route: Route,
    reason: str,
    now: datetime,
) -> None:
    """Insert the decision to which the caller's compare-and-set pointed, and its audit entry, in
    the caller's transaction."""
    Decision.objects.create(
        id=decision_id,
        verdict=verdict,
        by=actor.user,
        actor=actor.name,
        route=route,
        reason=reason,
        at=now,
    )
    record_event(
        AuditEntry.Event(verdict.value.lower()),
        subject=subject,
        subject_id=subject_id,
        actor=actor,
        route=route,
        now=now,
        reason=reason,
    )


def record_refusal(
    subject: str,
    subject_id: str,
    attempt: str,
    *,
    actor: actors.Actor,
    route: Route,
    now: datetime,
) -> None:
    """Put a refused attempt into the audit trail and the log (requirements X3)."""
    log.warning("%s refused to %s: %s", subject_id, actor.name, attempt)
    record_event(
        AuditEntry.Event.REFUSED,
        subject=subject,
        subject_id=subject_id,
        actor=actor,
        route=route,
        now=now,
        reason=attempt,
    )


def record_submission(
    subject: str,
    subject_id: str,
    *,
    actor: actors.Actor,
    route: Route,
    now: datetime,
) -> None:
    """Put a submission into the audit trail, in the transaction that makes the request.

    A person submits at most SUBMISSIONS_PER_HOUR requests of all kinds within an hour (requirements
    X11). A user who carries requests submits for others and has no limit, nor has the anonymous
    person of a local installation. Raises TooManySubmissions: the caller's transaction is rolled
    back, so a refusal leaves no entry either.
    """
    if actor.user is not None and not actor.carries:
        # One submission of a person at a time. SQLite has one writer anyway. The lock does not
        # conflict with those of foreign keys to the person.
        User.objects.select_for_update(no_key=True).get(pk=actor.user.pk)
        oldest_that_counts = (
            AuditEntry.objects.filter(
                by=actor.user, event=AuditEntry.Event.SUBMITTED, at__gt=now - SUBMISSION_WINDOW
            )
            .order_by("-at")
            .values_list("at", flat=True)[settings.SUBMISSIONS_PER_HOUR - 1 :]
            .first()
        )
        if oldest_that_counts is not None:
            left = oldest_that_counts + SUBMISSION_WINDOW - now
            raise TooManySubmissions(math.ceil(left.total_seconds()))
    record_event(
        AuditEntry.Event.SUBMITTED,
        subject=subject,
        subject_id=subject_id,
        actor=actor,
        route=route,
        now=now,
    )


def record_event(
    event: AuditEntry.Event,
    *,
    subject: str,
    subject_id: str,
    actor: actors.Actor,
    route: Route,
    now: datetime,
    reason: str = "",
) -> None:
    """Insert an audit entry, in the caller's transaction where there is one."""
    AuditEntry.objects.create(
        event=event,
        subject=subject,
        subject_id=subject_id,
        by=actor.user,
        actor=actor.name,
        route=route,
        reason=reason,
        at=now,
    )


def trail(subject: str, subject_id: str) -> QuerySet[AuditEntry]:
    """All that happened to a request, oldest first (requirements X5)."""
    return AuditEntry.objects.filter(subject=subject, subject_id=subject_id).order_by("at", "pk")
