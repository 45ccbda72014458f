"""`manage.py createtoken`: what it prints is a token, and what it stores is not."""

import io
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from access import groups
from access.models import Token
from tests import factories

pytestmark = pytest.mark.django_db


def created(*arguments: str) -> str:
    output = io.StringIO()
    call_command("createtoken", *arguments, stdout=output)
    return output.getvalue().removesuffix("\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "There is no user 'nobody'. Add one in the admin first."),
        (["\udcff"], "There is no user '\\udcff'. Add one in the admin first."),
        (["gone"], "The user 'gone' is not active. Activate it in the admin."),
        (["emma", "--days", "0"], "--days takes a whole number from 1 to 3650."),
        (["emma", "--days", "-1"], "--days takes a whole number from 1 to 3650."),
        (["emma", "--days", "5000000"], "--days"),
        (["emma", "--days", "9" * 30], "--days"),
        (["emma", "--days", "x"], "--days"),
        ([], "username"),
    ],
)
def test_a_refused_request_makes_no_token(arguments: list[str], message: str) -> None:
    """X8: an unknown or inactive user, a name whose bytes are not UTF-8, or days out of range."""
    factories.user(username="emma")
    factories.user(username="gone", is_active=False)
    with pytest.raises(CommandError) as error:
        created(*arguments, "--replace")
    assert message in str(error.value)
    assert not Token.objects.exists()


@pytest.mark.parametrize(
    ("group", "arguments", "days"),
    [
        (groups.EMPLOYEE, [], 90),
        (groups.EMPLOYEE, ["--days", "7"], 7),
        (groups.WORKER, [], None),
        (groups.WORKER, ["--days", "1"], 1),
    ],
)
def test_a_token_expires_after_90_days_unless_it_is_the_workers(
    client: Client, group: str, arguments: list[str], days: int | None
) -> None:
    """X8: --days sets another time, for the worker's token too."""
    factories.user(group, username="someone")
    token = created("someone", *arguments)
    row = Token.objects.get()
    if days is None:
        assert row.expiry is None
    else:
        left = row.expiry - timezone.now()
        assert timedelta(days=days, minutes=-1) < left <= timedelta(days=days)
    headers = {"Authorization": f"Bearer {token}"}
    assert client.get("/list", headers=headers).status_code == 200


def test_only_a_hash_is_stored() -> None:
    """X8: the database has neither the token nor most of it."""
    factories.user(username="someone")
    token = created("someone")
    assert len(token) >= 43
    stored: Any = Token.objects.values().get()
    assert token[16:] not in str(stored)
    assert token not in str(stored)


@pytest.mark.parametrize(
    ("arguments", "at_once", "in_an_hour"),
    [([], 200, 200), (["--replace"], 200, 401), (["--revoke"], 401, 401)],
)
def test_replace_and_revoke_end_only_the_users_other_tokens(
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    at_once: int,
    in_an_hour: int,
) -> None:
    """X8: --replace ends them in an hour, --revoke at once."""
    factories.user(groups.WORKER, username="worker")
    factories.user(username="other")
    other, old, new = created("other"), created("worker"), created("worker", *arguments)

    def status(token: str) -> int:
        return client.get("/list", headers={"Authorization": f"Bearer {token}"}).status_code

    assert (status(other), status(new), status(old)) == (200, 200, at_once)
    later = timezone.now() + timedelta(minutes=61)
    monkeypatch.setattr(timezone, "now", lambda: later)
    assert (status(other), status(new), status(old)) == (200, 200, in_an_hour)
