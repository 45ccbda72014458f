"""The admin's page of messages, as operators and others see and post it (requirements X6)."""

import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client

from access import groups
from expenses.models import Expense, State
from outbox import admin, metrics, relay
from outbox.models import ALARMING, Message
from temporal.outcomes import Outcome
from tests import factories
from tests.conftest import Plans, Unchanged

pytestmark = pytest.mark.django_db

LIST = "/admin/outbox/message/"
EXPENSE = "/admin/expenses/expense/"
ODD = "a_b/c?d#é <i>😀"


@pytest.fixture
def operator() -> User:
    return factories.user(groups.OPERATOR, username="otto")


@pytest.fixture
def desk(client: Client, operator: User) -> Client:
    """The admin as an operator has it."""
    client.force_login(operator)
    return client


def decision(expense_id: str, outcome: Outcome | None = None, **fields: Any) -> Message:
    """The message that tells the decision on an expense, with this outcome."""
    factories.expense(expense_id, State.APPROVED, callback=factories.address(f"wf-{expense_id}"))
    message = Message.objects.get(key=f"expense-decision:{expense_id}")
    message.outcome = outcome
    message.settled_at = outcome and relay.database_now()
    for name, value in fields.items():
        setattr(message, name, value)
    message.save()
    return message


def retry(client: Client, *ticked: Message | str, **fields: Any) -> Any:
    keys = [one if isinstance(one, str) else one.pk for one in ticked]
    return client.post(LIST, {"action": "retry", "_selected_action": keys, **fields})


def told(response: Any) -> list[str]:
    return [str(message) for message in get_messages(response.wsgi_request)]


def page_of(client: Client, message: Message) -> str:
    response = client.get(f"{LIST}{message.pk}/change/")
    assert response.status_code == 200
    return unescape(response.content.decode())


def listed(client: Client, query: str = "") -> list[str]:
    """The names of the expenses whose messages are on the list, in its order."""
    html = client.get(f"{LIST}?{query}").content.decode()
    keys = {str(message.pk): message.key for message in Message.objects.all()}
    shown = re.findall(rf'<a href="{LIST}(\d+)/change/', html)
    return [keys[pk].partition(":")[2] for pk in shown]


# What is refused


@pytest.mark.parametrize(
    "group", [groups.EMPLOYEE, groups.APPROVER, groups.FINANCE, groups.WORKER, None]
)
def test_others_see_and_retry_nothing(
    client: Client, unchanged: Unchanged, group: str | None
) -> None:
    """X6, X8: the outbox is for operators and auditors."""
    message = decision("lunch", Outcome.DEAD)
    if group:
        client.force_login(factories.user(group))
    with unchanged():
        answers = [
            client.get(LIST),
            client.get(f"{LIST}{message.pk}/change/"),
            retry(client, message),
        ]
    assert [answer.status_code for answer in answers] == [403 if group else 302] * 3
    assert not LogEntry.objects.exists()


def test_auditor_sees_and_cannot_retry(client: Client, unchanged: Unchanged) -> None:
    """X6: who sees the outbox without outbox.retry_message is offered no retry, and has none."""
    message = decision("lunch", Outcome.UNDELIVERABLE)
    client.force_login(factories.user(groups.AUDITOR))
    assert listed(client) == ["lunch"]
    assert "Retry now" not in page_of(client, message) + client.get(LIST).content.decode()
    with unchanged():
        retry(client, message)
    assert not LogEntry.objects.exists()


def test_a_retry_without_a_csrf_token_changes_nothing(operator: User, unchanged: Unchanged) -> None:
    """X8: a retry without the CSRF token."""
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(operator)
    message = decision("lunch", Outcome.DEAD)
    with unchanged():
        assert retry(browser, message).status_code == 403


def test_get_retries_nothing(desk: Client, unchanged: Unchanged) -> None:
    """X8: a link does not retry."""
    message = decision("lunch", Outcome.DEAD)
    with unchanged():
        desk.get(LIST, {"action": "retry", "_selected_action": message.pk})


@pytest.mark.parametrize("ticked", ["x", "", "\0", "1.5", "9" * 30, "a" * 5000])
def test_a_forged_row_is_named_and_changes_nothing(
    desk: Client, unchanged: Unchanged, ticked: str
) -> None:
    """X6: a forged row is a message to the person and no server error."""
    message = decision("lunch", Outcome.DEAD)
    with unchanged():
        answer = retry(desk, message, ticked)
    assert (answer.status_code, told(answer)) == (
        302,
        ["Some of the ticked rows are no messages. Reload the page."],
    )


