"""Odd values of every parameter of each GET route: none makes the site fail."""

import base64
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from django.contrib import admin as site
from django.test import Client
from django.urls import reverse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import factories

pytestmark = pytest.mark.django_db

PARAMETERS = {
    "/list": ["q", "after"],
    "/status": ["id"],
    "/api/v1/expenses/": ["state", "expense_id", "cursor", "page_size"],
    "/api/v1/payments/": ["cursor", "page_size"],
    "/api/v1/expenses/exp-1/audit/": ["cursor", "page_size"],
    "/api/v1/orders": ["status", "before"],
    "/orders": ["status", "before"],
    "/admin/search/": ["s", "page"],
    "/admin/login/": ["next"],
    "/admin/expenses/expense/add/": ["_popup", "_to_field", "amount", "incurred_on"],
}
LISTS = [
    (
        reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"),
        ["q", "p", "o", "all", "e", "_to_field", "_popup", "state__exact", "show"],
    )
    for model in site.site._registry
]
DATES = [
    f"{day}T{time}{zone}"
    for day, time in (("0001-01-01", "00:00:00"), ("9999-12-31", "23:59:59.999999"))
    for zone in ("", "Z", "+00:00", "+14:00", "-14:00", "+23:59", "-23:59")
] + ["0000-00-00", "10000-01-01T00:00:00Z", "-0001-01-01T00:00:00Z", "2026-02-30", "now"]


def cursor(position: str, **more: str) -> str:
    return base64.b64encode(urlencode({"p": position, **more}).encode()).decode()


ODD = [
    *("", "0", "-1", "9" * 30, "9" * 5000, "1e999", "NaN", "\0", "a\0b", "\ud7ff", "\ufffe"),
    *("'", '"', "\\", "%", "_", "[", "(a*)*b", "{}", "null", "true", "1.1", "-1.-2", "callback"),
    *DATES,
    *map(cursor, DATES),
    *(cursor("2026-01-01T00:00:00Z", o="9" * 5000), cursor("2026-01-01T00:00:00Z", r="9" * 5000)),
    *(cursor("\0"), cursor("x"), cursor("2026-01-01T00:00:00Z", r="x")),
]
VALUES = (
    st.sampled_from(ODD) | st.text(max_size=30) | st.datetimes().map(lambda at: cursor(str(at)))
)


@pytest.fixture
def asker(db: None) -> Iterator[Client]:
    """The client of a person who sees everything, on a site with some records."""
    root = factories.user(username="root", is_superuser=True)
    factories.expense("exp-1", factories.State.COMPLETED)
    factories.order("ord-1")
    client = Client(raise_request_exception=False, headers=factories.bearer(root))
    client.force_login(root)
    return client


@pytest.mark.parametrize("path", PARAMETERS)
def test_no_value_of_a_parameter_is_a_500(asker: Client, path: str) -> None:
    """X11: dates outside UTC, endless numbers, NUL, broken cursors."""
    for name in PARAMETERS[path]:
        for value in ODD:
            answer = asker.get(path, {name: value})
            assert answer.status_code < 500, (name, value)


@given(data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_address_is_a_500(asker: Client, data: st.DataObject) -> None:
    """X11: several parameters at once, with any names and values."""
    path, known = data.draw(st.sampled_from([*PARAMETERS.items(), *LISTS]))
    names = st.sampled_from(known) | st.text(max_size=12)
    query = data.draw(st.dictionaries(names, VALUES, max_size=4))
    assert asker.get(path, query).status_code < 500


@pytest.mark.parametrize(
    ("position", "status"),
    [
        ("2026-01-02 03:04:05+00:00", 200),
        ("2026-01-02T03:04:05", 200),
        ("0001-01-01T00:00:00Z", 200),
        ("0001-01-01T00:00:00+00:01", 404),
        ("9999-12-31T23:59:59.999999Z", 200),
        ("9999-12-31T23:59:59-00:01", 404),
        ("2026-02-30T00:00:00Z", 404),
        ("x", 404),
        ("", 404),
    ],
)
@pytest.mark.parametrize("path", ["expenses/", "payments/", "expenses/exp-1/audit/"])
def test_a_cursor_that_is_no_time_is_not_found(
    asker: Client, path: str, position: str, status: int
) -> None:
    """E12: the database cannot compare it with the rows."""
    answer = asker.get(f"/api/v1/{path}", {"cursor": cursor(position)})
    assert answer.status_code == status


@pytest.mark.parametrize("key", ["%00", "a%00b", "9" * 40, "%FF", "x" * 3000, "_00", "..%2F"])
def test_an_odd_id_of_a_record_is_no_500(asker: Client, key: str) -> None:
    """X11: an id that no database can compare or store."""
    paths = [f"/orders/{key}", f"/orders/{key}/status", f"/payments/{key}", f"/status?id={key}"]
    paths += [f"/api/v1/expenses/{key}/", f"/api/v1/orders/{key}/audit", f"/admin/r/{key}/{key}/"]
    paths += [
        f"{path}{key}/{page}/" for path, _ in LISTS for page in ("change", "delete", "history")
    ]
    paths += [
        f"/admin/auth/user/{key}/password/",
        f"/admin/expenses/expense/{key}/change/?_to_field=expense_id",
    ]
    for path in paths:
        assert asker.get(path).status_code < 500, path
