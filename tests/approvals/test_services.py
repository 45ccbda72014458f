"""Who may decide what, how a decision is taken, and the audit trail."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction

from access import groups
from access.actors import Actor
from approvals import kinds, services
from approvals.models import Approval, AuditEntry, Route, Verdict
from approvals.services import Act, NotPermitted, ReasonMissing, SelfApproval
from expenses.models import Expense
from tests import factories
from tests.conftest import Unchanged

pytestmark = pytest.mark.django_db

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


THING = kinds.Kind(
    name="thing",
    model=Expense,
    own_id="expense_id",
    permission="expenses.decide_expense",
    seen_with=(),
    verdicts=frozenset(Verdict) - {Verdict.VOID},
    decided=lambda approval, act: None,
)


@pytest.fixture(autouse=True)
def thing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a kind of request that allows every verdict."""
    monkeypatch.setitem(kinds.KINDS, THING.name, THING)


def opened(submitter: User | None = None, **fields: Any) -> Approval:
    return services.open_approval(THING, "thing-1", at=factories.NOW, submitter=submitter, **fields)


def check(approval: Approval, verdict: Verdict, act: Act) -> Outcome:
    """Decide the approval; return the refusal."""
    try:
        services.decide(approval, verdict, act)
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
    submitter = person if own else factories.user()
    for route in Route:
        for reason, elsewhere in (("", bare), ("r", reasoned)):
            expiry = verdict == Verdict.EXPIRED and route == Route.WORKFLOW
            outcome = None if expiry else elsewhere
            act = factories.act(person, route, reason=reason)
            approval = opened(submitter)
            caplog.clear()
            if outcome is None:
                assert check(approval, verdict, act) is None
                taken = Approval.objects.get(pk=approval.pk)
                assert taken.verdict == verdict
                assert taken.entry == AuditEntry.objects.latest("pk")
                assert caplog.messages == [f"thing-1 {verdict.label} by {person}"]
                continue
            audited = outcome is not ReasonMissing
            with unchanged(refusals=int(audited)):
                assert check(approval, verdict, act) is outcome
            if audited:
                said = {Verdict.WITHDRAWN: NOT_OWN, Verdict.EXPIRED: NO_WINDOW}.get(
                    verdict, REFUSED.get(outcome, "")
                )
                attempt = said.format(verdict=verdict.label, actor=person)
                entry = AuditEntry.objects.latest("pk")
                assert (entry.subject, entry.subject_id) == ("thing", "thing-1")
                assert (entry.by, entry.actor, entry.route) == (person, person.username, route)
                assert (entry.reason, entry.at) == (attempt, factories.NOW)
                assert caplog.messages == [f"thing-1 refused to {person}: {attempt}"]
            else:
                assert caplog.messages == []
            services.decide(approval, Verdict.EXPIRED, factories.act(None, Route.WORKFLOW))


@pytest.mark.parametrize("access", ["token", "open"])
@pytest.mark.parametrize("carries", [False, True])
def test_what_waits_for_a_person_is_what_they_may_decide(
    settings: Any, access: str, carries: bool
) -> None:
    """X3, X4: in the order in which it expires, then of its age."""
    settings.EXPENSES_PROTOCOL_ACCESS = access
    person = factories.user(groups.APPROVER, *([groups.WORKER] if carries else []))
    other = factories.user(groups.EMPLOYEE)
    hour = timedelta(hours=1)
    made = [
        services.open_approval(kind, f"r-{number}", at=factories.NOW - number * hour, **fields)
        for number, (kind, fields) in enumerate(
            [
                (THING, {}),
                (THING, {"submitter": other}),
                (THING, {"submitter": person}),
                (THING, {"opened_by": person}),
                (dataclasses.replace(THING, name="unknown"), {}),
                (THING, {}),
                (THING, {}),
            ]
        )
    ]
    for approval, days in ((made[0], 2), (made[6], 1)):
        Approval.objects.filter(pk=approval.pk).update(expires_at=factories.NOW + days * 24 * hour)
    services.decide(made[5], Verdict.APPROVED, factories.act())
    waiting = list(Approval.objects.waiting_for(person))
    assert waiting == sorted(
        (
            approval
            for approval in Approval.objects.filter(verdict=None, kind="thing")
            if services.may_decide(Actor.of(person), THING, approval)
        ),
        key=lambda approval: (
            approval.expires_at or factories.NOW.replace(year=9999),
            approval.opened_at,
        ),
    )
    expected = ["r-6", "r-0", "r-1"] if access == "token" else ["r-6", "r-0", "r-3", "r-1"]
    assert [approval.reference for approval in waiting] == ([] if carries else expected)


