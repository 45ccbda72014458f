"""The log lines of refused requests."""

import io
import logging
from collections.abc import Iterator

import pytest
from django.test import Client

from access import groups
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The lines that the site's log writes."""
    [handler] = [h for h in logging.getLogger().handlers if h.name == "stderr"]
    written = io.StringIO()
    before = handler.setStream(written)  # type: ignore[attr-defined]
    yield written
    handler.setStream(before)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/admin/auth/user/", "localhost", 403),
        ("/admin/login/", "elsewhere.example", 400),
        ("/admin/expenses/expense/?_to_field=a%0A2026-01-01+ERROR+forged", "localhost", 400),
        ("/nowhere%0Aforged", "localhost", 404),
    ],
)
def test_a_refused_request_is_one_line(
    client: Client, log: io.StringIO, path: str, host: str, status: int
) -> None:
    """E10: no traceback, since the site has not failed, and no line that the client forged."""
    if host == "localhost":
        client.force_login(factories.user(groups.APPROVER))
    assert client.get(path, headers={"Host": host}).status_code == status
    lines = log.getvalue().splitlines()
    assert len(lines) == 1
    assert " WARNING django.request: " in lines[0] or " ERROR django.security." in lines[0]


def test_a_failure_keeps_its_traceback(client: Client, log: io.StringIO) -> None:
    """E10: it leads to the defect of the site."""
    client.raise_request_exception = False
    client.force_login(factories.user(groups.APPROVER))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("expenses.pages.urlencode", None)
        patch.setattr("expenses.pages.PAGE_ROWS", None)
        assert client.get("/list").status_code == 500
    assert "Traceback (most recent call last)" in log.getvalue()


def test_no_secret_is_logged(client: Client, log: io.StringIO) -> None:
    """E10: no bearer token, password, task token or query of a refused request."""
    factories.expense("exp-1")
    factories.user(username="ada", password="pass-of-ada")
    bearer = factories.bearer(factories.user(groups.EMPLOYEE))
    secrets = ["0badc0de", "pass-of-eve", "in-the-query", bearer["Authorization"].split()[1]]
    client.post("/registerCallback?id=exp-1", {"task_token": secrets[0]}, headers=bearer)
    client.post("/admin/login/", {"username": "ada", "password": secrets[1]})
    client.get(f"/nowhere?token={secrets[2]}", headers=bearer)
    client.get("/api/v1/payments/", headers=bearer)
    client.get("/admin/login/", headers={**bearer, "Host": "elsewhere.example"})
    assert log.getvalue().count("\n") >= 4
    assert not [secret for secret in secrets if secret in log.getvalue()]
