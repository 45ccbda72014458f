"""The plain endpoints in each mode of EXPENSES_PROTOCOL_ACCESS."""

from typing import Any

import pytest
from django.core import checks
from django.test import Client

from access import groups
from expenses.models import Expense
from tests import factories
from tests.conftest import Unchanged

pytestmark = pytest.mark.django_db

CREATE = "/create?id=new&is_api_call=true"
APPROVE = "/action?type=approve&id=exp-1"
DECISION = {"id": "exp-1", "type": "approve"}
FORBIDDEN = b"ERROR:FORBIDDEN"
FORWARDING = [
    *("Forwarded", "Via", "X-Real-IP", "True-Client-IP", "CF-Connecting-IP"),
    *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port"),
    *("X-Forwarded-Scheme", "X-Forwarded-Ssl", "X-Forwarded-Prefix", "X-Original-Forwarded-For"),
]


@pytest.fixture
def worker() -> dict[str, str]:
    return factories.bearer(factories.user(groups.WORKER))


# Mode token


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "\xe9", "Basic d29ya2VyOng=", "Bearer", "Bearer nonsense", "Bearer two words"),
        *("Bearer \xe9\xff", "Bearer " + "a" * 5000),
    ],
    ids=lambda header: ascii(header)[:20],
)
def test_without_a_valid_token_nothing_is_read_or_changed(
    client: Client, unchanged: Unchanged, header: str | None
) -> None:
    """X8: programs get 401, people a page with status 401."""
    factories.expense()
    headers = {} if header is None else {"Authorization": header}
    with unchanged():
        for path in (CREATE, f"{APPROVE}&is_api_call=true", "/status?id=exp-1"):
            response = client.get(path, headers=headers)
            assert (response.status_code, response.content) == (401, FORBIDDEN)
            assert response.headers["WWW-Authenticate"] == "Bearer"
        for page in ("/list", "/create?id=new"):
            response = client.get(page, headers=headers)
            assert (response.status_code, b"Sign in first." in response.content) == (401, True)
            assert b"exp-1" not in response.content
        assert client.post("/decide", DECISION, headers=headers).status_code == 401


@pytest.mark.parametrize("fault", ["expired", "revoked", "inactive"])
def test_a_token_that_has_ended_changes_nothing(
    client: Client, unchanged: Unchanged, fault: str
) -> None:
    """X8: it expired, was revoked, or its user is no longer active."""
    person = factories.user(groups.WORKER, is_active=fault != "inactive")
    token = factories.token(person, days=-1 if fault == "expired" else 1)
    if fault == "revoked":
        person.auth_token_set.all().delete()
    with unchanged():
        response = client.get(CREATE, headers={"Authorization": f"Bearer {token}"})
    assert (response.status_code, response.content) == (401, FORBIDDEN)


def test_a_valid_token_creates_an_expense(client: Client, worker: dict[str, str]) -> None:
    """X8: it acts with its user's rights."""
    response = client.get(CREATE, headers=worker)
    assert (response.status_code, response.content) == (200, b"SUCCEED")
    assert Expense.objects.get().expense_id == "new"


def test_a_session_reads_the_page_only(client: Client, unchanged: Unchanged) -> None:
    """X8: API mode ignores a session. The page accepts it until its user is deactivated."""
    person = factories.user(is_superuser=True)
    client.force_login(person)
    factories.expense()
    with unchanged():
        for path in (CREATE, "/status?id=exp-1"):
            assert client.get(path).status_code == 401
        assert client.post("/registerCallback?id=exp-1", {"task_token": "00"}).status_code == 401
    assert b"exp-1" in client.get("/list").content
    person.is_active = False
    person.save()
    with unchanged():
        assert client.get("/list").status_code == 401
        assert client.get(APPROVE).status_code == 401


# Mode open


