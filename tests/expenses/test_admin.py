"""The admin, as a signed-in person sees and posts it."""

import re
import uuid
from dataclasses import replace
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.contrib.messages import get_messages
from django.test import Client

from access import groups
from approvals.models import Approval, AuditEntry
from expenses.models import Expense, State
from expenses.services import submit_expense
from outbox import services as outbox
from outbox.models import Message
from temporal.outcomes import Outcome
from tests import factories
from tests.conftest import Unchanged

pytestmark = pytest.mark.django_db

LIST = "/admin/expenses/expense/"
ADD = LIST + "add/"
LEDGER = "/admin/expenses/ledgerentry/"
TRAIL = "/admin/approvals/auditentry/"
OUTBOX = "/admin/outbox/message/"
FORM = {"expense_id": "exp-1", "amount": "12.50", "currency": "EUR", "merchant": "Café"}


@pytest.fixture
def approver() -> User:
    return factories.user(groups.APPROVER, username="anna")


@pytest.fixture
def desk(client: Client, approver: User) -> Client:
    """The admin as an approver has it."""
    client.force_login(approver)
    return client


def act(client: Client, action: str, *expenses: Expense | str, **fields: Any) -> Any:
    ticked = [expense if isinstance(expense, str) else expense.pk for expense in expenses]
    return client.post(LIST, {"action": action, "_selected_action": ticked, **fields})


def made(**states: State) -> list[Expense]:
    """Expenses by id and state, each a second younger than the one before."""
    return [
        factories.expense(name, state, now=factories.NOW + timedelta(seconds=second))
        for second, (name, state) in enumerate(states.items(), start=1)
    ]


def told(response: Any) -> list[str]:
    """The messages that the person reads next."""
    return [str(message) for message in get_messages(response.wsgi_request)]


def listed(client: Client) -> set[str]:
    """The keys of the expenses on the list."""
    html = client.get(LIST).content.decode()
    return set(re.findall(rf'{LIST}([0-9a-f-]{{36}})/change/"', html))


def page_of(client: Client, expense: Expense) -> str:
    response = client.get(f"{LIST}{expense.pk}/change/")
    assert response.status_code == 200
    return response.content.decode()


# What is refused


def test_the_admin_without_a_session_asks_to_sign_in(client: Client, unchanged: Unchanged) -> None:
    """X8: and it changes nothing."""
    expense = factories.expense()
    with unchanged():
        for response in (client.get(LIST), act(client, "approve", expense)):
            assert response.status_code == 302
            assert response.headers["Location"].startswith("/admin/login/")


def test_an_action_without_the_csrf_token_is_refused(approver: User, unchanged: Unchanged) -> None:
    """X8: it changes nothing."""
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(approver)
    expense = factories.expense()
    with unchanged():
        assert act(browser, "approve", expense).status_code == 403


@pytest.mark.parametrize("superuser", [False, True])
def test_nobody_changes_or_deletes_a_record(
    client: Client, unchanged: Unchanged, superuser: bool
) -> None:
    """E1, X5: an expense, a payment or an audit entry, superusers included."""
    client.force_login(factories.user(groups.AUDITOR, is_superuser=superuser))
    expense = factories.expense(state=State.COMPLETED)
    trail = list(AuditEntry.objects.order_by("pk").values())
    rows = f"{LIST}{expense.pk}/", f"{LEDGER}{expense.payment.pk}/", f"{TRAIL}{trail[0]['id']}/"
    with unchanged():
        for path in (row + page for row in rows for page in ("change/", "delete/")):
            assert client.post(path, {"post": "yes", **FORM}).status_code == 403
        act(client, "delete_selected", expense, post="yes")
    assert list(AuditEntry.objects.order_by("pk").values()) == trail


@pytest.mark.parametrize("selected", ["1", "x", "", "\0", "a" * 5000, "00000000"], ids=ascii)
def test_a_forged_row_is_reported_and_decides_nothing(
    desk: Client, unchanged: Unchanged, selected: str
) -> None:
    """E11: it is no server error. A row that does not exist is ignored."""
    expense = factories.expense()
    with unchanged():
        answer = act(desk, "approve", selected, expense)
        assert act(desk, "approve", str(uuid.uuid4())).status_code == 302
    assert answer.status_code == 302
    assert "Some of the ticked rows are no expenses. Reload the page." in told(answer)


