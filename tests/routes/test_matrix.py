"""Who may use each route: a table, compared with the URL configuration and with the answers."""

import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
from django.db import transaction
from django.http import HttpResponse
from django.urls import URLPattern, URLResolver, get_resolver

from access import groups
from approvals.models import AuditEntry
from tests import factories
from tests.routes import people
from tests.routes.people import ANONYMOUS, NOBODY, ROLES, ROOT, Records
from worker import contracts

# A request that is let through to Temporal fails at once.
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_temporal")]

Roles = tuple[str, ...]
EVERYBODY: Final = ROLES
SIGNED_IN: Final = tuple(role for role in ROLES if role != ANONYMOUS)
NONE: Final[Roles] = ()
ADMIN: Final = (ROOT,)
APPROVERS: Final = (groups.APPROVER, ROOT)
EMPLOYEES: Final = (groups.EMPLOYEE, ROOT)
OPERATORS: Final = (groups.OPERATOR, ROOT)
CARRIERS: Final = (groups.WORKER, ROOT)
LEDGER: Final = (groups.FINANCE, groups.AUDITOR, ROOT)
STOCK: Final = (groups.FINANCE, groups.AUDITOR, groups.OPERATOR, ROOT)
DELIVERY: Final = (groups.OPERATOR, groups.AUDITOR, ROOT)
# These roles see all expenses and orders. The worker has no expenses in the admin.
DESK: Final = (groups.APPROVER, groups.FINANCE, groups.AUDITOR, groups.OPERATOR, ROOT)
SEE_ALL: Final = (*DESK, groups.WORKER)

