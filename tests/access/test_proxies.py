"""Behind a reverse proxy: whose word counts for scheme, host and client address."""

import ipaddress
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from access import groups, proxies
from expenses.models import Expense, State
from tests import factories
from tests.conftest import Unchanged

PROXY = "10.1.2.3"
FORWARDED = {
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "expenses.example",
    "X-Forwarded-For": "192.0.2.7",
}


@pytest.fixture(autouse=True)
def behind_a_proxy(settings: Any) -> None:
    settings.TRUSTED_PROXIES = [
        ipaddress.ip_network("10.1.0.0/16"),
        ipaddress.ip_network("2001:db8::1"),
    ]
    settings.ALLOWED_HOSTS = ["expenses.example", "inside.example"]


def seen(peer: str, **headers: str) -> tuple[str, str, str]:
    """Scheme, host and client address that the site sees of a request from `peer`."""
    found: list[HttpRequest] = []

    def site(request: HttpRequest) -> HttpResponse:
        found.append(request)
        return HttpResponse()

    request = RequestFactory(SERVER_NAME="inside.example").get(
        "/", headers=headers, REMOTE_ADDR=peer
    )
    proxies.Middleware(site)(request)
    return found[0].scheme, found[0].get_host(), found[0].META["REMOTE_ADDR"]


@pytest.mark.parametrize("peer", [PROXY, f"::ffff:{PROXY}", "2001:db8::1"])
def test_a_request_through_a_trusted_proxy_shows_the_client(peer: str) -> None:
    """X8: for redirects, links, the origin check and the throttle."""
    assert seen(peer, **FORWARDED) == ("https", "expenses.example", "192.0.2.7")


@pytest.mark.parametrize("peer", ["10.2.0.1", "192.0.2.7", "127.0.0.1", "", "unix:", "2001:db8::2"])
def test_forwarding_headers_of_other_peers_are_ignored(peer: str) -> None:
    """X8: a client that reaches the site itself cannot choose its address, host or scheme."""
    assert seen(peer, **FORWARDED) == ("http", "inside.example", peer)


def test_nobody_is_trusted_by_default(settings: Any) -> None:
    """X8: a laptop has no proxy."""
    settings.TRUSTED_PROXIES = []
    assert seen(PROXY, **FORWARDED) == ("http", "inside.example", PROXY)


@pytest.mark.parametrize(
    ("hops", "values", "client"),
    [
        (1, "192.0.2.7", "192.0.2.7"),
        (1, "6.6.6.6, 192.0.2.7", "192.0.2.7"),
        (1, "no address at all,192.0.2.7", "192.0.2.7"),
        (2, "6.6.6.6, 192.0.2.7, 10.1.0.9", "192.0.2.7"),
        (2, "192.0.2.7", "192.0.2.7"),
        (1, " 2001:db8::7 ", "2001:db8::7"),
        (1, "::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_only_values_that_our_proxies_appended_are_read(
    settings: Any, hops: int, values: str, client: str
) -> None:
    """X8: the values of the client are further left, and are not read."""
    settings.PROXY_HOPS = hops
    assert seen(PROXY, **{"X-Forwarded-For": values})[2] == client


def test_scheme_and_host_are_read_by_the_same_rule_as_the_address(settings: Any) -> None:
    """X8: so a client cannot choose them behind a proxy that appends."""
    appended = {
        "X-Forwarded-Proto": "gopher, HTTPS",
        "X-Forwarded-Host": "elsewhere.example, expenses.example",
    }
    assert seen(PROXY, **appended) == ("https", "expenses.example", PROXY)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Forwarded-For", "unknown"),
        ("X-Forwarded-For", "192.0.2.7, "),
        ("X-Forwarded-For", ""),
        ("X-Forwarded-For", "192.0.2.7:4711"),
        ("X-Forwarded-Proto", "ftp"),
        ("X-Forwarded-Proto", ""),
        ("X-Forwarded-Host", "elsewhere.example"),
        ("X-Forwarded-Host", "a b"),
    ],
)
def test_unreadable_headers_of_a_trusted_proxy_are_answered_400(
    client: Client, db: None, unchanged: Unchanged, header: str, value: str
) -> None:
    """X8: so a mistake in our own proxy shows at once."""
    headers = {**FORWARDED, header: value}
    with unchanged():
        answer = client.get("/admin/login/", headers=headers, REMOTE_ADDR=PROXY)
    assert answer.status_code == 400


@pytest.mark.django_db
def test_absolute_links_of_the_api_are_https(client: Client) -> None:
    """E12: a program that follows `next` and `Location` stays on HTTPS."""
    submitter = factories.user(groups.EMPLOYEE)
    for name in ("exp-1", "exp-2"):
        factories.expense(name, submitter=submitter)
    answer = client.get(
        "/api/v1/expenses/?page_size=1",
        headers={**FORWARDED, **factories.bearer(submitter)},
        REMOTE_ADDR=PROXY,
    )
    assert answer.json()["next"].startswith("https://expenses.example/api/v1/expenses/?cursor=")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://expenses.example", 302), ("http://expenses.example", 403), ("null", 403)],
)
def test_the_origin_check_compares_https_with_https(origin: str, status: int) -> None:
    """X8: without CSRF_TRUSTED_ORIGINS, a form of the site is served and another site's is not."""
    factories.expense("exp-1")
    browser = Client(enforce_csrf_checks=True, headers=FORWARDED, REMOTE_ADDR=PROXY)
    browser.force_login(factories.user(groups.APPROVER))
    browser.get("/list")
    form = {
        "id": "exp-1",
        "type": "approve",
        "csrfmiddlewaretoken": browser.cookies["csrftoken"].value,
    }
    answer = browser.post("/decide", form, headers={**FORWARDED, "Origin": origin})
    assert answer.status_code == status
    decided = State.APPROVED if status == 302 else State.CREATED
    assert Expense.objects.get().state == decided


@pytest.mark.parametrize("claimed", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("peer", ["127.0.0.1", PROXY])
@pytest.mark.django_db
def test_open_access_refuses_what_a_trusted_proxy_passes_on(
    settings: Any, client: Client, unchanged: Unchanged, peer: str, claimed: str
) -> None:
    """X8: no proxy, trusted or not, turns a stranger into the person at the local machine."""
    settings.EXPENSES_PROTOCOL_ACCESS = "open"
    settings.ALLOWED_HOSTS = ["localhost"]
    settings.TRUSTED_PROXIES = [ipaddress.ip_network(address) for address in ("127.0.0.1", PROXY)]
    for headers in (
        {"X-Forwarded-For": claimed},
        {"X-Forwarded-For": claimed, "X-Forwarded-Host": "localhost", "X-Forwarded-Proto": "http"},
        {"X-Forwarded-Host": "localhost"},
        {"X-Forwarded-Proto": "http"},
    ):
        with unchanged():
            answer = client.get(
                "/create?id=new&is_api_call=true",
                headers={"Host": "localhost", **headers},
                REMOTE_ADDR=peer,
            )
        assert answer.status_code == 401


@pytest.mark.django_db
def test_hsts_is_sent_over_https_only(settings: Any) -> None:
    """X8: browsers ignore the header over plain HTTP."""
    settings.SECURE_HSTS_SECONDS = 3600
    client = Client(REMOTE_ADDR=PROXY)
    secure = client.get("/admin/login/", headers=FORWARDED)
    assert secure.headers["Strict-Transport-Security"] == "max-age=3600"
    assert secure.status_code == 200
    plain = client.get("/admin/login/", headers={**FORWARDED, "X-Forwarded-Proto": "http"})
    assert "Strict-Transport-Security" not in plain.headers