@pytest.mark.parametrize("reason", ["x" * 2001, "a\0b"])
def test_an_unstorable_reason_decides_nothing(
    desk: Client, unchanged: Unchanged, reason: str
) -> None:
    """X3: a reason that is too long, or that no database stores."""
    expense = factories.expense()
    with unchanged():
        answer = act(desk, "reject", expense, reason=reason)
    assert (answer.status_code, told(answer)[0][:15]) == (302, "The reason has ")


@pytest.mark.parametrize("query", ["q=%00", "q=%FF", "q=" + "a" * 60_000, "p=x"])
def test_odd_bytes_in_the_address_of_the_list_are_no_server_error(desk: Client, query: str) -> None:
    """E2: in the search and in the page number."""
    factories.expense()
    assert desk.get(f"{LIST}?{query}").status_code in (200, 302)


# What is shown


@pytest.mark.parametrize(
    "group", [groups.APPROVER, groups.FINANCE, groups.AUDITOR, groups.OPERATOR]
)
def test_each_group_opens_its_lists_and_only_approvers_decide(client: Client, group: str) -> None:
    """E1, X3, X5: the list, and the page of an expense in each state."""
    client.force_login(factories.user(group))
    expenses = [
        factories.expense(f"e-{state}", state, callback=factories.address(f"expense_e-{state}"))
        for state in State
    ]
    assert listed(client) == {str(expense.pk) for expense in expenses}
    for expense in expenses:
        html = page_of(client, expense)
        assert ("Audit trail" in html, expense.expense_id in html) == (True, True)
        decides = group == groups.APPROVER and expense.state == "CREATED"
        assert ('value="approve"' in html) is decides
    assert client.get(ADD).status_code == 403
    for path, allowed in (
        (LEDGER, (groups.FINANCE, groups.AUDITOR)),
        (TRAIL, (groups.AUDITOR,)),
        (OUTBOX, (groups.OPERATOR, groups.AUDITOR)),
    ):
        assert client.get(path).status_code == (200 if group in allowed else 403)


def test_an_employee_sees_and_withdraws_only_their_own(client: Client) -> None:
    """E1, X3: an employee submits, and sees neither the ledger nor the trail. The worker sees
    nothing."""
    person = factories.user(groups.EMPLOYEE)
    own, other = factories.expense("own", submitter=person), factories.expense()
    client.force_login(person)
    assert listed(client) == {str(own.pk)}
    assert 'value="withdraw"' in page_of(client, own)
    settled = factories.expense("settled", State.REJECTED, submitter=person)
    assert 'value="withdraw"' not in page_of(client, settled)
    paths = (ADD, LEDGER, TRAIL, f"{LIST}{other.pk}/change/")
    assert [client.get(path).status_code for path in paths] == [200, 403, 403, 302]
    client.force_login(factories.user(groups.WORKER))
    paths = (LIST, f"{LIST}{own.pk}/change/", *paths)
    assert {client.get(path).status_code for path in paths} == {403}


def test_the_page_shows_the_trail_oldest_first(desk: Client) -> None:
    """X5: who, what, when, by which route and why, with refused attempts."""
    expense = factories.expense(workflow_id="wf", callback=factories.address("wf"))
    headers = factories.bearer(factories.user(groups.AUDITOR, username="otto"))
    url = f"/api/v1/expenses/{expense.pk}/approve/"
    desk.post(url, content_type="application/json", headers=headers)
    act(desk, "reject", expense, reason="<b>no</b>")
    html = page_of(desk, expense).partition("Audit trail")[2]
    rows = re.findall(r"<tr class=.*?</tr>", html, re.DOTALL)
    cells = [[unescape(c) for c in re.findall(r"<td[^>]*>([^<]*)</td>", row)] for row in rows]
    assert [row[:3] for row in cells] == [
        ["created", "local", "plain protocol"],
        ["callback registered", "local", "plain protocol"],
        ["refused", "otto", "REST API"],
        ["rejected", "anna", "admin"],
    ]
    assert cells[3][3] == "<b>no</b>"
    assert '<time datetime="2026-01-02T03:04:05+00:00">2026-01-02 03:04:05<' in rows[0]


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        (None, "queued"),
        (Outcome.DELIVERED, "notified"),
        (Outcome.ALREADY_COMPLETED, "notified"),
        (Outcome.CONFLICT, "conflict"),
        (Outcome.UNDELIVERABLE, "undeliverable"),
        (Outcome.DEAD, "undeliverable"),
    ],
)
def test_list_and_page_show_the_delivery_to_the_workflow(
    desk: Client, outcome: Outcome | None, shown: str
) -> None:
    """X6: for each outcome of the delivery."""
    expense = factories.expense(state=State.APPROVED, callback=factories.address("wf"))
    if outcome:
        Message.objects.update(outcome=outcome, settled_at=factories.NOW)
    for html in (desk.get(LIST).content.decode(), page_of(desk, expense)):
        assert re.search(rf">\s*{shown}\s*<", html)