# Who is served, by GET and by POST. Everybody else is refused and changes nothing. The records that
# a route leads to are another person's. The query is part of the row, not of the route.
Row = tuple[Roles, Roles]
ORDERS: Final[dict[str, Row]] = {
    "orders": (SIGNED_IN, (groups.EMPLOYEE, groups.WORKER, ROOT)),
    "orders/<ref>": (SEE_ALL, NONE),
    "orders/<ref>/status": (SEE_ALL, NONE),
    "orders/<ref>/audit": (SEE_ALL, NONE),
    "orders/<ref>/<verb>": (NONE, APPROVERS),
    "orders/<ref>/cancel": (NONE, OPERATORS),
    "orders/<ref>/retry": (NONE, OPERATORS),
    "inventory": (STOCK, NONE),
    "warehouse": (STOCK, NONE),
    "engine/snapshot": (STOCK, NONE),
    "jobs": (NONE, (groups.OPERATOR, groups.WORKER, ROOT)),
    "jobs/<job_id>": (SEE_ALL, NONE),
}
TABLE: Final[dict[str, Row]] = {
    "health": (EVERYBODY, NONE),
    "readyz": (EVERYBODY, NONE),
    "metrics": (DELIVERY, NONE),
    ".well-known/security.txt": (EVERYBODY, NONE),
    # The plain protocol and its pages.
    "": (SIGNED_IN, NONE),
    "list": (SIGNED_IN, NONE),
    "decide": (NONE, APPROVERS),
    "carry": (NONE, CARRIERS),
    "create?id=new&is_api_call=true": (CARRIERS, NONE),
    "action?type=approve&id=theirs&is_api_call=true": (APPROVERS, NONE),
    "action?type=payment&id=approved&is_api_call=true": (CARRIERS, NONE),
    "status?id=theirs": (SEE_ALL, NONE),
    "registerCallback?id=theirs": (NONE, CARRIERS),
    # Orders and jobs, at the root and under /api/v1/ alike.
    **ORDERS,
    **{f"api/v1/{route}": row for route, row in ORDERS.items()},
    "payments/<charge_id>": (STOCK, NONE),
    "api/v1/charges": (STOCK, NONE),
    "api/v1/charges/<charge_id>": (STOCK, NONE),
    "orders/<ref>/steps/<step>": (NONE, CARRIERS),
    # Expenses.
    "api/v1/expenses": (SIGNED_IN, EMPLOYEES),
    "api/v1/expenses/<ref>": (SEE_ALL, NONE),
    "api/v1/expenses/<ref>/<verb>": (NONE, APPROVERS),
    "api/v1/expenses/<ref>/audit": (SEE_ALL, NONE),
    "api/v1/payments": (LEDGER, NONE),
    # Approvals of every kind.
    "api/v1/approvals": (SIGNED_IN, NONE),
    "api/v1/approvals/<ref>": (SEE_ALL, NONE),
    "api/v1/approvals/<ref>/<verb>": (NONE, APPROVERS),
    "api/v1/approvals/<ref>/audit": (SEE_ALL, NONE),
    "api/v1/": (NONE, NONE),
    # The admin's own pages.
    people.DOTS: (NONE, NONE),
    "admin/": (SIGNED_IN, SIGNED_IN),
    "admin/login/": ((ANONYMOUS,), EVERYBODY),
    "admin/logout/": (NONE, EVERYBODY),
    "admin/search/": (SIGNED_IN, SIGNED_IN),
    "admin/password_change/": (SIGNED_IN, SIGNED_IN),
    "admin/password_change/done/": (SIGNED_IN, NONE),
    "admin/autocomplete/": (NONE, NONE),
    "admin/jsi18n/": (SIGNED_IN, NONE),
    "admin/r/<path:content_type_id>/<path:object_id>/": (NONE, NONE),
    "admin/<app_label>/": ((*DESK, groups.EMPLOYEE), (*DESK, groups.EMPLOYEE)),
    "admin/<url>": (NONE, NONE),
    "admin/auth/user/<id>/password/": (ADMIN, ADMIN),
    "admin/orders/order/snapshot/": (STOCK, STOCK),
}
# For each model in the admin: who has the list, sees another person's record, adds and changes one.
MODELS: Final[dict[str, tuple[Roles, Roles, Roles, Roles]]] = {
    "auth/user": (ADMIN, ADMIN, ADMIN, ADMIN),
    "auth/group": (ADMIN, ADMIN, ADMIN, ADMIN),
    "outbox/message": (DELIVERY, DELIVERY, NONE, NONE),
    "approvals/approval": (APPROVERS, APPROVERS, NONE, NONE),
    "approvals/auditentry": ((groups.AUDITOR, ROOT), (groups.AUDITOR, ROOT), NONE, NONE),
    "expenses/expense": ((*DESK, groups.EMPLOYEE), DESK, EMPLOYEES, NONE),
    "expenses/ledgerentry": (LEDGER, LEDGER, NONE, NONE),
    # Everybody sees their own tokens; another person's token is not found.
    "access/token": (SIGNED_IN, ADMIN, NONE, NONE),
    "orders/order": ((*SEE_ALL, groups.EMPLOYEE), SEE_ALL, NONE, NONE),
    "orders/stockitem": (STOCK, STOCK, OPERATORS, OPERATORS),
    "orders/charge": (STOCK, STOCK, NONE, NONE),
    "orders/warehouserecord": (STOCK, STOCK, NONE, NONE),
}
DELETED: Final = ("auth/user", "auth/group", "access/token")
for model, (listed, seen, added, changed) in MODELS.items():
    one = f"admin/{model}/<path:object_id>/"
    TABLE[f"admin/{model}/"] = (listed, listed)
    TABLE[f"admin/{model}/add/"] = (added, added)
    TABLE[f"{one}change/"] = (seen, changed)
    TABLE[f"{one}history/"] = (seen, seen)
    TABLE[f"{one}delete/"] = (ADMIN, ADMIN) if model in DELETED else (NONE, NONE)
    # Redirects to the page of the change.
    TABLE[one] = (SIGNED_IN, SIGNED_IN)


def routes(patterns: list[Any], before: str = "") -> Iterator[str]:
    """Yield each route of the URL configuration, with `<name>` for a group of an expression."""
    for pattern in patterns:
        here = before + _plain(str(pattern.pattern))
        if isinstance(pattern, URLResolver):
            yield from routes(pattern.url_patterns, here)
        else:
            assert isinstance(pattern, URLPattern)
            yield here