@pytest.mark.parametrize("ticked", ["0", "-1"])
def test_a_row_that_does_not_exist_changes_nothing(
    desk: Client, unchanged: Unchanged, ticked: str
) -> None:
    """X6: a number that is no message's retries nothing."""
    with unchanged():
        assert retry(desk, ticked, from_its_page="1").status_code == 302


@pytest.mark.parametrize("superuser", [False, True])
def test_messages_are_read_only(client: Client, unchanged: Unchanged, superuser: bool) -> None:
    """X1: nobody changes, adds or deletes a message in the admin."""
    client.force_login(factories.user(groups.OPERATOR, is_superuser=superuser))
    message = decision("lunch")
    form = {"post": "yes", "key": "other", "outcome": "DELIVERED"}
    with unchanged():
        for path in ("add/", f"{message.pk}/change/", f"{message.pk}/delete/"):
            assert client.post(LIST + path, form).status_code == 403


# Retry


def test_retry_requeues_waiting_and_alarming_messages_and_leaves_done_ones(
    desk: Client, operator: User
) -> None:
    """X6: a click makes what waits due now, opens what could not take effect, and leaves what was
    delivered; the person reads which, and the log of the admin keeps who clicked."""
    later = relay.database_now() + timedelta(hours=1)
    waiting = decision("waiting", due_at=later, attempts=9, last_error="no answer")
    alarming = [decision(outcome.value, outcome) for outcome in ALARMING]
    done = [
        decision(outcome.value, outcome)
        for outcome in (Outcome.DELIVERED, Outcome.ALREADY_COMPLETED, Outcome.OBSOLETE)
    ]
    untouched = decision("not ticked", Outcome.DEAD)
    before = list(Message.objects.filter(pk__in=[one.pk for one in (*done, untouched)]).values())

    answer = retry(desk, waiting, *alarming, *done)
    assert (answer.status_code, answer.headers["Location"]) == (302, LIST)
    assert told(answer) == [
        "4 re-queued; the relay tries at once.",
        "3 already done, left alone.",
    ]
    again = Message.objects.filter(pk__in=[one.pk for one in (waiting, *alarming)])
    now = relay.database_now()
    assert [(one.outcome, one.settled_at, one.due_at <= now) for one in again] == [
        (None, None, True)
    ] * 4
    assert list(Message.objects.exclude(pk__in=again).values()) == before
    assert {one.pk for one in relay.lease_due(now=now, limit=9)} == {one.pk for one in again}
    entries = LogEntry.objects.order_by("pk").values_list("user", "object_id", "object_repr")
    assert list(entries) == [
        (operator.pk, str(one.pk), f"decision on {one.key.partition(':')[2]}")
        for one in (waiting, *alarming)
    ]


def test_the_button_of_a_message_leads_back_to_its_page(desk: Client) -> None:
    """X6: the button leads back to the message's page, which shows who retried it."""
    message = decision("lunch", Outcome.UNDELIVERABLE)
    html = page_of(desk, message)
    (form,) = re.findall(rf'<form method="post" action="{LIST}">.*?</form>', html, re.DOTALL)
    button = dict(re.findall(r'name="(\w+)" value="(\w+)"', form))
    assert button.pop("csrfmiddlewaretoken")
    assert button == {"_selected_action": str(message.pk), "from_its_page": "1", "action": "retry"}

    answer = desk.post(LIST, button, follow=True)
    assert answer.redirect_chain == [(f"{LIST}{message.pk}/change/", 302)]
    html = unescape(answer.content.decode())
    assert "1 re-queued; the relay tries at once." in html
    assert "Retried by otto at " in html
    assert "Retried by" not in page_of(desk, decision("taxi"))


def test_a_message_delivered_meanwhile_is_left_alone(desk: Client, unchanged: Unchanged) -> None:
    """X6: a row that left the list meanwhile is reported too."""
    message = decision("lunch")
    assert listed(desk) == ["lunch"]
    Message.objects.update(outcome=Outcome.DELIVERED, settled_at=factories.NOW)
    with unchanged():
        assert told(retry(desk, message)) == ["1 already done, left alone."]


def test_select_across_retries_the_ticked_rows_alone(desk: Client) -> None:
    """X4, X6: select_across=1 retries the ticked rows alone."""
    ticked, other = decision("a", Outcome.DEAD), decision("b", Outcome.DEAD)
    retry(desk, ticked, select_across="1")
    other.refresh_from_db()
    assert other.outcome == Outcome.DEAD


# What is shown