@pytest.mark.parametrize(
    ("workflow_id", "quoted"),
    [("expense_a/b?c#d", ["expense_a%2Fb%3Fc%23d"]), ("é <x>", ["%C3%A9%20%3Cx%3E"]), (None, [])],
)
def test_the_page_links_to_the_run_in_the_temporal_ui(
    desk: Client, settings: Any, workflow_id: str | None, quoted: list[str]
) -> None:
    """E2: the workflow id is quoted. Without one there is no link."""
    settings.TEMPORAL_UI_URL = "http://ui.example"
    html = page_of(desk, factories.expense(workflow_id=workflow_id))
    links = re.findall(r'href="http://ui\.example/namespaces/default/workflows/([^"]*)"', html)
    assert links == quoted


def test_markup_of_a_submitter_is_text_on_every_page(client: Client) -> None:
    """X5: on the list, on the page and on the page that asks for the reason."""
    bad = "<script>alert(1)</script>"
    client.force_login(factories.user(groups.EMPLOYEE, groups.APPROVER))
    client.post(ADD, {**FORM, "expense_id": bad, "merchant": bad, "description": bad})
    expense = Expense.objects.get()
    another = factories.user(groups.APPROVER)
    client.force_login(another)
    asking = act(client, "reject", expense).content.decode()
    for html in (client.get(LIST).content.decode(), page_of(client, expense), asking):
        assert bad not in html
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


# Decisions


def test_rejecting_without_a_reason_asks_and_changes_nothing(
    desk: Client, unchanged: Unchanged
) -> None:
    """X3: the page that asks keeps the ticked rows."""
    expenses = made(a=State.CREATED, b=State.APPROVED)
    with unchanged():
        answer = act(desk, "reject", *expenses, reason=" ")
    assert answer.status_code == 200
    html = answer.content.decode()
    ticked = re.findall(r'name="_selected_action" value="([^"]+)"', html)
    assert ticked == [str(expense.pk) for expense in expenses]
    assert '<input type="hidden" name="action" value="reject">' in html
    assert "(already approved, will be skipped)" in html


def test_rejecting_own_and_other_expenses_without_a_reason_audits_one_refusal(
    client: Client, unchanged: Unchanged
) -> None:
    """X3: the page asks for the reason before any row is refused. Nobody is asked for the reason
    of a rejection that is refused."""
    person = factories.user(groups.EMPLOYEE, groups.APPROVER)
    own = factories.expense("own", submitter=person, now=factories.NOW - timedelta(days=1))
    other = factories.expense("other")
    client.force_login(person)
    with unchanged():
        assert act(client, "reject", own, other).status_code == 200
    act(client, "reject", own, other, reason="no receipt")
    assert AuditEntry.objects.filter(event="refused").count() == 1
    states = Expense.objects.values_list("expense_id", "state")
    assert dict(states) == {"own": "CREATED", "other": "REJECTED"}
    with unchanged(refusals=1):
        assert act(client, "reject", own).status_code == 302


