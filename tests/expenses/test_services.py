"""The rules of a decision on each route, and what the services refuse."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.test import Client

from access import groups
from approvals import services as approvals
from approvals.models import VERDICT_OF_VERB, Approval, AuditEntry, Route, Verdict
from expenses import services
from expenses.models import Expense, LedgerEntry, State
from outbox.models import Message
from tests import factories
from tests.conftest import Unchanged

pytestmark = pytest.mark.django_db

ROLES = (None, *groups.NAMES)
# Whose admin shows them no expense of another: there is no row that they could be refused.
SEE_NONE = (None, groups.EMPLOYEE, groups.WORKER)


def in_role(role: str | None) -> User:
    return factories.user(*([role] if role else []))


def signed_in(person: User) -> Client:
    client = Client()
    client.force_login(person)
    return client


# Each route asks for a decision as its clients do, and returns the status.


def by_admin(person: User, expense: Expense, kind: str) -> int:
    form = {"action": kind, "_selected_action": str(expense.pk), "reason": "r"}
    return signed_in(person).post("/admin/expenses/expense/", form).status_code


def by_rest(person: User, expense: Expense, kind: str) -> int:
    client = Client(headers=factories.bearer(person))
    path = f"/api/v1/expenses/{expense.pk}/{kind}/"
    return client.post(path, {"reason": "r"}, "application/json").status_code


def by_protocol(person: User, expense: Expense, kind: str) -> int:
    client = Client(headers=factories.bearer(person))
    query = {"type": kind, "id": expense.expense_id, "is_api_call": "true"}
    return client.get("/action", query).status_code


def by_page(person: User, expense: Expense, kind: str) -> int:
    form = {"type": kind, "id": expense.expense_id, "reason": "r"}
    return signed_in(person).post("/decide", form).status_code


Ask = Callable[[User, Expense, str], int]
# The statuses: done, and refused. The admin answers both with its list and a message.
ROUTES: dict[Route, tuple[Ask, int, tuple[int, ...]]] = {
    Route.ADMIN: (by_admin, 302, (200, 302, 403)),
    Route.REST: (by_rest, 200, (403,)),
    Route.PROTOCOL: (by_protocol, 200, (403,)),
    Route.PAGE: (by_page, 302, (403,)),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["approve", "reject"])
@pytest.mark.parametrize("route", ROUTES)
def test_only_approvers_decide_on_every_route(
    unchanged: Unchanged, route: Route, kind: str, role: str | None
) -> None:
    """X3, X5: each refusal is audited with its route."""
    ask, done, refused = ROUTES[route]
    person = in_role(role)
    expense = factories.expense(callback=factories.address("wf-1"))
    if role == groups.APPROVER:
        assert ask(person, expense, kind) == done
        entry = Approval.objects.get().entry
        assert (entry.by, entry.actor) == (person, person.username)
        assert (entry.route, Message.objects.count()) == (route, 1)
        return
    audited = not (route == Route.ADMIN and role in SEE_NONE)
    with unchanged(refusals=int(audited)):
        assert ask(person, expense, kind) in refused
    if audited:
        entry = AuditEntry.objects.latest("pk")
        assert (entry.by, entry.route, entry.subject_id) == (person, route, "exp-1")


@pytest.mark.parametrize("superuser", [False, True])
@pytest.mark.parametrize("kind", ["approve", "reject"])
@pytest.mark.parametrize("route", ROUTES)
def test_nobody_decides_their_own_expense(
    unchanged: Unchanged, route: Route, kind: str, superuser: bool
) -> None:
    """X3: it is refused and audited on every route, superusers included."""
    ask, _, refused = ROUTES[route]
    person = factories.user(groups.EMPLOYEE, groups.APPROVER, is_superuser=superuser)
    expense = factories.expense(submitter=person)
    with unchanged(refusals=1):
        assert ask(person, expense, kind) in refused
    entry = AuditEntry.objects.latest("pk")
    assert (entry.by, entry.route) == (person, route)
    assert entry.reason.endswith("Nobody decides their own request; ask another approver.")


@pytest.mark.parametrize("kind", ["approve", "reject"])
@pytest.mark.parametrize("route", ROUTES)
def test_nobody_decides_an_expense_they_created_over_the_protocol(
    unchanged: Unchanged, settings: Any, route: Route, kind: str
) -> None:
    """X3: superusers included. Another approver may. In open access one person may do both."""
    ask, done, refused = ROUTES[route]
    person = factories.user(is_superuser=True)
    client = Client(headers=factories.bearer(person))
    assert client.get("/create?id=exp-1&is_api_call=true").content == b"SUCCEED"
    expense = Expense.objects.get()
    assert (expense.approval.opened_by, expense.approval.submitter) == (person, None)
    with unchanged(refusals=1):
        assert ask(person, expense, kind) in refused
    settings.EXPENSES_PROTOCOL_ACCESS = "open"
    assert ask(person, expense, kind) == done


@pytest.mark.parametrize("superuser", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_nobody_who_carries_requests_decides_any(
    unchanged: Unchanged, route: Route, superuser: bool
) -> None:
    """X3: a user who creates, registers, pays and runs steps for others, in any other group too."""
    ask, _, refused = ROUTES[route]
    person = factories.user(groups.WORKER, groups.APPROVER, is_superuser=superuser)
    expense = factories.expense()
    with unchanged(refusals=1):
        assert ask(person, expense, "approve") in refused
    assert AuditEntry.objects.latest("pk").reason.endswith("so it cannot decide; ask an approver.")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("path", ["/create?id=new", "/action?id=paid&type=payment"])
def test_only_the_worker_creates_registers_and_pays(
    client: Client, unchanged: Unchanged, path: str, role: str | None
) -> None:
    """X3, X8, X10: refusals are audited. An expense that a person may not see is not found."""
    factories.expense()
    factories.expense("paid", State.APPROVED)
    headers = factories.bearer(in_role(role))

    def ask() -> list[tuple[int, bytes]]:
        form = {"task_token": "00"}
        registered = client.post("/registerCallback?id=exp-1", form, headers=headers)
        answers = (client.get(f"{path}&is_api_call=true", headers=headers), registered)
        return [(answer.status_code, answer.content) for answer in answers]

    if role == groups.WORKER:
        assert ask() == [(200, b"SUCCEED")] * 2
    else:
        with unchanged(refusals=2):
            assert ask() == [(403, b"ERROR:FORBIDDEN")] * 2
    found = role not in (None, groups.EMPLOYEE)
    status = client.get("/status?id=exp-1", headers=headers).content
    assert status == (b"CREATED" if found else b"ERROR:INVALID_ID")
    assert (b"exp-1" in client.get("/list", headers=headers).content) is found


@pytest.mark.parametrize("verdict", VERDICT_OF_VERB.values())
@pytest.mark.parametrize("state", State)
def test_only_a_waiting_expense_is_decided_or_withdrawn(
    unchanged: Unchanged, state: State, verdict: Verdict
) -> None:
    """E1, E9: any other raises AlreadyDecided, and nothing changes."""
    person = factories.user(groups.EMPLOYEE)
    callback = factories.address("expense_exp-1")
    expense = factories.expense(state=state, submitter=person, callback=callback)
    act = factories.act(person if verdict == Verdict.WITHDRAWN else None, reason="r")
    if state == State.CREATED:
        message = approvals.decide(expense.approval, verdict, act)
        expense.refresh_from_db()
        assert expense.state == expense.approval.verdict == verdict.value
        assert message.payload["value"] == {"WITHDRAWN": "CANCELLED"}.get(verdict, verdict)
    else:
        stands = "APPROVED" if state == State.COMPLETED else state.value
        with unchanged(), pytest.raises(approvals.AlreadyDecided) as error:
            approvals.decide(expense.approval, verdict, act)
        assert error.value.verdict == stands


def test_rejecting_a_decided_expense_without_a_reason_says_that_it_is_decided(
    unchanged: Unchanged,
) -> None:
    """E9, X3: nobody has to give a reason for a decision that is not taken any more."""
    expense = factories.expense(state=State.APPROVED)
    with unchanged(), pytest.raises(approvals.AlreadyDecided) as error:
        approvals.decide(expense.approval, Verdict.REJECTED, factories.act())
    assert str(error.value) == "exp-1 was already approved by local."
    client = Client(headers=factories.bearer(factories.user(groups.APPROVER)))
    with unchanged():
        assert (
            client.post("/api/v1/expenses/exp-1/reject/", {}, "application/json").status_code == 409
        )


def test_only_the_submitter_withdraws(unchanged: Unchanged) -> None:
    """E1, X3: not the anonymous person, nor a superuser."""
    expense = factories.expense(submitter=factories.user(groups.EMPLOYEE))
    for person in (None, factories.user(is_superuser=True)):
        with unchanged(refusals=1), pytest.raises(approvals.NotPermitted):
            approvals.decide(expense.approval, Verdict.WITHDRAWN, factories.act(person))


def test_a_decision_is_judged_by_the_row_and_not_by_the_object(unchanged: Unchanged) -> None:
    """E11, X1: the caller's object may be stale."""
    stale = factories.expense()
    assert (stale.state, stale.approval.verdict) == ("CREATED", None)
    approvals.decide(Approval.objects.get(), Verdict.APPROVED, factories.act())
    with unchanged():
        with pytest.raises(approvals.AlreadyDecided):
            approvals.decide(stale.approval, Verdict.REJECTED, factories.act(reason="r"))
        with pytest.raises(services.NotWaiting):
            services.register_callback(stale, factories.address("wf-1"), factories.act())
    entry = services.record_payment(stale, factories.act())
    assert (entry.expense, entry.paid_at) == (stale, factories.NOW)
    assert Expense.objects.get().payment == LedgerEntry.objects.get()


