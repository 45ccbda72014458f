"""The REST API, as a program uses it."""

import re
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from django.contrib.auth.models import User
from django.test import Client

from access import groups
from approvals.models import Approval, AuditEntry
from expenses import services
from expenses.models import Expense, State
from outbox.models import Message
from tests import factories
from tests.conftest import Unchanged, at_once

pytestmark = pytest.mark.django_db

EXPENSES = "/api/v1/expenses/"
PAYMENTS = "/api/v1/payments/"
BODY = {"expense_id": "exp-1", "amount": "12.50", "currency": "EUR", "merchant": "Café"}
UUID = "3f0c7f0e-1d55-4a44-9d0a-6f6f0f3f1b11"
KEY = {"Idempotency-Key": "k-1 \xe9"}


class Program(Client):
    """A program with a token of a person in these groups."""

    def __init__(self, *group_names: str, **fields: Any) -> None:
        self.user: User = factories.user(*group_names, **fields)
        super().__init__(headers=factories.bearer(self.user))


@pytest.fixture
def employee() -> Program:
    return Program(groups.EMPLOYEE, username="emma")


@pytest.fixture
def approver() -> Program:
    return Program(groups.APPROVER, username="anna")


def send(client: Client, path: str, body: Any = None, **headers: str) -> Any:
    """POST `body`, JSON as text or to be made so."""
    body = {} if body is None else body
    return client.post(path, body, "application/json", headers=headers)


def problem(response: Any, status: int) -> dict[str, Any]:
    """The problem details of a refusal; asserts that they are whole."""
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    details: dict[str, Any] = response.json()
    assert (details["type"], details["status"]) == ("about:blank", status)
    assert details["title"]
    assert details["detail"]
    return details


def ids(response: Any) -> list[str]:
    assert response.status_code == 200
    return [row["expense_id"] for row in response.json()["results"]]


# Problems


@pytest.mark.parametrize("header", [None, "Bearer nonsense", "Bearer", "Bearer \xe9", "Basic eA=="])
def test_a_request_without_a_valid_token_is_401(
    client: Client, unchanged: Unchanged, header: str | None
) -> None:
    """E12, X8: the answer names the scheme, and nothing changes."""
    factories.expense()
    headers = {"Authorization": header} if header else {}
    with unchanged():
        for path in (EXPENSES, EXPENSES + "exp-1/", EXPENSES + "exp-1/audit/", PAYMENTS):
            problem(client.get(path, headers=headers), 401)
        for path in (EXPENSES, EXPENSES + "exp-1/approve/"):
            response = send(client, path, BODY, **headers)
            problem(response, 401)
            assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("request_line", "kind", "status"),
    [
        ("GET expenses/nope/", "", 404),
        ("GET expenses/00000000-0000-0000-0000-000000000000/", "", 404),
        ("POST expenses/nope/approve/", "application/json", 404),
        ("GET expenses/?cursor=nonsense", "", 404),
        ("GET nope/", "", 404),
        ("GET expenses/%00/", "", 404),
        ("PUT expenses/", "application/json", 405),
        ("DELETE expenses/exp-1/", "", 405),
        ("PATCH expenses/exp-1/", "application/json", 405),
        ("GET expenses/exp-1/approve/", "", 405),
        ("GET expenses/nope/audit/", "", 404),
        ("POST expenses/exp-1/audit/", "application/json", 405),
        ("POST payments/", "application/json", 405),
        ("POST expenses/", "application/x-www-form-urlencoded", 415),
        ("POST expenses/", "text/plain", 415),
    ],
)
def test_every_refusal_is_a_problem_and_changes_nothing(
    unchanged: Unchanged, request_line: str, kind: str, status: int
) -> None:
    """E12: in one format."""
    factories.expense()
    root = Program(is_superuser=True)
    method, path = request_line.split(" ")
    with unchanged():
        problem(root.generic(method, f"/api/v1/{path}", b"{}" if kind else b"", kind), status)


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "null", "1", '"x"', b"\xff", "9" * 5000, "[" * 100_000, '{"amount": NaN}'],
    ids=lambda body: str(body)[:10],
)
def test_a_body_that_is_no_json_object_is_400(
    employee: Program, unchanged: Unchanged, body: Any
) -> None:
    """E12: nothing changes."""
    with unchanged():
        problem(send(employee, EXPENSES, body), 400)