@pytest.mark.parametrize(
    ("action", "state"), [("approve", State.APPROVED), ("reject", State.REJECTED)]
)
def test_an_action_decides_the_ticked_rows_and_skips_decided_ones(
    desk: Client, approver: User, action: str, state: State
) -> None:
    """E9, X5: the report names the skipped rows."""
    waiting = factories.expense("a", callback=factories.address("wf-a"))
    others = made(b=State.CREATED, c=State.COMPLETED)
    answer = act(desk, action, waiting, *others, reason=" because ")
    assert (answer.status_code, answer.headers["Location"]) == (302, LIST)
    assert told(answer) == [
        "Skipped: c was already approved by local.",
        f"{state.label.capitalize()}: a, b. Queued; the workflow is notified automatically.",
    ]
    states = Expense.objects.values_list("expense_id", "state")
    assert list(states) == [("a", state), ("b", state), ("c", State.COMPLETED)]
    decided = Approval.objects.filter(entry__by=approver)
    rows = decided.values_list("entry__actor", "entry__route", "entry__reason", "verdict")
    assert list(rows) == [("anna", "admin", "because", state.value)] * 2
    assert Message.objects.get().key == "expense-decision:a"


@pytest.mark.parametrize(
    ("count", "names"), [(1, "e0"), (5, "e0, e1, e2, e3, e4"), (7, "e0, e1, e2, e3, e4 and 2 more")]
)
def test_the_report_names_five_rows_and_counts_the_rest(
    desk: Client, count: int, names: str
) -> None:
    """E9, X4: before a registration there is no workflow to notify, and the report says so."""
    expenses = made(**{f"e{number}": State.CREATED for number in range(count)})
    report = told(act(desk, "approve", *expenses))
    assert report == [
        f"Approved: {names}. No workflow waits yet; it gets the decision when it asks."
    ]
    assert set(Expense.objects.values_list("state", flat=True)) == {"APPROVED"}


@pytest.mark.parametrize("ticked", [0, 1])
def test_rows_that_were_not_ticked_are_untouched(desk: Client, ticked: int) -> None:
    """X4: even with select_across=1."""
    expenses = made(a=State.CREATED, b=State.CREATED, c=State.CREATED)
    act(desk, "approve", *expenses[:ticked], select_across="1")
    states = list(Expense.objects.values_list("state", flat=True))
    assert states == ["APPROVED"] * ticked + ["CREATED"] * (3 - ticked)


def test_deciding_ones_own_expense_is_refused_and_not_offered(
    client: Client, unchanged: Unchanged
) -> None:
    """X3: the page offers only to withdraw it."""
    person = factories.user(groups.EMPLOYEE, groups.APPROVER)
    own = factories.expense("own", submitter=person)
    client.force_login(person)
    with unchanged(refusals=1):
        answer = act(client, "approve", own)
    assert told(answer) == ["Skipped: own. Nobody decides their own request; ask another approver."]
    html = page_of(client, own)
    assert ('value="approve"' in html, 'value="withdraw"' in html) == (False, True)


def test_an_employee_withdraws_only_their_own(client: Client, unchanged: Unchanged) -> None:
    """E1: another person's expense is not found."""
    person = factories.user(groups.EMPLOYEE)
    own = factories.expense("own", submitter=person)
    other = factories.expense("other", submitter=factories.user(groups.EMPLOYEE))
    client.force_login(person)
    with unchanged():
        assert act(client, "withdraw", other).status_code == 302
    assert told(act(client, "withdraw", own, other))[-1].startswith("Withdrawn: own. ")
    states = Expense.objects.values_list("expense_id", "state")
    assert list(states) == [("other", "CREATED"), ("own", "WITHDRAWN")]


def test_withdrawing_another_persons_expense_is_refused_and_audited(
    desk: Client, unchanged: Unchanged
) -> None:
    """X3, X10: a person who may no longer submit still withdraws their own expense, from its page
    and from the list."""
    person = factories.user(groups.EMPLOYEE)
    own = factories.expense("own", submitter=person)
    with unchanged(refusals=1):
        answer = act(desk, "withdraw", own)
    assert told(answer) == [
        "Skipped: own. Only the person who submitted a request can withdraw it."
    ]
    person.groups.set(Group.objects.filter(name=groups.FINANCE))
    desk.force_login(person)
    listed = '<option value="withdraw">'
    assert listed in desk.get(LIST).content.decode()
    assert 'value="withdraw"' in page_of(desk, own)
    act(desk, "withdraw", own)
    assert Expense.objects.get().state == "WITHDRAWN"
    assert listed not in desk.get(LIST).content.decode()


