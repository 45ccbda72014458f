"""How many requests a person may submit in an hour, on every route."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from access import groups
from approvals import services
from approvals.models import AuditEntry, Route, Verdict
from expenses import services as expenses
from tests import factories
from tests.conftest import Unchanged, at_once

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)
ORDER = {"product_id": "SKU-001", "quantity": 1, "customer_id": "c", "payment_method": "tok_visa"}
EXPENSE = {"amount": "12.50", "currency": "EUR"}


@pytest.fixture
def person(settings: Any) -> User:
    """A person who may submit three requests an hour."""
    settings.SUBMISSIONS_PER_HOUR = 3
    factories.stock()
    return factories.user(groups.EMPLOYEE)


def submit(person: User | None, name: str, *, after: timedelta = timedelta()) -> Any:
    act = factories.act(person, Route.REST, at=factories.NOW + after)
    return expenses.submit_expense(name, details=factories.DETAILS, act=act)


def test_expenses_and_orders_count_together(person: User, unchanged: Unchanged) -> None:
    """X11: the person is told when they can submit again; the refusal leaves no trace."""
    submit(person, "exp-1")
    factories.order("ord-1", submitter=person)
    submit(person, "exp-2", after=timedelta(minutes=59))
    with unchanged(), pytest.raises(services.TooManySubmissions) as refused:
        submit(person, "exp-3", after=timedelta(minutes=59, seconds=59.5))
    assert refused.value.wait_seconds == 1
    assert str(refused.value) == (
        "You have submitted 3 requests within an hour; nothing was submitted. Try again in 1 s."
    )
    with unchanged(), pytest.raises(services.TooManySubmissions):
        factories.order("ord-2", submitter=person, now=factories.NOW + timedelta(minutes=59))


def test_a_person_submits_again_after_an_hour(person: User, unchanged: Unchanged) -> None:
    """X11: the window moves on with each submission."""
    for minute in range(3):
        submit(person, f"exp-{minute}", after=timedelta(minutes=minute))
    submit(person, "exp-3", after=HOUR)
    with unchanged(), pytest.raises(services.TooManySubmissions) as refused:
        submit(person, "exp-4", after=HOUR)
    assert refused.value.wait_seconds == 60


def test_the_limit_of_a_person_holds_up_nobody_else(person: User) -> None:
    """X11: only the person's own submissions count."""
    for number in range(3):
        submit(person, f"exp-{number}")
    other = factories.user(groups.EMPLOYEE)
    made = submit(other, "other")
    services.record_refusal("expense", "other", "x", factories.act(other))
    services.decide(made.approval, Verdict.WITHDRAWN, factories.act(other))
    submit(other, "other-2")
    submit(other, "other-3")


@pytest.mark.parametrize("who", ["worker", "local"])
def test_a_user_who_carries_requests_has_no_limit(person: User, who: str) -> None:
    """X11: neither has the anonymous person of a local installation."""
    carrier = factories.user(groups.WORKER, groups.EMPLOYEE) if who == "worker" else None
    for number in range(5):
        submit(carrier, f"exp-{number}")
        factories.order(f"ord-{number}", submitter=carrier)


def test_rest_answers_429(person: User, client: Client, unchanged: Unchanged) -> None:
    """E12, X11: with Retry-After, under `/api/v1/` and at the root."""
    headers = factories.bearer(person)
    sent = {"content_type": "application/json", "headers": headers}
    for _ in range(3):
        assert client.post("/api/v1/expenses/", EXPENSE, **sent).status_code == 201
    for path, body in (
        ("/api/v1/expenses/", EXPENSE),
        ("/api/v1/orders", ORDER),
        ("/orders", ORDER),
    ):
        with unchanged():
            answer = client.post(path, body, **sent)
        assert answer.status_code == 429
        assert 3590 < int(answer.headers["Retry-After"]) <= 3600
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["code"] == "too_many"
        assert answer.json()["detail"].startswith("You have submitted 3 requests within an hour;")


def test_a_repeat_beyond_the_limit_is_answered_as_before(person: User, client: Client) -> None:
    """E12: a client that lost the answer to its last submission still gets it."""
    sent: dict[str, Any] = {"content_type": "application/json"}
    sent["headers"] = {**factories.bearer(person), "Idempotency-Key": "k"}
    first = client.post("/api/v1/expenses/", EXPENSE, **sent)
    ordered = client.post("/orders", ORDER, **sent)
    submit(person, "exp-3", after=timedelta(days=400_000 // 365))
    again = client.post("/api/v1/expenses/", EXPENSE, **sent)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert client.post("/orders", ORDER, **sent).json() == ordered.json()


def test_the_admin_reports_the_limit_and_submits_nothing(
    person: User, client: Client, unchanged: Unchanged
) -> None:
    """X11: with a sentence on the form."""
    client.force_login(person)
    add = "/admin/expenses/expense/add/"
    for number in range(3):
        form = {**EXPENSE, "expense_id": f"exp-{number}"}
        assert client.post(add, form).status_code == 302
    with unchanged():
        answer = client.post(add, {**EXPENSE, "expense_id": "exp-3"}, follow=True)
    assert answer.status_code == 200
    assert b"You have submitted 3 requests within an hour; nothing was submitted." in answer.content


def test_the_command_reports_the_limit_and_submits_nothing(
    person: User, unchanged: Unchanged
) -> None:
    """X11: for `startorder --as`. The console itself has no limit."""
    for number in range(3):
        submit(person, f"exp-{number}", after=timedelta(days=3650))
    with unchanged(), pytest.raises(CommandError, match=r"^You have submitted 3 requests"):
        call_command("startorder", "small", username=person.username)


@pytest.mark.django_db(transaction=True)
def test_racing_submissions_stay_within_the_limit(person: User) -> None:
    """X11: by many processes at once, on both databases."""

    def one(number: int) -> str:
        try:
            if number % 2:
                submit(person, f"exp-{number}")
            else:
                factories.order(f"ord-{number}", submitter=person)
        except services.TooManySubmissions:
            return "refused"
        return "submitted"

    told = at_once([lambda number=number: one(number) for number in range(10)])  # type: ignore[misc]
    assert sorted(told) == ["refused"] * 7 + ["submitted"] * 3
    assert AuditEntry.objects.filter(event="submitted", by=person).count() == 3


def test_the_limit_costs_the_same_in_a_long_trail(person: User) -> None:
    """X11: read from an index of the person's submissions, however many entries there are."""
    who = {"by": person, "actor": person.username, "route": Route.REST, "subject": "expense"}
    AuditEntry.objects.bulk_create(
        AuditEntry(**who, subject_id=str(number), event=event, at=factories.NOW - number * HOUR)
        for number in range(1, 2500)
        for event in ("submitted", "refused")
    )
    with connection.cursor() as cursor, CaptureQueriesContext(connection) as queries:
        submit(person, "exp-1")
        [read] = [
            each["sql"]
            for each in queries
            if each["sql"].startswith("SELECT") and '"approvals_auditentry"' in each["sql"]
        ]
        postgresql = connection.vendor == "postgresql"
        if postgresql:
            cursor.execute("ANALYZE approvals_auditentry")
        cursor.execute(f"EXPLAIN {'' if postgresql else 'QUERY PLAN '}{read}")
        plan = "\n".join(str(row[-1]) for row in cursor.fetchall())
    assert "audit_submitted_by" in plan
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan
