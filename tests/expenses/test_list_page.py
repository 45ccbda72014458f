"""The list page and its buttons, as a browser without JavaScript sees them."""

import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

import pytest
from django.test import Client

from access import groups
from approvals.models import Approval
from expenses.models import Expense, State
from outbox.models import Message
from tests import factories
from tests.conftest import Unchanged

pytestmark = pytest.mark.django_db


def page(client: Client, path: str = "/list", **query: str) -> str:
    response = client.get(f"{path}?{urlencode(query)}" if query else path)
    assert response.status_code == 200
    return response.content.decode()


def ids(html: str) -> list[str]:
    return [unescape(text) for text in re.findall(r'<td class="id">(.*?)</td>', html, re.DOTALL)]


def hidden(html: str) -> dict[str, str]:
    """The hidden fields of the first form, its CSRF token included."""
    form = re.findall(r'<form[^>]*method="post".*?</form>', html, re.DOTALL)[0]
    fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)
    return {name: unescape(value) for name, value in fields}


@pytest.fixture
def browser(local: Client) -> Client:
    """A browser at the local installation: CSRF is checked."""
    return Client(enforce_csrf_checks=True, SERVER_NAME="localhost")


def test_both_paths_show_title_heading_link_and_columns(local: Client) -> None:
    """E2: / and /list."""
    for path in ("/", "/list"):
        html = page(local, path)
        assert "<title>SAMPLE EXPENSE SYSTEM</title>" in html
        assert "<h1>SAMPLE EXPENSE SYSTEM</h1>" in html
        assert '<a href="/list">HOME</a>' in html
        columns = re.findall(r'<th scope="col">(.*?)</th>', html)
        assert columns == ["Expense ID", "Status", "Action"]
        assert ids(html) == []


def test_expenses_are_ordered_by_code_point(local: Client) -> None:
    """E2: on every database."""
    order = ["10", "9", "Z", "_", "a", "ab", "b", "é", "ﬀ", "😀"]
    for expense_id in reversed(order):
        factories.expense(expense_id)
    assert ids(page(local)) == order


def test_only_created_rows_have_buttons(local: Client) -> None:
    """E2: APPROVE in green and REJECT in red. Each row shows its state."""
    for state in State:
        factories.expense(f"is-{state.value}", state)
    rows = dict(re.findall(r'<td class="id">is-(\w+)</td>(.*?)</tr>', page(local), re.DOTALL))
    assert sorted(rows) == sorted(State.values)
    button = r'background-color: (#\w+)" name="type" value="(\w+)"[^>]*>(\w+)<'
    for state, row in rows.items():
        assert f">{state}</span>" in row
        expected = [("#4CAF50", "approve", "APPROVE"), ("#f44336", "reject", "REJECT")]
        assert re.findall(button, row) == (expected if state == "CREATED" else [])


@pytest.mark.parametrize(("group", "buttons"), [(groups.APPROVER, 2), (groups.AUDITOR, 0)])
def test_buttons_are_offered_only_to_those_who_may_decide_the_row(
    client: Client, group: str, buttons: int
) -> None:
    """E2, X3, X10: an auditor reads the rows; an approver has no buttons on their own expense."""
    factories.expense()
    person = factories.user(group)
    factories.expense("own", submitter=person)
    client.force_login(person)
    html = page(client)
    assert (ids(html), html.count('name="type"')) == (["exp-1", "own"], buttons)


def test_an_employee_sees_only_their_own(client: Client) -> None:
    """X10: in the search and after an id too."""
    person = factories.user(groups.EMPLOYEE)
    factories.expense("own-1", submitter=person)
    factories.expense("other-1", submitter=factories.user(groups.EMPLOYEE))
    factories.expense("plain-1")
    client.force_login(person)
    for query in ({}, {"q": "1"}, {"after": "a"}):
        assert ids(page(client, **query)) == ["own-1"]


def test_markup_in_an_id_is_text(local: Client) -> None:
    """E2: in the row, in its form and in the search."""
    name = '<script>"x"&\'</script>'
    factories.expense(name)
    html = page(local, q=name)
    assert (ids(html), hidden(html)["id"], hidden(html)["q"]) == ([name], name, name)
    assert '<script>"x' not in html


def test_a_page_has_100_rows_and_links_to_the_next(local: Client) -> None:
    """E2: the last page has no link, and the search stays."""
    names = [f"e&{number:03}" for number in range(201)]
    for name in names:
        factories.expense(name)
    factories.expense("another")
    seen, following, sizes = [], ["/list?q=E%26"], []
    while following:
        html = page(local, unescape(following[0]))
        seen += ids(html)
        sizes.append(len(ids(html)))
        following = re.findall(r'<a href="([^"]*)" rel="next">', html)
    assert (seen, sizes) == (names, [100, 100, 1])


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("bc", ["ABC", "abc"]),
        ("%", ["100%"]),
        ("_", ["a_c"]),
        ("\\", ["back\\slash"]),
        (" ", [" space "]),
        ("é", ["café"]),
        ("nothing", []),
    ],
)
def test_search_finds_a_part_of_an_id_in_either_case(
    local: Client, search: str, found: list[str]
) -> None:
    """E2: and takes every sign literally."""
    for expense_id in ("abc", "ABC", "100%", "a_c", "back\\slash", " space ", "café"):
        factories.expense(expense_id)
    assert ids(page(local, q=search)) == found


