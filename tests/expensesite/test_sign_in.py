"""Signing in and out leads to pages only, and the session stays on this site."""

import re
from urllib.parse import unquote, urlsplit

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import resolve
from hypothesis import example, given, settings
from hypothesis import strategies as st

from access import groups, sign_in
from expenses.models import Expense, State
from tests import factories
from tests.conftest import Unchanged

pytestmark = pytest.mark.django_db

INDEX = "/admin/"
# Targets that are no page, or that a browser could resolve to something else.
ATTACKS = [
    "/action?type=approve&id=exp-1",
    "/admin/../action?type=approve&id=exp-1",
    "/admin/../action%3Ftype=approve&id=exp-1",
    "/admin/%2e%2e/action?type=approve&id=exp-1",
    "/admin/.%2E/action?type=approve&id=exp-1",
    "/admin/%252e%252e/action?type=approve&id=exp-1",
    "/admin/..%2faction?type=approve&id=exp-1",
    "/admin/..\\action?type=approve&id=exp-1",
    "/admin/%5c..%5caction",
    "/list/../action?type=approve&id=exp-1",
    "/list/..;/action?type=approve&id=exp-1",
    "/admin/.\t./action?type=approve&id=exp-1",
    "/ad\nmin/../action?type=approve&id=exp-1",
    " /action?type=approve&id=exp-1",
    "\x00/action?type=approve&id=exp-1",
    "/\t/elsewhere.example/",
    "//elsewhere.example/admin/",
    "///elsewhere.example/admin/",
    "/\\elsewhere.example/admin/",
    "\\\\elsewhere.example\\admin\\",
    "/%2felsewhere.example/",
    "http://elsewhere.example/admin/",
    "http:/action?type=approve&id=exp-1",
    "http:action?type=approve&id=exp-1",
    "javascript:alert(1)",
    "../action?type=approve&id=exp-1",
    "?type=approve&id=exp-1",
    "/create?id=new",
    "/admin/logout/",
    "/admin/login/",
    "/admin/expenses/expense/1/delete/",
    "/admin/search/",
    "/admin/auth/user/../../../action/change/",
    "/admin/auth/user/%2e%2e/%2e%2e/change/",
    "/admin/auth/user/%252e%252e/change/",
    "/admin/auth/user/..%5c../change/",
    "/admin/auth/user/..;/change/",
    "/list\r\nX: y",
    "/\uff0e\uff0e/action",
    "/list/",
    "/nothing",
    "",
]


@pytest.mark.parametrize(
    ("leads", "to"),
    [
        *((attack, INDEX) for attack in ATTACKS),
        ("/list", "/list"),
        ("/list?q=exp", "/list?q=exp"),
        ("/list?q=a%20b%26c\u00e9#top", "/list?q=a%20b%26c%C3%A9"),
        ("/admin/", "/admin/"),
        ("/admin/expenses/", "/admin/expenses/"),
        ("/admin/%65xpenses/expense/?state=CREATED", "/admin/expenses/expense/?state=CREATED"),
        ("/admin/expenses/expense/add/", "/admin/expenses/expense/add/"),
        ("/admin/expenses/expense/exp.1/change/", "/admin/expenses/expense/exp.1/change/"),
        ("/admin/expenses/expense/caf%C3%A9/change/", "/admin/expenses/expense/caf%C3%A9/change/"),
        ("/admin/expenses/expense/exp-1/history/", "/admin/expenses/expense/exp-1/history/"),
        ("/admin/orders/order/snapshot/", "/admin/orders/order/snapshot/"),
        ("/admin/password_change/", "/admin/password_change/"),
    ],
)
def test_sign_in_leads_to_a_page(client: Client, unchanged: Unchanged, leads: str, to: str) -> None:
    """X8: a link to the sign-in with an action as its `next` decides nothing, whether the person
    signs in or is signed in. Over plain HTTP other sites' links carry no session."""
    factories.expense("exp-1")
    factories.user(groups.APPROVER, username="ada", password="pass-of-ada")
    form = {"username": "ada", "password": "pass-of-ada"}
    with unchanged():
        answer = client.post("/admin/login/", {**form, "next": leads})
        assert (answer.status_code, answer["Location"]) == (302, to)
        assert client.cookies["sessionid"]["samesite"] == "Strict"
        answer = client.get("/admin/login/", {"next": leads})
        assert (answer.status_code, answer["Location"]) == (302, to)
        answer = client.post("/admin/login/", form, query_params={"next": leads})
        assert (answer.status_code, answer["Location"]) == (302, to)
    assert Expense.objects.get().state == State.CREATED


def test_an_approving_link_through_the_sign_in_decides_nothing(
    client: Client, unchanged: Unchanged
) -> None:
    """X8: the link that once approved an expense leads to the admin's index."""
    factories.expense("exp-1")
    factories.user(groups.APPROVER, username="ada", password="pass-of-ada")
    form = {"username": "ada", "password": "pass-of-ada"}
    with unchanged():
        link = "/admin/login/?next=/admin/../action%3Ftype%3Dapprove%26id%3Dexp-1"
        answer = client.post(link, form, follow=True)
    assert answer.redirect_chain == [(INDEX, 302)]
    assert answer.status_code == 200


@pytest.mark.parametrize("leads", ATTACKS)
def test_sign_out_leads_to_a_page(client: Client, unchanged: Unchanged, leads: str) -> None:
    """X8: the sign-out has a `next` too; in open mode that request would be anonymous."""
    factories.expense("exp-1")
    client.force_login(factories.user(groups.APPROVER))
    with unchanged():
        answer = client.post("/admin/logout/", {"next": leads})
    if answer.status_code == 302:
        assert answer["Location"] == INDEX
    assert "sessionid" not in client.cookies or client.cookies["sessionid"].value == ""


@pytest.mark.parametrize(
    "path",
    [
        "/admin/../action",
        "/admin/..",
        "/admin/./list",
        "/admin/expenses/expense/../../../action",
        "/admin/expenses/expense/../../../../action/",
        "/admin/expenses/\n/../../action",
    ],
)
def test_the_admin_redirects_to_no_dot_segments(client: Client, path: str) -> None:
    """X8: the admin appends slashes and forwards old addresses. It would redirect a path such as
    `/admin/..%2Faction` to one that the browser resolves."""
    client.force_login(factories.user(is_superuser=True))
    # The client would resolve the path itself.
    answer = client.generic("GET", "/", PATH_INFO=path)
    assert (answer.status_code, answer.headers.get("Location")) == (404, None)


# The part of the URL standard's parser that a `Location` of an http site uses.


def browsed(location: str, base: str = "http://testserver/admin/login/") -> tuple[str, str, str]:
    """The origin, path and query of a browser's request after a redirect to `location`."""
    url = location.strip("".join(map(chr, range(0x21))))
    url = re.sub("[\t\n\r]", "", url).partition("#")[0]
    here = urlsplit(base)
    origin = f"{here.scheme}://{here.netloc}"
    slashes = 2
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", url):
        url = url[scheme.end() :]
        if scheme[1].lower() not in ("http", "https"):
            return f"{scheme[1]}:", url, ""
        if scheme[1].lower() != here.scheme:
            origin, slashes = f"{scheme[1]}:", 0
    if authority := re.fullmatch(rf"[/\\]{{{slashes},}}([^/\\?]*)(.*)", url, re.S):
        origin, url = f"{origin.partition('//')[0]}//{authority[1]}", authority[2] or "/"
    path, _, query = url.partition("?")
    path = path.replace("\\", "/")
    if not path.startswith("/"):
        path = here.path.rpartition("/")[0] + "/" + path if path else here.path
    kept: list[str] = []
    segments = path.split("/")[1:]
    for number, segment in enumerate(segments):
        plain = re.sub("%2e", ".", segment, flags=re.I)
        last = number == len(segments) - 1
        if plain == "..":
            del kept[-1:]
        elif plain != ".":
            kept.append(segment)
        if plain in (".", "..") and last:
            kept.append("")
    return origin, "/" + "/".join(kept), query


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/admin/../action", "/action"),
        ("/admin/%2e%2E/x/./y/..", "/x/"),
        ("\\a\\..\\b", "/b"),
        ("x", "/admin/login/x"),
        ("", "/admin/login/"),
        (" /a\tb\n ", "/ab"),
        ("http:x", "/admin/login/x"),
        ("http:/x", "/x"),
        ("http:\\\\x/y", "/y"),
        ("https:x/y", "/y"),
        ("/%2e%2e%2faction", "/%2e%2e%2faction"),
    ],
)
def test_the_browser_model_resolves_addresses_as_the_url_standard_says(
    location: str, path: str
) -> None:
    """X8: on examples of the URL standard; the property below uses it."""
    assert browsed(location)[1] == path


PAGES = re.compile(
    r"list|admin:(index|app_list|password_change|orders_order_snapshot"
    r"|[a-z]+_[a-z]+_(changelist|change|add|history))"
)
PIECES = r"""/ \ . .. %2e %2E %252e %2f %2F %5c %255c %00 %09 %0a %3f %23 ; : @ & = ? # % + ~ _ //
list admin action create login logout expenses expense orders order auth user access token 1 exp-1
add change history delete snapshot password_change api v1 jobs http: https: javascript: testserver
elsewhere.example type=approve id=exp-1""".split()  # noqa: SIM905
targets = st.lists(
    st.sampled_from([*PIECES, "\t", "\n", "\r", " ", "\0", "\u202e", "\uff0e", "é"])
    | st.text(max_size=3)
).map("".join)


@settings(max_examples=1000)
@given(
    target=targets
    | st.text()
    | st.sampled_from(["/admin/", "/list"]).flatmap(
        lambda start: targets.map(lambda rest: start + rest)
    )
)
@example("/admin/../action?type=approve&id=exp-1")
@example("/list?q=1")
def test_no_target_leaves_the_pages(target: str) -> None:
    """X8: for any `next` the browser stays on this site and opens a page."""
    location = sign_in.page_at(target)
    if location is None:
        return
    assert location.isascii()
    assert location.isprintable()
    origin, path, _ = browsed(location)
    assert origin == "http://testserver"
    # Nothing is left for the browser to resolve, and the server decodes the path once.
    assert path == location.partition("?")[0]
    assert PAGES.fullmatch(resolve(unquote(path)).view_name)


def test_a_person_without_staff_rights_gets_the_form(client: Client) -> None:
    """X8: the admin's own redirect is no way around. Only a person who knows the password learns
    that the right is missing."""
    User.objects.create_user("visitor", password="pass-of-visitor")
    form = {"username": "visitor", "password": "pass-of-visitor", "next": "/list"}
    answer = client.post("/admin/login/", form)
    assert answer.status_code == 200
    assert "Ask an administrator for the staff status." in answer.content.decode()
    answer = client.post("/admin/login/", {**form, "password": "x"})
    assert "The user name or the password is wrong." in answer.content.decode()
    assert "_auth_user_id" not in client.session
