"""The rule of who may decide, and the records of decisions and refusals."""

import uuid
from typing import Any

import pytest

from access import actors, groups
from approvals import services
from approvals.models import AuditEntry, Decision, Route, Verdict
from approvals.services import NotPermitted, ReasonMissing, SelfApproval
from tests import factories
from tests.conftest import Unchanged

pytestmark = pytest.mark.django_db

PERMISSION = "expenses.decide_expense"
REQUEST: Any = {"subject": "order", "subject_id": "ord-1"}
REFUSED = {
    NotPermitted: "{verdict}: {actor} has no permission to decide; ask for the Approver group.",
    SelfApproval: "{verdict}: Nobody decides their own request; ask another approver.",
}
NOT_OWN = "{verdict}: Only the person who submitted a request can withdraw it."
NO_WINDOW = "{verdict}: Only its workflow says that an approval window is over."

# A verdict, whether the actor has the permission, whether the request is their own, and the outcome
# without and with a reason. None: the actor may.
Outcome = type[services.Refused] | None
RULE: list[tuple[Verdict, bool, bool, Outcome, Outcome]] = [
    (Verdict.APPROVED, False, False, NotPermitted, NotPermitted),
    (Verdict.APPROVED, False, True, NotPermitted, NotPermitted),
    (Verdict.APPROVED, True, False, None, None),
    (Verdict.APPROVED, True, True, SelfApproval, SelfApproval),
    (Verdict.REJECTED, False, False, NotPermitted, NotPermitted),
    (Verdict.REJECTED, False, True, NotPermitted, NotPermitted),
    (Verdict.REJECTED, True, False, ReasonMissing, None),
    (Verdict.REJECTED, True, True, SelfApproval, SelfApproval),
    (Verdict.WITHDRAWN, False, False, NotPermitted, NotPermitted),
    (Verdict.WITHDRAWN, False, True, None, None),
    (Verdict.WITHDRAWN, True, False, NotPermitted, NotPermitted),
    (Verdict.WITHDRAWN, True, True, None, None),
    # On every route but the workflow's own.
    (Verdict.EXPIRED, False, False, NotPermitted, NotPermitted),
    (Verdict.EXPIRED, False, True, NotPermitted, NotPermitted),
    (Verdict.EXPIRED, True, False, NotPermitted, NotPermitted),
    (Verdict.EXPIRED, True, True, NotPermitted, NotPermitted),
]


def check(actor: actors.Actor, verdict: Verdict, **others: Any) -> Outcome:
    """What the rule says, as a domain asks it."""
    try:
        services.check_may_decide(
            actor, verdict=verdict, permission=PERMISSION, now=factories.NOW, **REQUEST, **others
        )
    except services.Refused as refusal:
        return type(refusal)
    return None