WRONG: dict[str, list[Any]] = {
    "amount": ["", None, "x", "NaN", "Infinity", "-1", 0, "0.001", "1e400", 10**30, True, [], {}],
    "currency": ["", None, "eur", "EURO", "€", 1],
    "expense_id": ["", " ", "a\0", "a\n", "a" * 101, "\ufffd", "\ud800", None, []],
    "merchant": ["\0", "\ud800", "a" * 201, []],
    "category": ["a" * 101],
    "description": ["a" * 2001, "\udfff"],
    "incurred_on": ["31.12.2025", "2025-02-30"],
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_field_is_named_and_stores_nothing(
    employee: Program, unchanged: Unchanged, field: str
) -> None:
    """E12: each with its messages."""
    for value in WRONG[field]:
        with unchanged():
            details = problem(send(employee, EXPENSES, {**BODY, field: value}), 400)
        assert list(details["errors"]) == [field]


@pytest.mark.parametrize("verb", ["approve", "reject", "withdraw"])
def test_an_unstorable_reason_decides_nothing(
    approver: Program, unchanged: Unchanged, verb: str
) -> None:
    """E12: a reason that is too long, or that no database stores."""
    factories.expense()
    for reason in ("x" * 2001, "\0", "\ud800"):
        with unchanged():
            answer = send(approver, f"{EXPENSES}exp-1/{verb}/", {"reason": reason})
        assert list(problem(answer, 400)["errors"]) == ["reason"]


# Submission


@pytest.mark.parametrize("group", [name for name in groups.NAMES if name != groups.EMPLOYEE])
def test_only_employees_submit(unchanged: Unchanged, group: str) -> None:
    """E12, X3: any other group is refused."""
    with unchanged():
        problem(send(Program(group), EXPENSES, BODY), 403)


def test_a_submission_stores_the_expense_its_entry_and_its_start(employee: Program) -> None:
    """E12, E13, X1, X5: at once."""
    response = send(employee, EXPENSES, {**BODY, "incurred_on": "2025-12-31"})
    assert response.status_code == 201
    expense = Expense.objects.get()
    assert response.headers["Location"] == f"/api/v1/expenses/{expense.pk}/"
    body = response.json()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", body.pop("created_at"))
    assert body == BODY | {
        "id": str(expense.pk),
        "state": "CREATED",
        "category": "",
        "description": "",
        "incurred_on": "2025-12-31",
        "submitter": "emma",
        "workflow_id": "expense_exp-1",
        "decision": None,
        "paid_at": None,
    }
    message = Message.objects.get()
    assert (message.kind, message.key) == ("start_workflow", "expense-start:exp-1")
    assert message.payload == {
        "workflow": "SampleExpenseWorkflow",
        "argument": "exp-1",
        "workflow_id": "expense_exp-1",
        "queue": "expense",
    }
    entry = AuditEntry.objects.get()
    assert (entry.event, entry.actor, entry.route) == ("submitted", "emma", "rest")


@pytest.mark.parametrize("expense_id", [" a ", "😀" * 100, "<b>", "a/b", "%00", UUID])
def test_a_submitted_id_is_kept_as_it_came(employee: Program, expense_id: str) -> None:
    """E12: Location has the UUID."""
    response = send(employee, EXPENSES, {**BODY, "expense_id": expense_id})
    assert response.json()["expense_id"] == expense_id
    assert employee.get(response.headers["Location"]).json()["expense_id"] == expense_id


def test_an_id_in_use_is_a_conflict(employee: Program, unchanged: Unchanged) -> None:
    """E12: an id of a plain client, a repeat without a key, and another person with the key."""
    assert send(employee, EXPENSES, BODY).status_code == 201
    factories.expense("plain")
    with unchanged():
        problem(send(employee, EXPENSES, BODY), 409)
        problem(send(employee, EXPENSES, {**BODY, "expense_id": "plain"}, **KEY), 409)
        problem(send(Program(groups.EMPLOYEE), EXPENSES, BODY, **KEY), 409)


@pytest.mark.parametrize("named", [True, False])
def test_a_repeat_with_its_key_gets_the_first_expense(
    employee: Program, unchanged: Unchanged, named: bool
) -> None:
    """E12: with another body it is a conflict. Another key or person makes another expense."""
    unnamed = {name: value for name, value in BODY.items() if name != "expense_id"}
    body = BODY if named else unnamed
    first = send(employee, EXPENSES, body, **KEY)
    assert first.status_code == 201
    with unchanged():
        again = send(employee, EXPENSES, body, **KEY)
        assert (again.status_code, again.json()) == (200, first.json())
        refused = problem(send(employee, EXPENSES, {**body, "amount": "12.51"}, **KEY), 409)
        assert ("Idempotency-Key belongs" in refused["detail"]) is not named
    assert send(employee, EXPENSES, unnamed, **{"Idempotency-Key": "k-2"}).status_code == 201
    assert send(Program(groups.EMPLOYEE), EXPENSES, unnamed, **KEY).status_code == 201
    assert Expense.objects.count() == 3


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("key", [{}, KEY], ids=["no key", "key"])
def test_racing_submissions_make_one_expense(employee: Program, key: dict[str, str]) -> None:
    """E11, E12: ten at once. With their key, all get it."""
    headers = factories.bearer(employee.user) | key
    calls = [lambda: send(Client(headers=headers), EXPENSES, BODY).status_code] * 10
    assert sorted(at_once(calls)) == sorted([201, *[200 if key else 409] * 9])
    assert (Expense.objects.count(), Message.objects.count()) == (1, 1)


# Reading


def test_a_person_never_finds_anothers_expense(employee: Program, unchanged: Unchanged) -> None:
    """E12, X10: approving it gets the same 403 as an unknown id."""
    other = factories.expense("other", submitter=factories.user(groups.EMPLOYEE))
    factories.expense("plain")
    factories.expense("mine", submitter=employee.user)
    assert ids(employee.get(EXPENSES)) == ["mine"]
    assert ids(employee.get(EXPENSES, {"expense_id": "other"})) == []
    for ref in ("other", str(other.pk), "plain"):
        for path in (f"{EXPENSES}{ref}/", f"{EXPENSES}{ref}/audit/"):
            problem(employee.get(path), 404)
        with unchanged():
            problem(send(employee, f"{EXPENSES}{ref}/withdraw/"), 404)
        with unchanged(refusals=1):
            answer = problem(send(employee, f"{EXPENSES}{ref}/approve/"), 403)
        # The same answer as for an expense that is not there.
        with unchanged():
            assert problem(send(employee, f"{EXPENSES}nope/approve/"), 403) == answer


@pytest.mark.parametrize(
    ("group", "expenses", "ledger"),
    [
        (groups.EMPLOYEE, False, False),
        (groups.APPROVER, True, False),
        (groups.FINANCE, True, True),
        (groups.AUDITOR, True, True),
        (groups.OPERATOR, True, False),
        (groups.WORKER, True, False),
    ],
)
def test_each_group_sees_its_lists(group: str, expenses: bool, ledger: bool) -> None:
    """E12, X3: all expenses, and the ledger."""
    factories.expense(state=State.COMPLETED)
    program = Program(group)
    assert ids(program.get(EXPENSES)) == (["exp-1"] if expenses else [])
    assert program.get(EXPENSES + "exp-1/").status_code == (200 if expenses else 404)
    assert program.get(PAYMENTS).status_code == (200 if ledger else 403)


def test_the_list_is_newest_first_in_pages_and_filtered(approver: Program) -> None:
    """E12: by state and by id. An odd filter finds nothing."""
    for number, state in enumerate((State.CREATED, State.REJECTED, State.CREATED, State.APPROVED)):
        factories.expense(f"e{number}", state, now=factories.NOW + timedelta(days=number))
    assert ids(approver.get(EXPENSES, {"state": "CREATED"})) == ["e2", "e0"]
    assert ids(approver.get(EXPENSES, {"expense_id": "e1"})) == ["e1"]
    assert ids(approver.get(EXPENSES, {"expense_id": "e1", "state": "CREATED"})) == []
    for odd in ("nonsense", "\0", "\ufffd", "x" * 5000, ""):
        for name in ("state", "expense_id"):
            assert ids(approver.get(EXPENSES, {name: odd})) == []
    first = approver.get(EXPENSES, {"page_size": 3})
    assert (ids(first), first.json()["previous"]) == (["e3", "e2", "e1"], None)
    second = approver.get(first.json()["next"])
    assert (ids(second), second.json()["next"]) == (["e0"], None)


@pytest.mark.parametrize("slash", ["", "/"])
def test_every_path_is_served_with_and_without_a_slash(employee: Program, slash: str) -> None:
    """E12: GET and POST are answered at once, without a redirect."""
    submitted = send(employee, f"/api/v1/expenses{slash}", BODY)
    assert submitted.status_code == 201
    expense = Expense.objects.get()
    for path in ("", f"/{expense.pk}", "/exp-1", "/exp-1/audit"):
        assert employee.get(f"/api/v1/expenses{path}{slash}").status_code == 200
    assert Program(groups.FINANCE).get(f"/api/v1/payments{slash}").status_code == 200
    assert send(employee, f"/api/v1/expenses/exp-1/withdraw{slash}").status_code == 200


def test_uuid_of_an_expense_wins_over_another_expenses_id(
    approver: Program, employee: Program
) -> None:
    """E12, X7: an expense id that looks like the UUID of another expense takes no decision of its
    place; that expense is reached by its own UUID."""
    meant = factories.expense("meant")
    for twin in (str(meant.pk), str(meant.pk).upper()):
        assert send(employee, EXPENSES, {**BODY, "expense_id": twin}).status_code == 201
        assert approver.get(f"{EXPENSES}{twin}").json()["expense_id"] == "meant"
        assert len(approver.get(f"{EXPENSES}{twin}/audit").json()["results"]) == 1
        other = Expense.objects.get(expense_id=twin)
        assert approver.get(f"{EXPENSES}{other.pk}").json()["expense_id"] == twin
    answer = send(approver, f"{EXPENSES}{meant.pk}/approve", {})
    assert (answer.status_code, answer.json()["expense_id"]) == (200, "meant")
    undecided = Expense.objects.filter(state=State.CREATED)
    assert set(undecided) == set(Expense.objects.exclude(pk=meant.pk))


@pytest.mark.parametrize("expense_id", ["a-._~:@9", UUID, " é 😀 <b>?", "%2e%2e", "approve"])
def test_expense_is_reached_by_its_uuid_and_by_its_own_id(
    approver: Program, expense_id: str
) -> None:
    """E12, X5: the answer has the decision and the payment."""
    expense = factories.expense(expense_id, State.COMPLETED)
    for ref in (str(expense.pk), str(expense.pk).upper(), quote(expense_id)):
        body = approver.get(f"{EXPENSES}{ref}/").json()
        assert (body["id"], body["state"]) == (str(expense.pk), "COMPLETED")
    assert body["paid_at"] == "2026-01-02T03:04:05Z"
    assert body["decision"] == {
        "verdict": "APPROVED",
        "actor": "local",
        "route": "protocol",
        "reason": "as made",
        "at": "2026-01-02T03:04:05Z",
    }


@pytest.mark.parametrize("expense_id", ["a-._~:@9", UUID])
def test_audit_trail_is_oldest_first_and_of_one_expense(
    approver: Program, employee: Program, expense_id: str
) -> None:
    """X5, E12: who, what, when, by which route and why, in pages, for everybody who sees the
    expense."""
    expense = factories.expense(expense_id, State.COMPLETED, submitter=employee.user)
    factories.expense("another", State.REJECTED)
    problem(send(Program(), f"{EXPENSES}{expense_id}/approve/"), 403)
    for reader, ref in ((approver, expense_id), (employee, str(expense.pk))):
        first = reader.get(f"{EXPENSES}{ref}/audit/", {"page_size": 3}).json()
        assert first["results"] == [
            {
                "event": event,
                "actor": actor,
                "route": "protocol",
                "reason": reason,
                "at": "2026-01-02T03:04:05Z",
            }
            for event, actor, reason in (
                ("submitted", "emma", ""),
                ("approved", "local", "as made"),
                ("paid", "local", ""),
            )
        ]
        second = reader.get(first["next"]).json()
        [refusal] = second["results"]
        assert second["next"] is None
        assert (refusal["event"], refusal["route"]) == ("refused", "rest")
        assert refusal["reason"].startswith("approved: ")


def test_the_ledger_is_newest_first_with_a_row_for_each_paid_expense() -> None:
    """E12, X2: with or without an amount."""
    factories.expense("a", State.COMPLETED, submitter=factories.user(groups.EMPLOYEE))
    factories.expense("b", State.COMPLETED, now=factories.NOW + timedelta(days=1))
    factories.expense("c", State.APPROVED)
    rows = Program(groups.FINANCE).get(PAYMENTS).json()["results"]
    assert [list(row.values()) for row in rows] == [
        ["b", None, "", "2026-01-03T03:04:05Z"],
        ["a", "12.50", "EUR", "2026-01-02T03:04:05Z"],
    ]


# Decisions


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": " \n"}, {"reason": None}], ids=str)
def test_rejecting_without_a_reason_changes_nothing(
    approver: Program, unchanged: Unchanged, body: dict[str, Any]
) -> None:
    """E12, X3: the error names the field."""
    factories.expense()
    with unchanged():
        details = problem(send(approver, EXPENSES + "exp-1/reject/", body), 400)
    assert details["errors"] == {"reason": ["A rejection needs a reason; say why."]}


@pytest.mark.parametrize(
    ("verb", "verdict", "contrary"),
    [("approve", "APPROVED", "reject"), ("reject", "REJECTED", "approve")],
)
def test_a_repeated_verdict_succeeds_and_its_contrary_is_a_conflict(
    approver: Program, unchanged: Unchanged, verb: str, verdict: str, contrary: str
) -> None:
    """E12, E9, X5: one decision with its reason, and one message."""
    expense = factories.expense(callback=factories.address("wf-1"))
    for ref in (str(expense.pk), "exp-1"):
        body = send(approver, f"{EXPENSES}{ref}/{verb}/", {"reason": " wrong é "}).json()
        assert (body["state"], body["decision"]["reason"]) == (verdict, "wrong é")
        assert (body["decision"]["actor"], body["decision"]["route"]) == ("anna", "rest")
    assert Message.objects.get().payload["value"] == verdict
    assert Approval.objects.get().verdict == verdict
    with unchanged():
        details = problem(send(approver, f"{EXPENSES}exp-1/{contrary}/", {"reason": "r"}), 409)
    assert details["detail"] == f"exp-1 was already {verdict.lower()} by anna."


def test_only_a_waiting_expense_is_withdrawn(employee: Program, unchanged: Unchanged) -> None:
    """E1, E12: its activity completes with CANCELLED. A repeat succeeds."""
    waiting = factories.address("expense_exp-1")
    factories.expense(submitter=employee.user, callback=waiting)
    factories.expense("decided", State.APPROVED, submitter=employee.user)
    with unchanged():
        problem(send(employee, EXPENSES + "decided/withdraw/"), 409)
    for _ in range(2):
        body = send(employee, EXPENSES + "exp-1/withdraw/", {"reason": "twice"}).json()
        assert (body["state"], body["decision"]["verdict"]) == ("WITHDRAWN", "WITHDRAWN")
    message = Message.objects.get(kind="complete_activity")
    assert message.payload["value"] == "CANCELLED"


@pytest.mark.parametrize("verb", ["approve", "reject", "withdraw"])
def test_a_session_without_the_csrf_token_decides_nothing(unchanged: Unchanged, verb: str) -> None:
    """X8: on every verb."""
    person = factories.user(groups.EMPLOYEE, groups.APPROVER)
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(person)
    factories.expense(submitter=person if verb == "withdraw" else None)
    with unchanged():
        problem(send(browser, f"{EXPENSES}exp-1/{verb}/", {"reason": "r"}), 403)


# Waiting


@pytest.mark.parametrize("prefer", ["wait=0", "respond-async, wait=1"])
def test_a_wait_that_ends_first_is_202(approver: Program, prefer: str) -> None:
    """E12: with the expense as it then is."""
    factories.expense()
    response = send(approver, EXPENSES + "exp-1/approve/", Prefer=prefer)
    assert (response.status_code, response.json()["state"]) == (202, "APPROVED")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_wait_ends_when_the_expense_is_paid(
    approver: Program, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """E12: the answer comes with the new state, and no sooner."""
    expense = factories.expense(state=State.APPROVED if method == "GET" else State.CREATED)
    slept = []

    def pay(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            services.record_payment(expense, factories.act())

    # The payment comes during the second pause. A third pause would be one too many.
    monkeypatch.setattr("rest.prefer.sleep", pay)
    path = f"{EXPENSES}exp-1/{'approve/' if method == 'POST' else ''}"
    headers = {"Prefer": "wait=60"}
    answer: Any = approver.generic(method, path, b"{}", "application/json", headers=headers)
    assert (answer.status_code, answer.json()["state"]) == (200, "COMPLETED")
    assert answer.json()["paid_at"] == "2026-01-02T03:04:05Z"
    assert len(slept) == 2


def test_no_more_than_half_of_the_threads_wait(approver: Program, no_free_thread: None) -> None:
    """E12: the next request gets 202 at once."""
    factories.expense()
    response = send(approver, EXPENSES + "exp-1/approve/", Prefer="wait=60")
    assert (response.status_code, response.json()["state"]) == (202, "APPROVED")


def test_a_settled_expense_is_answered_at_once(approver: Program) -> None:
    """E12: so is a request that does not ask to wait."""
    factories.expense("paid", State.COMPLETED)
    factories.expense("exp-1")
    factories.expense("exp-2")
    for ref, verb in (("paid", "approve"), ("exp-1", "reject")):
        answer = send(approver, f"{EXPENSES}{ref}/{verb}/", {"reason": "r"}, Prefer="wait=60")
        assert answer.status_code == 200
    answer = approver.get(EXPENSES + "exp-1/", headers={"Prefer": "wait=60"})
    assert (answer.status_code, answer.json()["state"]) == (200, "REJECTED")
    for odd in ("wait=", "wait=x", "wait=-1", "\xe9"):
        assert send(approver, EXPENSES + "exp-2/approve/", Prefer=odd).status_code == 200


def test_a_defect_of_the_site_is_a_problem_without_its_cause(
    approver: Program, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """E12: the cause is in the log."""

    def broken(user: object) -> None:
        raise RuntimeError("the cause")

    monkeypatch.setattr(services, "visible_to", broken)
    details = problem(approver.get(EXPENSES), 500)
    assert "the cause" not in str(details)
    assert "the cause" in caplog.text