def _plain(pattern: str) -> str:
    named = re.sub(r"\(\?P<(\w+)>(?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", r"<\1>", pattern)
    return named.replace("/?$", "").strip("^$")


def test_every_route_has_a_row() -> None:
    """X8, X10: a route without a row in the table is found here."""
    configured = {
        route
        for route in routes(get_resolver().url_patterns)
        # A kind of request that only the tests have.
        if not route.startswith("admin/leave/")
    }
    rows = {route if route == people.DOTS else route.partition("?")[0] for route in TABLE}
    assert configured == rows


def is_page(route: str) -> bool:
    """Whether people use the route with a browser and a session."""
    return route.startswith("admin/") or route in ("", "list", "decide", "carry")


BODIES: Final[dict[str, dict[str, str]]] = {
    "decide": {"id": "theirs", "type": "approve"},
    "carry": {"id": "approved", "type": "payment"},
    "registerCallback?id=theirs": {"task_token": "00", "workflow_id": "expense_theirs"},
}


def ask(client: Any, method: str, route: str, there: Records) -> HttpResponse:
    """Send the request. If it is served, roll its changes back."""
    headers = {}
    if "/steps/" in route:
        headers["Idempotency-Key"] = contracts.idempotency_key(there.order.workflow_id)
    form = is_page(route) or route.startswith("registerCallback")
    body: dict[str, Any] = {"data": BODIES.get(route, {})} if form else {"data": {}}
    if method in ("GET", "HEAD"):
        body = {}
    elif not form or method != "POST":
        body["content_type"] = "application/json"
    point = transaction.savepoint()
    response: HttpResponse = getattr(client, method.lower())(
        there.path(route), headers=headers, **body
    )
    if not is_refused(response):
        transaction.savepoint_rollback(point)
    return response


def is_refused(response: HttpResponse) -> bool:
    """Whether access is refused. For a record that is not found the admin shows its first page."""
    leads = response.headers.get("Location", "")
    return (
        response.status_code in (401, 403, 404, 405)
        or leads.startswith("/admin/login/")
        or leads == "/admin/"
        or response.content == b"ERROR:INVALID_ID"
    )


@pytest.mark.parametrize("role", ROLES)
def test_role_is_served_as_the_table_says_and_else_changes_nothing(role: str) -> None:
    """X3, X8, X10: each role, by GET and by POST, on each route, is served or refused, and a
    refusal changes nothing. The only server error is the 503 while Temporal is down."""
    there = people.records()
    user = people.person(role)
    before = factories.records()
    wrong = []
    for route, row in TABLE.items():
        for method, allowed in zip(("GET", "POST"), row, strict=True):
            # A new client for each request, since one of them signs out.
            client = people.browser(user) if is_page(route) else people.program(user)
            response = ask(client, method, route, there)
            assert response.status_code < 500 or response.status_code == 503, f"{method} /{route}"
            if is_refused(response) == (role in allowed):
                wrong.append(f"{method} /{route}: {response.status_code}")
    assert wrong == []
    assert factories.records() == before


@pytest.mark.parametrize("role", [ANONYMOUS, NOBODY, ROOT])
@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_change_nothing(method: str, role: str) -> None:
    """X8: no other method changes anything or is a server error, whoever uses it."""
    there = people.records()
    user = people.person(role)
    browser, program = people.browser(user), people.program(user)
    before, last = factories.records(), AuditEntry.objects.count()
    for route in TABLE:
        response = ask(browser if is_page(route) else program, method, route, there)
        assert response.status_code < 500 or response.status_code == 503, f"{method} /{route}"
        if method in ("PUT", "PATCH", "DELETE") and not route.startswith("admin/"):
            assert is_refused(response), f"{method} /{route}: {response.status_code}"
    assert factories.records() == before
    assert AuditEntry.objects.count() == last
