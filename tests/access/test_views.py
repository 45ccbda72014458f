"""The actor of a REST view at the root and under `/api/v1/`, in each access mode."""

from typing import Any

import pytest
from django.test import Client
from django.urls import path
from rest_framework.request import Request
from rest_framework.response import Response

from access import groups
from access.views import ActorView
from tests import factories

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

ROOT, V1 = "/asked", "/api/v1/asked"
METHODS = ("GET", "POST")


class Asked(ActorView):
    """Says who asked."""

    def get(self, request: Request) -> Response:
        local = self.actor.user is None
        return Response([self.actor.name, local, self.actor.may("expenses.decide_expense")])

    post = get


urlpatterns = [path("asked", Asked.as_view(at_root=True)), path("api/v1/asked", Asked.as_view())]


def refused(response: Any, status: int) -> str:
    """The detail of a refusal; asserts that it is whole, and that the view did not run."""
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    if status == 401:
        assert response.headers["WWW-Authenticate"] == "Bearer"
    problem = response.json()
    assert problem["status"] == status
    return str(problem["detail"])


@pytest.fixture
def elsewhere() -> dict[str, Any]:
    return {"REMOTE_ADDR": "192.0.2.1"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", [ROOT, V1])
@pytest.mark.parametrize("header", [None, "Bearer nonsense", "Bearer \xe9", "Basic eA=="])
def test_without_a_valid_token_the_view_does_not_run(
    client: Client, place: str, method: str, header: str | None
) -> None:
    """X8: the answer is 401 and names the scheme."""
    headers = {"Authorization": header} if header else {}
    detail = refused(client.generic(method, place, headers=headers), 401)
    if header == "Bearer nonsense":
        assert detail == "The token is unknown or has expired; ask for a new one."


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", [ROOT, V1])
def test_a_token_acts_with_its_users_rights(client: Client, place: str, method: str) -> None:
    """X8: at the root and under /api/v1/."""
    for group, may in ((groups.APPROVER, True), (groups.EMPLOYEE, False)):
        person = factories.user(group)
        response = client.generic(method, place, headers=factories.bearer(person))
        assert response.json() == [person.username, False, may]


def test_a_session_only_reads_at_the_root(client: Client) -> None:
    """X8: no CSRF token guards a session at the root. Under /api/v1/ one does."""
    person = factories.user(groups.APPROVER)
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(person)
    for place in (ROOT, V1):
        assert browser.get(place).json() == [person.username, False, True]
        assert browser.head(place).status_code == 200
    browser.cookies["csrftoken"] = "a" * 32
    for headers, status in (({}, 403), ({"X-CSRFToken": "a" * 32}, 200)):
        body = {"content_type": "application/json", "headers": headers}
        refused(browser.post(ROOT, {}, **body), 401)
        assert browser.post(V1, {}, **body).status_code == status


@pytest.mark.parametrize("method", METHODS)
def test_open_mode_serves_this_machine_at_the_root_only(
    local: Client, elsewhere: dict[str, Any], method: str
) -> None:
    """X8: no other machine, and nothing under /api/v1/, without a sign-in."""
    assert local.generic(method, ROOT).json() == ["local", True, True]
    refused(local.generic(method, V1), 401)
    refused(local.generic(method, ROOT, **elsewhere), 401)
    refused(local.generic(method, ROOT, headers={"X-Forwarded-For": "127.0.0.1"}), 401)


def test_in_open_mode_a_token_has_only_its_users_rights(
    local: Client, elsewhere: dict[str, Any]
) -> None:
    """X3, X8: from any machine; a bad token is refused."""
    person = factories.user(groups.EMPLOYEE)
    for where in ({}, elsewhere):
        response = local.post(ROOT, headers=factories.bearer(person), **where)
        assert response.json() == [person.username, False, False]
    refused(local.post(ROOT, headers={"Authorization": "Bearer x"}), 401)


@pytest.mark.parametrize("method", METHODS)
def test_open_mode_answers_400_to_a_host_that_the_site_does_not_serve(
    local: Client, method: str
) -> None:
    """X8: a name that is rebound to this machine gets no access."""
    refused(local.generic(method, ROOT, HTTP_HOST="evil.example"), 400)


@pytest.mark.parametrize("method", METHODS)
def test_off_mode_answers_404_at_the_root_only(client: Client, settings: Any, method: str) -> None:
    """X8: /api/v1/ still answers."""
    settings.EXPENSES_PROTOCOL_ACCESS = "off"
    headers = factories.bearer(factories.user(is_superuser=True))
    assert "/api/v1/" in refused(client.generic(method, ROOT, headers=headers), 404)
    refused(client.generic(method, ROOT), 404)
    assert client.generic(method, V1, headers=headers).status_code == 200


@pytest.mark.parametrize("mode", ["open", "token"])
@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Sec-Purpose", "prefetch"),
    ],
)
def test_other_sites_and_prefetches_change_nothing_at_the_root(
    local: Client, settings: Any, mode: str, header: str, value: str
) -> None:
    """X8: even with a superuser's token; reading is allowed."""
    settings.EXPENSES_PROTOCOL_ACCESS = mode
    headers = {header: value}
    signed_in = headers | factories.bearer(factories.user(is_superuser=True))
    for asked in (headers, signed_in):
        for method in ("POST", "PUT", "DELETE"):
            refused(local.generic(method, ROOT, headers=asked), 403)
    assert local.get(ROOT, headers=signed_in).status_code == 200