# Submission


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("expense_id", value) for value in ("", " ", "taken", "a\0", "a\nb", "a" * 101)),
        *(("amount", value) for value in ("", "-1", "NaN", "1e400")),
        *(("currency", value) for value in ("", "eur")),
        *(("description", "\0"), ("incurred_on", "x")),
    ],
)
def test_a_form_with_a_wrong_field_stores_nothing(
    client: Client, unchanged: Unchanged, field: str, value: str
) -> None:
    """E1, E12: the form is shown again with the error."""
    factories.expense("taken")
    client.force_login(factories.user(groups.EMPLOYEE))
    with unchanged():
        answer = client.post(ADD, {**FORM, field: value})
    assert answer.status_code == 200
    assert list(answer.context["adminform"].form.errors) == [field]


@pytest.mark.parametrize("expense_id", ["exp-1", " a ", "é😀", "a/b"])
def test_the_form_submits_in_the_persons_name_and_starts_the_workflow(
    client: Client, expense_id: str
) -> None:
    """E1, X1, X5: the id is kept as typed, and forged fields are ignored."""
    person = factories.user(groups.EMPLOYEE, username="emma")
    client.force_login(person)
    forged = {"state": "APPROVED", "submitter": "1", "workflow_id": "expense_other"}
    answer = client.post(ADD, {**FORM, **forged, "expense_id": expense_id})
    assert answer.status_code == 302
    expense = Expense.objects.get()
    assert (expense.expense_id, expense.state) == (expense_id, "CREATED")
    assert (expense.approval.submitter, expense.workflow_id) == (person, f"expense_{expense_id}")
    assert expense.approval.money() == "12.50 EUR"
    message = Message.objects.get()
    assert (message.kind, message.payload["argument"]) == ("start_workflow", expense_id)
    entry = AuditEntry.objects.get()
    assert (entry.event, entry.actor, entry.route) == ("submitted", "emma", "admin")


def test_an_id_taken_after_the_check_of_the_form_is_no_server_error(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E11: the second submission stores nothing."""
    check = Expense.validate_unique

    def check_then_lose(expense: Expense, exclude: Any = None) -> None:
        check(expense, exclude)
        submit_expense("exp-1", details=factories.DETAILS, act=factories.act())

    monkeypatch.setattr(Expense, "validate_unique", check_then_lose)
    client.force_login(factories.user(groups.EMPLOYEE))
    assert client.post(ADD, FORM).status_code in (200, 302)
    assert not Approval.objects.filter(submitter__isnull=False).exists()
    assert not Message.objects.exists()


def test_a_notification_without_an_answer_yet_is_queued_whatever_the_cause(
    desk: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E9, X6: the report does not say that Temporal is down, since it may only be slow."""
    expense = factories.expense(callback=factories.address("w"))
    monkeypatch.setattr(outbox, "wait_for_report", lambda notices: [None for _ in notices])
    assert told(act(desk, "approve", expense)) == [
        "Approved: exp-1. Queued; the workflow is notified automatically."
    ]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome.DELIVERED, "Approved: exp-1. Workflow notified."),
        (Outcome.ALREADY_COMPLETED, "Approved: exp-1. Workflow notified."),
        *(
            (
                bad,
                "Approved: exp-1. Not every workflow could be notified; "
                "the Workflow column shows which.",
            )
            for bad in (Outcome.CONFLICT, Outcome.UNDELIVERABLE, Outcome.DEAD)
        ),
    ],
)
def test_the_report_says_what_became_of_the_notification(
    desk: Client, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, said: str
) -> None:
    """E9, X6: for each outcome of the delivery."""
    expense = factories.expense(callback=factories.address("w"))
    monkeypatch.setattr(outbox, "wait_for_report", lambda notices: [outcome for _ in notices])
    act(desk, "approve", expense)
    assert said in unescape(desk.get(LIST).content.decode())


def test_filter_offers_only_currencies_that_the_person_sees(client: Client) -> None:
    """X10: not those of other people's expenses, nor those of orders."""
    person, other = factories.user(groups.EMPLOYEE), factories.user(groups.EMPLOYEE)
    for submitter, currency in ((person, "EUR"), (person, "CHF"), (other, "XAU")):
        details = replace(factories.DETAILS, currency=currency)
        submit_expense(f"in-{currency}", details=details, act=factories.act(submitter))
    factories.order(large=True)
    client.force_login(person)
    page = client.get(LIST).content.decode()
    assert set(re.findall(r"approval__currency=(\w+)", page)) == {"EUR", "CHF"}