def test_one_sentence_says_that_nothing_is_open(desk: Client) -> None:
    """X6: one sentence when nothing is open."""
    decision("lunch", Outcome.DELIVERED)
    html = desk.get(LIST).content.decode()
    assert "All delivered: nothing waits, and nothing needs attention." in html
    assert "Why the oldest waits" not in html


@pytest.mark.parametrize(("minutes", "late"), [(0.5, ""), (5, ": late")])
def test_the_summary_counts_what_waits_and_needs_attention(
    desk: Client, minutes: float, late: str
) -> None:
    """X6: how many wait, how long and why the oldest does, and how many need attention."""
    now = relay.database_now()
    decision("young", created_at=now)
    decision(
        "old", created_at=now - timedelta(minutes=minutes), attempts=7, last_error="<b>down</b>"
    )
    decision("gone", Outcome.UNDELIVERABLE, created_at=now - timedelta(days=2))
    decision("gone-2", Outcome.UNDELIVERABLE)
    decision("other", Outcome.CONFLICT)
    html = desk.get(LIST).content.decode()
    summary = html.partition('<section aria-label="Summary"')[2].partition("<nav")[0]
    texts = [
        " ".join(unescape(text).split())
        for text in re.findall(r"<(?:p|h2)[^>]*>(.*?)</(?:p|h2)>", summary, re.DOTALL)
    ]
    assert texts == [
        "Waiting",
        "2",
        f"the oldest for {int(minutes)}\xa0minutes{late}".replace("\xa0", " "),
        "Why the oldest waits",
        "<b>down</b>",
        "7 attempts",
        "Needs attention",
        "3",
        "1 conflict, 2 undeliverable",
    ]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["dead", "old", "young"]),
        ("show=open", ["dead", "old", "young"]),
        ("show=nonsense", ["dead", "old", "young"]),
        ("show=waiting", ["old", "young"]),
        ("show=attention", ["dead"]),
        ("show=done", ["unneeded", "same", "done"]),
        ("show=all", ["unneeded", "same", "done", "dead", "old", "young"]),
        ("q=done", ["done"]),
        ("q=done&show=waiting", []),
        ("q=%00", None),
        ("q=" + "a" * 60_000, []),
    ],
)
def test_each_listing_shows_its_messages_in_order(
    desk: Client, query: str, names: list[str] | None
) -> None:
    """X6: what is open comes first, the oldest first; everything is within reach, and a search
    finds what was delivered."""
    now = relay.database_now()
    decision("young", created_at=now)
    decision("old", created_at=now - timedelta(hours=1))
    decision("dead", Outcome.DEAD, created_at=now - timedelta(hours=2))
    decision("done", Outcome.DELIVERED)
    decision("same", Outcome.ALREADY_COMPLETED)
    decision("unneeded", Outcome.OBSOLETE)
    if names is None:
        assert desk.get(f"{LIST}?{query}").status_code == 200
    else:
        assert listed(desk, query) == names


@pytest.mark.parametrize(
    ("outcome", "badge", "remedy", "why"),
    [
        (None, "waiting", "delivery retries automatically", "no answer"),
        (Outcome.DELIVERED, "delivered", None, ""),
        (Outcome.ALREADY_COMPLETED, "already there", None, ""),
        (Outcome.OBSOLETE, "obsolete", None, "Superseded."),
        (Outcome.CONFLICT, "conflict", "reset the run", "completed elsewhere with another value"),
        (Outcome.UNDELIVERABLE, "undeliverable", "start it again", "nobody waits for it any more"),
        (Outcome.DEAD, "unreadable", "Reset the run", "its address cannot be read"),
    ],
)
def test_each_outcome_has_words_and_a_remedy_where_one_exists(
    desk: Client, outcome: Outcome | None, badge: str, remedy: str | None, why: str
) -> None:
    """X6: the list says how a delivery stands and why; its page what that means and what to do;
    a retry is offered where it can do something."""
    errors = {None: "no answer", Outcome.OBSOLETE: "Superseded."}
    message = decision("lunch", outcome, last_error=errors.get(outcome, ""))
    row = desk.get(f"{LIST}?show=all").content.decode().partition("<tbody")[2]
    assert re.search(rf">\s*{badge}\s*<", row)
    assert re.search(rf'data-label="Why">{why}<', row)
    html = page_of(desk, message)
    assert re.search(rf">\s*{badge}\s*<", html)
    assert admin.EXPLANATIONS[outcome].meaning in html
    assert ("Remedy:" in html, (remedy or "") in html) == (remedy is not None, True)
    assert ("Retry now" in html) is (remedy is not None)