@pytest.mark.parametrize("superuser", [False, True])
@pytest.mark.parametrize(("verdict", "permitted", "own", "bare", "reasoned"), RULE)
def test_the_rule_holds_for_each_actor_and_verdict(
    unchanged: Unchanged,
    caplog: pytest.LogCaptureFixture,
    verdict: Verdict,
    permitted: bool,
    own: bool,
    bare: Outcome,
    reasoned: Outcome,
    superuser: bool,
) -> None:
    """X3, O4, O10: the same for every kind of request and on every route, superusers included. A
    refusal is in the audit trail and the log, a missing reason is not; nothing else is written."""
    person = factories.user(
        *([groups.APPROVER] if permitted and not superuser else []),
        is_superuser=permitted and superuser,
    )
    actor = actors.Actor.of(person)
    submitter_id = person.pk if own else factories.user().pk
    for route in Route:
        for reason, elsewhere in (("", bare), ("r", reasoned)):
            expiry = verdict == Verdict.EXPIRED and route == Route.WORKFLOW
            outcome = None if expiry else elsewhere
            audited = outcome not in (None, ReasonMissing)
            caplog.clear()
            with unchanged(refusals=int(audited)):
                answer = check(
                    actor, verdict, submitter_id=submitter_id, reason=reason, route=route
                )
            assert answer is outcome
            if audited:
                assert outcome is not None
                said = {Verdict.WITHDRAWN: NOT_OWN, Verdict.EXPIRED: NO_WINDOW}.get(
                    verdict, REFUSED.get(outcome, "")
                )
                attempt = said.format(verdict=verdict.label, actor=actor.name)
                entry = AuditEntry.objects.latest("pk")
                assert (entry.subject, entry.subject_id) == ("order", "ord-1")
                assert (entry.by, entry.actor, entry.route) == (person, actor.name, route)
                assert (entry.reason, entry.at) == (attempt, factories.NOW)
                assert caplog.messages == [f"ord-1 refused to {actor.name}: {attempt}"]
            else:
                assert caplog.messages == []
    if verdict == Verdict.APPROVED:
        with unchanged():
            may = services.may_decide(actor, permission=PERMISSION, submitter_id=submitter_id)
        assert may is (bare is None)


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (Verdict.APPROVED, None),
        (Verdict.REJECTED, None),
        (Verdict.WITHDRAWN, NotPermitted),
        (Verdict.EXPIRED, NotPermitted),
    ],
)
def test_the_anonymous_person_of_a_local_installation_decides_and_never_withdraws(
    verdict: Verdict, outcome: Outcome
) -> None:
    """X3: a request without a submitter is not theirs either."""
    for submitter_id in (None, factories.user().pk):
        answer = check(
            actors.LOCAL, verdict, submitter_id=submitter_id, reason="r", route=Route.PROTOCOL
        )
        assert answer is outcome


def test_a_worker_is_told_to_ask_an_approver_and_not_for_the_approver_group(
    unchanged: Unchanged,
) -> None:
    """X3: no permission would let a user decide who carries requests for others."""
    worker = actors.Actor.of(factories.user(groups.WORKER, username="w"))
    with unchanged(refusals=1):
        answer = check(worker, Verdict.APPROVED, submitter_id=None, reason="", route=Route.REST)
    assert answer is NotPermitted
    said = "approved: w acts for other people, so it cannot decide; ask an approver."
    assert AuditEntry.objects.latest("pk").reason == said


@pytest.mark.parametrize("verdict", Verdict)
def test_each_verdict_is_a_decision_and_an_audit_entry_of_its_name(verdict: Verdict) -> None:
    """X5, O4: an expiry too."""
    decision_id = uuid.uuid4()
    services.record_decision(
        decision_id,
        verdict=verdict,
        actor=actors.LOCAL,
        route=Route.WORKFLOW,
        reason="r",
        now=factories.NOW,
        **REQUEST,
    )
    decision = Decision.objects.get(pk=decision_id)
    entry = services.trail("order", "ord-1").get()
    assert (decision.verdict, entry.event) == (verdict.value, verdict.value.lower())
    for row in (decision, entry):
        told = (row.by, row.actor, row.route, row.reason, row.at)
        assert told == (None, "local", "workflow", "r", factories.NOW)
    error = services.AlreadyDecided("ord-1", decision)
    assert error.verdict is verdict
    by = "expired: nobody decided in time" if verdict == Verdict.EXPIRED else None
    assert str(error) == f"ord-1 was already {by or f'{verdict.label} by local'}."


def test_the_trail_is_oldest_first_and_of_one_request() -> None:
    """X5: a request of another kind with the same id has its own trail."""
    for event, subject, minute in (
        (AuditEntry.Event.APPROVED, "order", 2),
        (AuditEntry.Event.SUBMITTED, "order", 1),
        (AuditEntry.Event.SUBMITTED, "expense", 3),
    ):
        services.record_event(
            event,
            subject=subject,
            subject_id="1",
            actor=actors.LOCAL,
            route=Route.REST,
            now=factories.NOW.replace(minute=minute),
        )
    assert [entry.event for entry in services.trail("order", "1")] == ["submitted", "approved"]
