"""Who may decide a request of any kind, and the records of decisions and of other events."""

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
    """The state of the request does not allow the change. The text is a sentence for the person,
    with the request's name."""


class AlreadyDecided(WrongState):
    """The request already has this `verdict`."""

    def __init__(self, name: str, decision: Decision) -> None:
        self.verdict = Verdict(decision.verdict)
        by = f"{self.verdict.label} by {decision.actor}"
        if self.verdict == Verdict.EXPIRED:
            by = "expired: nobody decided in time"
        super().__init__(f"{name} was already {by}.")


class TooManySubmissions(Exception):
    """The person has submitted SUBMISSIONS_PER_HOUR requests, and can submit again in
    `wait_seconds`."""

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
    decided: bool = False,
) -> None:
    """Check the rule for every kind of request and every route (requirements X3).

    - Approving and rejecting need the permission. Rejecting needs a reason, unless the request is
      `decided`: the caller's compare-and-set then refuses it.
    - Nobody approves or rejects a request that they submitted or, outside open access, created over
      the protocol. This includes superusers.
    - Nobody who carries requests for others decides any request.
    - Only the submitter withdraws a request.
    - Only the workflow of a request says that its approval window is over (O4).

    Raises NotPermitted or SelfApproval, which are audited, so call it before the transaction of the
    decision. Raises ReasonMissing, which is not audited: the person is asked for the reason.
    """
    refusal = _refusal(
        actor,
        verdict=verdict,
        permission=permission,
        submitter_id=submitter_id,
        opened_by_id=opened_by_id,
        reason_needed=not (reason or decided),
        route=route,
    )
    if isinstance(refusal, NotPermitted | SelfApproval):
        attempt = f"{verdict.label}: {refusal}"
        record_refusal(subject, subject_id, attempt, actor=actor, route=route, now=now)
    if refusal is not None:
        raise refusal


def _refusal(
    actor: actors.Actor,
    *,
    verdict: Verdict,
    permission: str,
    submitter_id: int | None,
    opened_by_id: int | None,
    reason_needed: bool = True,
    route: Route | None = None,
) -> Refused | None:
    user_id = actor.user and actor.user.pk
    own = user_id is not None and user_id == submitter_id
    # On a laptop one person tries out every part.
    alone = settings.EXPENSES_PROTOCOL_ACCESS == "open"
    opened = user_id is not None and user_id == opened_by_id and not alone
    if verdict == Verdict.EXPIRED:
        if route == Route.WORKFLOW:
            return None
        return NotPermitted("Only its workflow says that an approval window is over.")
    if verdict == Verdict.WITHDRAWN:
        if may_withdraw(actor, submitter_id=submitter_id):
            return None
        return NotPermitted("Only the person who submitted a request can withdraw it.")
    if actor.carries or not actor.may(permission):
        return not_permitted(actor)
    if own or opened:
        return SelfApproval("Nobody decides their own request; ask another approver.")
    if verdict == Verdict.REJECTED and reason_needed:
        return ReasonMissing("A rejection needs a reason; say why.")
    return None


def not_permitted(actor: actors.Actor) -> NotPermitted:
    """Return the refusal of an actor who carries requests for others, or lacks the permission."""
    if actor.carries:
        return NotPermitted(
            f"{actor.name} acts for other people, so it cannot decide; ask an approver."
        )
    return NotPermitted(f"{actor.name} has no permission to decide; ask for the Approver group.")


def may_decide(
    actor: actors.Actor,
    *,
    permission: str,
    submitter_id: int | None = None,
    opened_by_id: int | None = None,
) -> bool:
    """Return whether :func:`check_may_decide` would let the actor approve, so that pages offer it.

    Without a submitter the answer is about requests of other people.
    """
    refusal = _refusal(
        actor,
        verdict=Verdict.APPROVED,
        permission=permission,
        submitter_id=submitter_id,
        opened_by_id=opened_by_id,
    )
    return refusal is None


def may_withdraw(actor: actors.Actor, *, submitter_id: int | None) -> bool:
    """Return whether the actor may withdraw a request of this submitter."""
    return actor.user is not None and actor.user.pk == submitter_id


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
    """Insert a decision and its audit entry, in the transaction in which the caller's
    compare-and-set stored `decision_id` with the request."""
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
    """Put a submission into the audit trail, in the transaction that creates the request.

    A person submits at most SUBMISSIONS_PER_HOUR requests of all kinds within an hour (requirements
    X11). A user who carries requests for others has no limit, and neither has the anonymous person
    of a local installation. Raises TooManySubmissions, which rolls the caller's transaction back.
    """
    if actor.user is not None and not actor.carries:
        # The lock lets a person submit one request at a time; SQLite has one writer anyway. It
        # does not conflict with the locks of foreign keys to the person.
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
    """Return the audit entries of a request, oldest first (requirements X5)."""
    return AuditEntry.objects.filter(subject=subject, subject_id=subject_id).order_by("at", "pk")