def test_a_waiting_message_shows_its_next_try(desk: Client) -> None:
    """X6: when a waiting message is tried next."""
    now = relay.database_now()
    due, later = decision("a", due_at=now), decision("b", due_at=now + timedelta(seconds=100))
    done = decision("c", Outcome.DELIVERED)
    shown = [
        re.sub(r"\d+", "N", match[1])
        for message in (due, later, done)
        if (match := re.search(r"Next try.*?>(now|in \d+ s|-)<", page_of(desk, message), re.DOTALL))
    ]
    assert shown == ["now", "in N s", "-"]


def test_payload_is_shown_nowhere(desk: Client) -> None:
    """E10: no page of the outbox has the token, encrypted or not."""
    message = decision("lunch")
    token = message.payload["address"]["token"]
    assert len(token) > 50
    html = page_of(desk, message) + desk.get(LIST).content.decode()
    assert (token in html, factories.task_token("wf-lunch").hex() in html) == (False, False)


@pytest.mark.parametrize("expense_id", ["lunch-1", ODD, "x" * 100, " a "])
def test_message_and_expense_link_to_each_other(desk: Client, expense_id: str) -> None:
    """X6: from the list and the message's page to the expense, whatever its id, and back."""
    message = decision(expense_id)
    expense = Expense.objects.get()
    for html in (
        desk.get(LIST).content.decode(),
        desk.get(f"{LIST}{message.pk}/change/").content.decode(),
    ):
        link = unescape(re.findall(rf'href="({EXPENSE}[^"]+_to_field[^"]*)"', html)[0])
        answer = desk.get(link)
        assert answer.status_code == 200
        assert answer.context["original"] == expense
        back = re.findall(rf'href="({LIST}[^"]+)"', answer.content.decode())
        assert f"{LIST}{message.pk}/change/" in back


def test_links_are_shown_to_people_who_may_follow_them(client: Client) -> None:
    """X6: who may not see expenses, or not the outbox, has no link to them."""
    message = decision("lunch")
    person = factories.user()
    person.user_permissions.add(Permission.objects.get(codename="view_message"))
    client.force_login(person)
    html = page_of(client, message) + client.get(LIST).content.decode()
    assert ("lunch" in html, EXPENSE in html) == (True, False)
    client.force_login(factories.user(groups.APPROVER))
    expense = client.get(f"{EXPENSE}{Expense.objects.get().pk}/change/").content.decode()
    assert ("lunch" in expense, LIST in expense) == (True, False)


def test_a_key_of_no_domain_is_shown_as_it_is(desk: Client) -> None:
    """X6: a key that nobody registered is shown as it is."""
    now = relay.database_now()
    message = Message.objects.create(
        kind="other", key="<i>x", payload={}, created_at=now, due_at=now
    )
    assert "message <i>x" in page_of(desk, message)
    assert "&lt;i&gt;x" in desk.get(LIST).content.decode()


@pytest.mark.parametrize(("count", "shown"), [(1, "1"), (2, "2 or more"), (3, "2 or more")])
def test_the_number_of_waiting_messages_is_counted_up_to_a_bound(
    desk: Client, monkeypatch: pytest.MonkeyPatch, count: int, shown: str
) -> None:
    """X6, X11: the page costs the same however many messages wait."""
    monkeypatch.setattr(metrics, "LARGEST_COUNT", 2)
    for number in range(count):
        decision(f"exp-{number}")
    assert re.search(rf">{shown}</p>", desk.get(LIST).content.decode())


def test_the_start_of_a_workflow_is_named_and_linked(desk: Client) -> None:
    """X6: the start of a workflow is named as one, and linked."""
    factories.expense("taxi", submitter=factories.user(groups.EMPLOYEE))
    html = page_of(desk, Message.objects.get())
    assert re.search(
        r'Start of <a [^>]*href="/admin/expenses/expense/taxi/change/[^>]*>taxi<', html
    )


# Cost


@pytest.mark.parametrize("query", ["", "?show=waiting", "?show=attention"])
def test_cost_does_not_grow_with_what_was_delivered(desk: Client, plans: Plans, query: str) -> None:
    """X6: no query of the page reads the messages that were delivered."""
    factories.delivered_messages(5000)
    decision("lunch")
    decision("taxi", Outcome.DEAD)
    with plans() as read:
        assert desk.get(LIST + query).status_code == 200
    assert len(read) >= 5
    assert [
        plan
        for plan in read
        if re.search(r"Seq Scan|SCAN (outbox_message|U0)$", plan, re.MULTILINE)
    ] == []