def test_a_submission_never_takes_another_expenses_workflow(unchanged: Unchanged) -> None:
    """X7: ExpenseExists, and nothing is stored."""
    factories.expense("other", workflow_id="expense_exp-1")
    with unchanged(), pytest.raises(services.ExpenseExists):
        services.submit_expense("exp-1", details=factories.DETAILS, act=factories.act())


# One transaction


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "broken", ["approvals.services.record", "expenses.services._notify", "outbox.services.enqueue"]
)
def test_a_decision_that_fails_halfway_changes_nothing(
    unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """X1: whichever part of it fails."""
    expense = factories.expense(callback=factories.address("wf-1"))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise IntegrityError

    monkeypatch.setattr(broken, fail)
    with unchanged(), pytest.raises(IntegrityError):
        approvals.decide(expense.approval, Verdict.APPROVED, factories.act())


@pytest.mark.django_db(transaction=True)
def test_a_decision_inside_a_transaction_is_refused(unchanged: Unchanged) -> None:
    """X1: a decision is durable when its service returns."""
    expense = factories.expense()
    with unchanged(), transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        approvals.decide(expense.approval, Verdict.APPROVED, factories.act())


def test_a_decision_before_the_registration_goes_to_the_workflows_wait() -> None:
    """X1, W7: whether the workflow has started or not. A workflow that the expense does not own
    gets the decision when it registers."""
    factories.expense("carried", State.APPROVED, workflow_id="wf")
    factories.expense("submitted", State.REJECTED, submitter=factories.user(groups.EMPLOYEE))
    factories.expense("plain", State.APPROVED)
    sent = Message.objects.exclude(kind="start_workflow").values_list("key", "kind", "payload")
    wait = {"activity_type": "wait_for_decision_activity"}
    assert list(sent.order_by("pk")) == [
        (
            "expense-decision:carried",
            "complete_wait",
            {
                **wait,
                "argument": "carried",
                "workflow_id": "wf",
                "value": "APPROVED",
                "started": True,
            },
        ),
        (
            "expense-decision:submitted",
            "complete_wait",
            {
                **wait,
                "argument": "submitted",
                "workflow_id": "expense_submitted",
                "value": "REJECTED",
                "started": False,
            },
        ),
    ]
