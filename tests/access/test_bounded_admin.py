"""The limits of what the address of an admin list may ask for."""

import re
from typing import Any

import pytest
from django.contrib import admin as site
from django.contrib.messages import get_messages
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from access import groups
from access.bounded_admin import BoundedAdmin, OwnFiltersList
from tests import factories

pytestmark = pytest.mark.django_db

EXPENSES = "/admin/expenses/expense/"
LISTS = {
    model._meta.label: reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    for model in site.site._registry
}


@pytest.fixture
def admin(client: Client) -> Client:
    client.force_login(factories.user(username="root", is_superuser=True))
    return client


def test_every_admin_is_bounded() -> None:
    """X11: also a list that is added later."""
    for model_admin in site.site._registry.values():
        assert isinstance(model_admin, BoundedAdmin), model_admin
        assert issubclass(model_admin.get_changelist(None), OwnFiltersList), model_admin  # type: ignore[arg-type]


@pytest.mark.parametrize("path", LISTS.values(), ids=LISTS)
def test_a_list_accepts_no_parameters_but_those_of_its_filters(admin: Client, path: str) -> None:
    """X11: no other lookup reaches the database."""
    for query in (
        "pk__regex=(a*)*b",
        "id__gt=0",
        "nothing=1",
        "expense_id__regex=(a%2B)%2B%24",
        "subject_id__icontains=e",
        "submitter__password__startswith=pbkdf2",
        "user__password__startswith=pbkdf2",
        "password__startswith=pbkdf2",
        "state__regex=.",
        "state__in=CREATED",
        "groups__user__password__startswith=a",
        "is_staff=1",
        "state__exact=CREATED%00&state__exact=%00",
        "o=" + ".".join(["1"] * 3000),
    ):
        with CaptureQueriesContext(connection) as queries:
            answer = admin.get(f"{path}?{query}")
        # Django refuses what crosses relations, before our list does.
        assert answer.status_code == 400 or answer.headers["Location"] == f"{path}?e=1", query
        assert not any("REGEXP" in each["sql"] or "pbkdf2" in each["sql"] for each in queries)
    assert admin.get(f"{path}?e=1").status_code == 200


@pytest.mark.parametrize("path", LISTS.values(), ids=LISTS)
def test_the_links_of_a_list_are_served(admin: Client, path: str) -> None:
    """X10: each link of the filters, the columns and the pages leads to a list."""
    factories.expense("exp-1")
    factories.order("ord-1")
    page = admin.get(path).content.decode()
    links = {link.replace("&amp;", "&") for link in re.findall(r'href="(\?[^"]*)"', page)}
    for link in links | {"?", "?p=1", "?q=a", "?o=1", "?o=-2.1", "?all="}:
        assert admin.get(path + link).status_code == 200, link
    filtered = {"/admin/expenses/expense/", "/admin/auth/user/", "/admin/approvals/auditentry/"}
    if path in filtered:
        assert any("__exact=" in link or "currency=" in link for link in links)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("_to_field=callback", 400),
        ("_to_field=expense_id", 200),
        ("_to_field=id", 200),
        ("_to_field=id&_popup=1", 200),
        ("_to_field=pk", 400),
        ("_to_field=approval", 400),
        ("_to_field=%00", 400),
        ("_popup=1", 200),
        ("_popup=&_popup=x", 200),
    ],
)
def test_a_record_is_named_by_its_primary_key_or_its_own_id(
    admin: Client, query: str, status: int
) -> None:
    """X11: on the list, on the form to add one and on its page; any other field is 400."""
    expense = factories.expense("exp-1")
    assert admin.get(f"{EXPENSES}?{query}").status_code == status
    assert admin.get(f"{EXPENSES}add/?{query}").status_code == status
    named = "exp-1" if "expense_id" in query else expense.pk
    assert admin.get(f"{EXPENSES}{named}/change/?{query}").status_code == status


@pytest.mark.parametrize("path", LISTS.values(), ids=LISTS)
def test_odd_addresses_cause_no_server_error(admin: Client, path: str) -> None:
    """X11: whatever a person types into the address."""
    factories.expense("exp-1")
    for query in (
        "_to_field=user",
        "_to_field=logentry",
        "_to_field=expense",
        "_facets=True",
        "p=0",
        "p=-1",
        "p=" + "9" * 5000,
        "p=x",
        "o=" + "9" * 5000,
        "o=-",
        "o=x.--3.99",
        "q=%00",
        "q=%FF%FE",
        "q=" + "%22" * 30,
        "q=" + "%5C" * 100,
        "all=1&p=9",
        "state__exact=" + "x" * 3000,
        "is_staff__exact=maybe",
        "groups__id__exact=" + "9" * 40,
        "groups__id__exact=x",
        "show=x",
        "e=1&nothing=1",
    ):
        assert admin.get(f"{path}?{query}").status_code in (200, 302, 400), query
    for key in ("%00", "x", "9" * 40, "_00", "a%2Fb"):
        assert admin.get(f"{path}{key}/change/?_changelist_filters=%00%26%3D").status_code < 500


def test_facets_are_neither_offered_nor_counted(admin: Client) -> None:
    """X11: they would count all rows once for each choice."""
    factories.expense("exp-1")
    admin.get(EXPENSES)  # stores the session once
    with CaptureQueriesContext(connection) as plain:
        assert b"_facets" not in admin.get(EXPENSES).content
    with CaptureQueriesContext(connection) as asked:
        assert admin.get(f"{EXPENSES}?_facets=True").status_code == 200
    assert len(asked) == len(plain)


@pytest.mark.parametrize("path", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("a b c d e", ""),
        ('a b c d "e f"', ""),
        ("x" * 200, ""),
        ("a b c d e f", "A search has at most 5 words; leave some out."),
        ("x" * 201, "A search has at most 200 characters; shorten it."),
        ("a " * 50_000, "A search has at most 200 characters; shorten it."),
    ],
    ids=lambda text: text[:12],
)
def test_a_search_beyond_its_limits_is_not_made_and_says_why(
    admin: Client, path: str, search: str, said: str
) -> None:
    """X11: each word costs one more comparison with every row."""
    with CaptureQueriesContext(connection) as queries:
        answer = admin.get(path, {"q": search})
    assert answer.status_code == 200
    assert [str(message) for message in get_messages(answer.wsgi_request)] == (
        [said] if said else []
    )
    searches = [each["sql"] for each in queries if search[:20] in each["sql"]]
    assert not (said and searches)


@pytest.mark.parametrize(
    ("search", "shown"),
    [
        ("exp one two three four five six", "exp one two three four five six</td>"),
        ("x" * 200, "No expense ID contains"),
        ("x" * 201, "A search has at most 200 characters; shorten it."),
    ],
    ids=lambda text: text[:12],
)
def test_the_list_page_searches_for_at_most_200_characters(
    admin: Client, search: str, shown: str
) -> None:
    """E2, X11: an id with spaces counts as one word, since it is compared as a whole."""
    factories.expense("exp one two three four five six")
    assert shown in admin.get("/list", {"q": search}).content.decode()


def test_the_search_for_pages_answers_404_beyond_its_last_page(admin: Client) -> None:
    """X11: Unfold's own search fails there."""
    assert admin.get("/admin/search/?s=exp").status_code == 200
    for page in ("2", "0", "x", "9" * 5000, ""):
        assert admin.get(f"/admin/search/?s=exp&page={page}").status_code == 404


def test_autocomplete_finds_nothing_beyond_the_limits_of_a_search(client: Client) -> None:
    """X11: the rule of the lists holds here too."""
    client.force_login(factories.user(groups.AUDITOR))
    field: dict[str, Any] = {
        "app_label": "expenses",
        "model_name": "ledgerentry",
        "field_name": "expense",
    }
    factories.expense("exp-1")
    assert len(client.get("/admin/autocomplete/", {**field, "term": "exp"}).json()["results"]) == 1
    many = client.get("/admin/autocomplete/", {**field, "term": "e x p - 1 e"})
    assert many.json()["results"] == []