@pytest.mark.parametrize("odd", ["%00", "a%00", "%FF", "%ED%A0%80", "%0A", "%25", "a" * 60_000])
@pytest.mark.parametrize("name", ["q", "after"])
def test_odd_bytes_are_no_server_error(
    local: Client, unchanged: Unchanged, name: str, odd: str
) -> None:
    """E2: in the address and in the form."""
    factories.expense()
    with unchanged():
        assert "<table>" in page(local, f"/list?{name}={odd}")
        form = f"id=none&type=approve&{name}={odd}"
        kind = "application/x-www-form-urlencoded"
        assert local.generic("POST", "/decide", form, kind).status_code == 400


def test_the_version_of_the_rows_changes_with_a_state(local: Client) -> None:
    """E2: the open page asks for it."""
    version = re.compile(r'data-version="(\d+)"')
    factories.expense()
    before = version.findall(page(local))
    assert version.findall(page(local)) == before
    local.post("/decide", {"id": "exp-1", "type": "approve"})
    assert version.findall(page(local)) != before


# The buttons


@pytest.mark.parametrize("token", [{}, {"csrfmiddlewaretoken": "x" * 64}])
def test_a_decision_without_the_pages_csrf_token_is_refused(
    browser: Client, unchanged: Unchanged, token: dict[str, str]
) -> None:
    """E2, X8: or with another token."""
    factories.expense()
    page(browser)
    with unchanged():
        answer = browser.post("/decide", {"id": "exp-1", "type": "approve", **token})
    assert answer.status_code == 403
    assert "Go back, reload the page and try again." in answer.content.decode()


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"id": "nope", "type": "approve"}, "There is no expense nope."),
        ({"id": "", "type": "approve"}, "This is not an expense id"),
        ({"id": "exp-1", "type": "payment"}, "The type must be approve or reject"),
        ({"id": "exp-1", "type": ""}, "The type must be approve or reject"),
        ({"id": "decided", "type": "reject", "reason": "r"}, "decided was already approved by"),
        ({"id": "exp-1", "type": "reject", "reason": "x" * 2001}, "The reason has more than 2000"),
        ({"id": "exp-1", "type": "reject", "reason": "\0"}, "The reason has characters"),
    ],
)
def test_a_refused_decision_is_a_page_and_changes_nothing(
    local: Client, unchanged: Unchanged, form: dict[str, str], sentence: str
) -> None:
    """E2, E4: with status 400 and a sentence."""
    factories.expense()
    factories.expense("decided", State.APPROVED)
    with unchanged():
        answer = local.post("/decide", form)
    assert answer.status_code == 400
    assert f'<p role="alert">{sentence}' in answer.content.decode()


def test_a_form_without_its_fields_is_422(local: Client, unchanged: Unchanged) -> None:
    """E8: the answer lists the fields."""
    with unchanged():
        answer = local.post("/decide", {})
    assert answer.status_code == 422
    locations = [error["loc"] for error in answer.json()["detail"]]
    assert locations == [["body", "id"], ["body", "type"]]


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_rejecting_without_a_reason_asks_and_changes_nothing(
    browser: Client, unchanged: Unchanged, reason: str
) -> None:
    """E2, X3: the page keeps the id and the place in the list."""
    factories.expense(" <b> ")
    form = hidden(page(browser)) | {"type": "reject", "reason": reason, "q": "<b>", "after": "!"}
    with unchanged():
        asked = browser.post("/decide", form)
    assert asked.status_code == 400
    kept = hidden(asked.content.decode())
    token = {"csrfmiddlewaretoken": kept["csrfmiddlewaretoken"]}
    assert kept == {"id": " <b> ", "type": "reject", "q": "<b>", "after": "!"} | token
    answer = browser.post("/decide", kept | {"reason": " no receipt "})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/list?q=%3Cb%3E&after=%21")
    assert Approval.objects.get().entry.reason == "no receipt"


def test_approving_twice_decides_once(browser: Client) -> None:
    """E2, E9, X5: by the route of the page, and back to the place in the list."""
    factories.expense(callback=factories.address("wf-1"))
    form = hidden(page(browser)) | {"type": "approve", "q": "é", "after": ""}
    for _ in range(2):
        answer = browser.post("/decide", form)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/list?q=%C3%A9")
    assert Expense.objects.get().state == "APPROVED"
    entry = Approval.objects.get().entry
    assert (entry.actor, entry.route, entry.reason) == ("local", "page", "")
    assert Message.objects.get().payload["value"] == "APPROVED"


def test_pages_run_no_inline_script(local: Client) -> None:
    """E2, X8: their policy allows scripts of this site only."""
    for path in ("/list", "/action?type=approve&id=unknown"):
        policy = local.get(path).headers["Content-Security-Policy"]
        assert "script-src 'self';" in f"{policy};"


def test_list_reads_its_rows_by_one_query(local: Client, django_assert_num_queries: Any) -> None:
    """E2: however many rows it has, and whoever may decide them."""
    for number in range(5):
        factories.expense(f"exp-{number}", submitter=factories.user(groups.EMPLOYEE))
    with django_assert_num_queries(1):
        assert len(ids(page(local, "/list"))) == 5