@pytest.mark.parametrize("host", ["localhost", "localhost:8099", "127.0.0.1", "127.0.0.1:8099"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1"])
def test_open_mode_serves_this_machine_without_a_sign_in(
    local: Client, host: str, peer: str
) -> None:
    """X8: by each of its names and addresses."""
    response = local.get(CREATE, headers={"Host": host}, REMOTE_ADDR=peer)
    assert response.content == b"SUCCEED"
    assert local.get("/list", headers={"Host": host}, REMOTE_ADDR=peer).status_code == 200


@pytest.mark.parametrize(
    "elsewhere",
    [
        *({"REMOTE_ADDR": peer} for peer in ("192.0.2.1", "10.0.0.1", "2001:db8::1", "", "unix")),
        *({"REMOTE_ADDR": peer} for peer in ("::ffff:192.0.2.1", "127.0.0.1.example")),
        *({"HTTP_HOST": host} for host in ("expenses.example", "localhost.example", "[::1]:8099")),
        *({"headers": {name: value}} for name in FORWARDING for value in ("127.0.0.1", "")),
    ],
    ids=str,
)
def test_open_mode_refuses_anonymous_requests_from_elsewhere(
    local: Client, settings: Any, unchanged: Unchanged, elsewhere: dict[str, Any]
) -> None:
    """X8: from another machine, for another host name (rebinding), or through a proxy."""
    settings.ALLOWED_HOSTS = ["*"]
    with unchanged():
        response = local.get(CREATE, **elsewhere)
        assert (response.status_code, response.content) == (401, FORBIDDEN)
        assert local.post("/decide", DECISION, **elsewhere).status_code == 401


@pytest.mark.parametrize("path", ["/status?id=x", "/list", "/orders"])
def test_a_token_reads_nothing_under_a_host_that_the_site_does_not_serve(path: str) -> None:
    """X8: the root routes refuse the name, as the admin and /api/v1/ do."""
    headers = factories.bearer(factories.user(groups.AUDITOR))
    assert Client().get(path, headers=headers).status_code == 200
    assert Client().get(path, headers={**headers, "Host": "evil.example"}).status_code == 400


def test_open_mode_answers_400_to_a_host_that_the_site_does_not_serve(
    local: Client, unchanged: Unchanged
) -> None:
    """X8: a name that is rebound to this machine gets no access."""
    with unchanged():
        assert local.get(CREATE, HTTP_HOST="evil.example").status_code == 400


def test_in_open_mode_a_token_or_session_has_only_its_users_rights(
    local: Client, unchanged: Unchanged, worker: dict[str, str]
) -> None:
    """X3, X8: and a bad token is refused instead of acting as `local`."""
    factories.expense()
    with unchanged(refusals=1):
        assert local.get(f"{APPROVE}&is_api_call=true", headers=worker).status_code == 403
    with unchanged():
        assert local.get(APPROVE, headers={"Authorization": "Bearer x"}).status_code == 401
    local.force_login(factories.user(groups.EMPLOYEE))
    with unchanged(refusals=1):
        assert local.get(APPROVE).status_code == 403
    remote = local.get(CREATE, headers=worker, REMOTE_ADDR="192.0.2.1")
    assert remote.content == b"SUCCEED"


# Mode off


def test_off_mode_answers_404_to_everybody(
    client: Client, settings: Any, unchanged: Unchanged
) -> None:
    """X8: at the plain endpoints and their pages; /api/v1/ still answers."""
    settings.EXPENSES_PROTOCOL_ACCESS = "off"
    root = factories.user(is_superuser=True)
    client.force_login(root)
    factories.expense()
    with unchanged():
        for headers in ({}, factories.bearer(root)):
            for path in ("/", "/list", CREATE, "/status?id=exp-1", APPROVE):
                assert client.get(path, headers=headers).status_code == 404
            for path in ("/registerCallback?id=exp-1", "/decide"):
                assert client.post(path, {"task_token": "00"}, headers=headers).status_code == 404
    assert client.get("/api/v1/expenses/").status_code == 200


# Other sites and prefetches


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Sec-Fetch-Site", "of-tomorrow"),
        ("Origin", "http://evil.example"),
        ("Origin", "https://localhost"),
        ("Origin", "http://localhost:8233"),
        ("Origin", "null"),
        ("Origin", ""),
        ("Origin", "http://[::1"),
        ("Referer", "http://evil.example/localhost"),
        ("Referer", "http://localhost.evil.example/"),
        ("Referer", "about:blank"),
        ("Sec-Purpose", "prefetch"),
        ("Sec-Purpose", "prefetch;prerender"),
        ("Purpose", "prefetch"),
        ("X-Purpose", "prefetch"),
        ("X-Moz", "prefetch"),
    ],
)
@pytest.mark.parametrize("mode", ["open", "token"])
def test_other_sites_and_prefetches_change_nothing(
    local: Client, settings: Any, unchanged: Unchanged, mode: str, header: str, value: str
) -> None:
    """X8: even with a superuser's session; reading is allowed."""
    settings.EXPENSES_PROTOCOL_ACCESS = mode
    local.defaults[f"HTTP_{header.upper().replace('-', '_')}"] = value
    factories.expense()
    local.force_login(factories.user(is_superuser=True))
    form = {**DECISION, "task_token": "00"}
    with unchanged():
        for kind in ("approve", "reject", "payment"):
            path = f"/action?type={kind}&id=exp-1"
            assert local.get(path).status_code == 403
            response = local.get(f"{path}&is_api_call=true")
            assert (response.status_code, response.content) == (403, FORBIDDEN)
        assert local.get("/create?id=new").status_code == 403
        for path in ("/decide", "/registerCallback?id=exp-1"):
            assert local.post(path, form).status_code == 403
    assert local.get("/list").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://localhost"},
        {"Referer": "http://LOCALHOST/list?q=1"},
        {"Origin": "https://expenses.example"},
    ],
    ids=str,
)
def test_the_sites_own_pages_and_the_address_bar_may_create(
    local: Client, settings: Any, headers: dict[str, str]
) -> None:
    """X8: pages under a name in CSRF_TRUSTED_ORIGINS too."""
    settings.CSRF_TRUSTED_ORIGINS = ["https://expenses.example"]
    response = local.get(CREATE, headers=headers)
    assert response.content == b"SUCCEED"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Origin", "http://evil.example"),
        ("Referer", "http://evil.example/"),
        ("Sec-Fetch-Site", "cross-site"),
    ],
)
@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/admin/login/", {"username": "ada", "password": "pass-of-ada"}),
        ("/admin/expenses/expense/", {"action": "approve", "reason": "r"}),
        ("/api/v1/expenses/exp-1/approve/", {}),
        ("/orders", {}),
        ("/jobs", {}),
    ],
)
def test_other_sites_change_nothing_in_the_admin_the_sign_in_and_rest(
    client: Client, unchanged: Unchanged, path: str, form: dict[str, str], header: str, value: str
) -> None:
    """X8: with a session or with a token."""
    expense = factories.expense()
    person = factories.user(is_superuser=True)
    form = {"_selected_action": str(expense.pk), **form}
    with unchanged():
        for headers in ({}, factories.bearer(person)):
            answer = client.post(path, form, headers={**headers, header: value})
            assert answer.status_code in ((403,) if headers else (401, 403))
        client.force_login(person)
        answer = client.post(path, form, headers={header: value})
        assert answer.status_code in (401, 403)
    assert client.session.get("_auth_user_id") == str(person.pk)


def test_a_form_of_another_site_is_told_so() -> None:
    """X8: the person reads that another site asked, not that the page is out of date."""
    browser = Client(enforce_csrf_checks=True)
    answer = browser.post("/decide", {"id": "x"}, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert answer.content.decode() == "Another site asked for this; nothing is done.\n"


# Configuration


@pytest.mark.parametrize(("mode", "found"), [("open", ["access.E001"]), ("token", []), ("off", [])])
def test_check_deploy_reports_the_open_mode(settings: Any, mode: str, found: list[str]) -> None:
    """X8: as an error; `check` alone does not."""
    settings.EXPENSES_PROTOCOL_ACCESS = mode
    for deploy, expected in ((True, found), (False, [])):
        messages = checks.run_checks(include_deployment_checks=deploy)
        assert [message.id for message in messages if message.level >= checks.ERROR] == expected