def test_what_waits_is_read_by_its_index() -> None:
    """X11: in its order, however many approvals wait and are decided."""
    person, other = factories.user(groups.APPROVER), factories.user(groups.EMPLOYEE)
    Approval.objects.bulk_create(
        Approval(kind="thing", reference=str(number), submitter=other, opened_at=factories.NOW)
        for number in range(2000)
    )
    if connection.vendor == "postgresql":  # the planner needs statistics
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE approvals_approval")
    plan = Approval.objects.waiting_for(person)[:50].explain()
    assert "approval_waiting" in plan
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan


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
    for submitter in (None, factories.user()):
        approval = opened(submitter)
        assert check(approval, verdict, factories.act(reason="r")) is outcome
        if outcome:
            services.decide(approval, Verdict.EXPIRED, factories.act(None, Route.WORKFLOW))


def test_a_worker_is_told_to_ask_an_approver_and_not_for_the_approver_group(
    unchanged: Unchanged,
) -> None:
    """X3: no permission would let a user decide who carries requests for others."""
    worker = factories.user(groups.WORKER, username="w")
    approval = opened()
    with unchanged(refusals=1):
        answer = check(approval, Verdict.APPROVED, factories.act(worker, Route.REST))
    assert answer is NotPermitted
    said = "approved: w acts for other people, so it cannot decide; ask an approver."
    assert AuditEntry.objects.latest("pk").reason == said


def test_a_verdict_that_the_kind_does_not_know_is_refused(
    monkeypatch: pytest.MonkeyPatch, unchanged: Unchanged
) -> None:
    """X3: an order, for one, is cancelled and not withdrawn."""
    kind = dataclasses.replace(THING, verdicts=frozenset({Verdict.APPROVED}))
    monkeypatch.setitem(kinds.KINDS, THING.name, kind)
    person = factories.user(groups.EMPLOYEE)
    approval = opened(person)
    with unchanged(refusals=1):
        assert check(approval, Verdict.WITHDRAWN, factories.act(person)) is NotPermitted


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict != Verdict.VOID])
def test_the_second_verdict_is_told_the_first(verdict: Verdict, unchanged: Unchanged) -> None:
    """X1, X5: the entry of the verdict has its name, and nothing is written twice."""
    approval = opened(submitter := factories.user(), title="A thing")
    stale = Approval.objects.get(pk=approval.pk)
    person = submitter if verdict == Verdict.WITHDRAWN else None
    services.decide(approval, verdict, factories.act(person, Route.WORKFLOW, reason="r"))
    entry = services.trail("thing", "thing-1").get()
    assert approval.entry == entry
    by = (entry.event, entry.by, entry.route, entry.reason, entry.at)
    assert by == (verdict.value.lower(), person, "workflow", "r", factories.NOW)
    with unchanged(), pytest.raises(services.AlreadyDecided) as refused:
        services.decide(stale, Verdict.APPROVED, factories.act())
    assert refused.value.verdict is verdict
    expired = "expired: nobody decided in time" if verdict == Verdict.EXPIRED else None
    assert str(refused.value) == (
        f"thing-1 was already {expired or f'{verdict.label} by {entry.actor}'}."
    )


def test_what_follows_from_a_verdict_fails_together_with_it(
    monkeypatch: pytest.MonkeyPatch, unchanged: Unchanged
) -> None:
    """X1: a domain that cannot follow a verdict leaves the approval undecided."""

    def fail(*_: Any) -> None:
        raise services.WrongState("thing-1 is not there.")

    monkeypatch.setitem(kinds.KINDS, THING.name, dataclasses.replace(THING, decided=fail))
    approval = opened()
    with unchanged(), pytest.raises(services.WrongState):
        services.decide(approval, Verdict.APPROVED, factories.act())


def test_a_void_approval_is_decided_by_nobody(unchanged: Unchanged) -> None:
    """X1: its request has ended otherwise. Another can be opened; a decided approval stays."""
    approval = opened()
    entry = services.record(AuditEntry.Event.CANCELLED, "thing", "thing-1", factories.act())
    services.void(approval.pk, entry)
    with unchanged(), pytest.raises(services.AlreadyDecided) as refused:
        services.decide(approval, Verdict.APPROVED, factories.act())
    assert str(refused.value) == "thing-1 waits for no decision: it ended or was retried meanwhile."
    second = opened()
    services.decide(second, Verdict.APPROVED, factories.act())
    other = services.record(AuditEntry.Event.CANCELLED, "thing", "thing-1", factories.act())
    with unchanged():
        services.void(second.pk, other)


def test_one_approval_of_a_request_is_undecided() -> None:
    """X1: the database refuses a second one."""
    opened()
    with pytest.raises(IntegrityError) as refused, transaction.atomic():
        opened()
    assert services.is_duplicate(refused.value)


def test_the_trail_is_oldest_first_and_of_one_request() -> None:
    """X5: a request of another kind with the same id has its own trail."""
    for event, subject, minute in (
        (AuditEntry.Event.APPROVED, "order", 2),
        (AuditEntry.Event.SUBMITTED, "order", 1),
        (AuditEntry.Event.SUBMITTED, "expense", 3),
    ):
        services.record(event, subject, "1", factories.act(at=factories.NOW.replace(minute=minute)))
    assert [entry.event for entry in services.trail("order", "1")] == ["submitted", "approved"]
