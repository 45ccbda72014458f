"""Every page as every role: what is offered is permitted (requirements X10)."""

import re
from html import unescape
from typing import Any, Final
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from django.contrib.auth.models import User
from django.contrib.messages import ERROR, WARNING, get_messages
from django.db import transaction
from django.test import Client

from access import groups
from approvals.models import AuditEntry
from expenses.models import State as ExpenseState
from orders.models import State as OrderState
from outbox.models import Message
from temporal.outcomes import Outcome
from tests import factories
from tests.routes import people
from tests.routes.people import NOBODY, ROLES, ROOT

pytestmark = pytest.mark.django_db

APPROVALS, EXPENSES, ORDERS, OUTBOX = (
    f"/admin/{name}/"
    for name in ("approvals/approval", "expenses/expense", "orders/order", "outbox/message")
)
DECIDE: Final = {"approve", "reject"}
# The actions that a role with records of its own finds on each list. Other pages have none.
EXPECTED: Final[dict[str, dict[str, set[str]]]] = {
    NOBODY: {},
    groups.EMPLOYEE: {EXPENSES: {"withdraw"}, ORDERS: {"cancel"}},
    groups.APPROVER: {APPROVALS: DECIDE, EXPENSES: DECIDE | {"withdraw"}, ORDERS: DECIDE},
    groups.FINANCE: {EXPENSES: {"withdraw"}},
    groups.AUDITOR: {EXPENSES: {"withdraw"}},
    groups.OPERATOR: {EXPENSES: {"withdraw"}, ORDERS: {"cancel", "retry"}, OUTBOX: {"retry"}},
    groups.WORKER: {ORDERS: {"cancel"}},
    ROOT: {
        APPROVALS: DECIDE,
        EXPENSES: DECIDE | {"withdraw"},
        ORDERS: DECIDE | {"cancel", "retry"},
        OUTBOX: {"retry"},
        "/admin/auth/user/": {"delete_selected"},
        "/admin/auth/group/": {"delete_selected"},
    },
}


def records_of(person: User) -> None:
    """Create a record in each state, the person's own and another person's."""
    other = factories.user(groups.EMPLOYEE)
    factories.token(person)
    for name, submitter in (("own", person), ("other", other)):
        for state in ExpenseState:
            factories.expense(f"{name}-{state}", state, submitter=submitter)
        for order_state in OrderState:
            factories.order(f"{name}-{order_state}", order_state, submitter=submitter)
    Message.objects.filter(key__startswith="expense-start:own").update(
        outcome=Outcome.UNDELIVERABLE, settled_at=factories.NOW
    )


def links(html: str, at: str) -> set[str]:
    """Return the pages of this site to which a page links."""
    found = {urljoin(at, unescape(href)) for href in re.findall(r'<a\b[^>]*?href="([^"]*)"', html)}
    return {
        url.partition("#")[0]
        for url in found
        if url.startswith("/") and not urlsplit(url).path.startswith("/static/")
    }


def kind(url: str) -> tuple[str, frozenset[str]]:
    """Return what tells one page from another: the path and the names of the parameters.

    Other values of a filter lead to the same rows. With and without `_changelist_filters`, which
    remembers the list, the page is the same.
    """
    parts = urlsplit(url)
    return parts.path, frozenset(parse_qs(parts.query)) - {"_changelist_filters"}


def buttons(html: str) -> list[tuple[str, dict[str, str]]]:
    """Return the address and the fields of each form that changes something."""
    found = []
    for form in re.findall(r'<form[^>]*method="post".*?</form>', html, re.DOTALL):
        target = re.search(r'action="([^"]*)"', form)
        fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form))
        pressed = re.findall(r'<button[^>]*name="(action|type)" value="(\w+)"', form)
        found += [
            (target.group(1) if target else "", {**fields, name: value, "reason": "as read"})
            for name, value in pressed
        ]
    return found


def offered(html: str) -> set[str]:
    """Return the actions of a list."""
    select = re.search(r'<select[^>]*name="action".*?</select>', html, re.DOTALL)
    values = re.findall(r'<option value="(\w+)"', select.group(0)) if select else []
    return set(values)


def is_accepted(client: Client, target: str, form: dict[str, Any]) -> bool:
    """Send the form, roll its changes back, and say whether the site did what it had offered."""
    refusals = AuditEntry.objects.filter(event="refused")
    point = transaction.savepoint()
    before = refusals.count()
    client.cookies.pop("messages", None)  # the messages of an earlier answer
    response = client.post(target, form)
    told = {message.level for message in get_messages(response.wsgi_request)}
    refused = refusals.count() > before or bool(told & {ERROR, WARNING})
    transaction.savepoint_rollback(point)
    return response.status_code in (200, 302) and not refused


def test_pages_for_strangers_link_to_no_refusal() -> None:
    """X10: the sign-in page and the pages that ask for it link only to the sign-in."""
    client = Client()
    for url, status in (("/admin/login/", 200), ("/list", 401), ("/create?id=new", 401)):
        page = client.get(url)
        assert page.status_code == status
        for link in links(page.content.decode(), url):
            assert client.get(link).status_code == 200, link


@pytest.mark.parametrize("role", [role for role in ROLES if role != people.ANONYMOUS])
def test_no_page_offers_what_is_refused(role: str) -> None:
    """X10: no link leads to a refusal, no button and no action of a list is refused, and each role
    finds the actions of its work."""
    person = people.person(role)
    assert person is not None
    records_of(person)
    client = people.browser(person)
    to_see, seen = ["/admin/", "/list"], {kind("/admin/logout/")}
    lists: dict[str, set[str]] = {}
    while to_see:
        url = to_see.pop()
        path = urlsplit(url).path
        if kind(url) in seen:
            continue
        seen.add(kind(url))
        response = client.get(url, follow=True)
        assert response.status_code == 200, f"{url} is offered, and answers {response.status_code}"
        html = response.content.decode()
        # A list that is sorted, or filtered twice, offers the same links.
        to_see += [link for link in links(html, url) if not re.search(r"&|\?(o|p|all)=", link)]
        for target, form in buttons(html):
            assert is_accepted(client, target, form), f"{url} offers {form}"
        if (actions := offered(html)) and url == path:
            lists[path] = actions
            rows = re.findall(r'name="_selected_action" value="([^"]+)"', html)
            for action in actions if rows else ():
                assert any(
                    is_accepted(
                        client, path, {"action": action, "_selected_action": row, "reason": "r"}
                    )
                    for row in rows
                ), f"{url} offers {action} for no row"
    # Every staff member revokes their own tokens.
    assert lists == EXPECTED[role] | {"/admin/access/token/": {"delete_selected"}}
    assert len(seen) >= 3
