"""Sessions end after idle hours, and when the password changes."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client

from tests import factories
from tests.access.conftest import PASSWORD

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
POLL = {"X-Background": "1"}
FETCH = {"Sec-Fetch-Mode": "cors"}


def signed_in() -> Client:
    client = Client()
    form = {"username": "ada", "password": PASSWORD}
    assert client.post("/admin/login/", form).status_code == 302
    return client


def is_signed_in(client: Client, **headers: str) -> bool:
    status = client.get("/list", headers=headers).status_code
    assert status in (200, 401)
    return status == 200


@pytest.mark.parametrize(("idle", "lasts"), [(8 * HOUR - MINUTE, True), (8 * HOUR + MINUTE, False)])
def test_a_session_ends_after_eight_idle_hours(
    ada: User, clock: Any, idle: timedelta, lasts: bool
) -> None:
    """X8: counted from the last page that the person opened."""
    client = signed_in()
    for _ in range(3):
        clock.shift(7 * HOUR)
        assert is_signed_in(client, **{"Sec-Fetch-Mode": "navigate"})
    clock.shift(idle)
    assert is_signed_in(client) == lasts


@pytest.mark.parametrize("headers", [POLL, FETCH])
def test_an_open_page_keeps_no_session_alive(
    ada: User, clock: Any, headers: dict[str, str]
) -> None:
    """X8: the list page asks every 2 s, even if nobody looks at it."""
    client = signed_in()
    for _ in range(8):
        assert is_signed_in(client, **headers)
        clock.shift(HOUR)
    assert not is_signed_in(client, **headers)


def test_a_session_is_stored_at_most_every_five_minutes(ada: User, clock: Any) -> None:
    """X11: opening pages writes little."""
    client = signed_in()
    stored = []
    for _ in range(10):
        clock.shift(MINUTE)
        assert is_signed_in(client)
        stored.append(Session.objects.get().expire_date)
    assert len(set(stored)) == 3


def test_a_program_reads_no_session(ada: User, django_assert_num_queries: Any) -> None:
    """X11: the token alone identifies its user."""
    client = signed_in()
    headers = factories.bearer(ada)
    client.get("/status", {"id": "x"}, headers=headers)
    with django_assert_num_queries(3):  # the token, its rights, the expense
        client.get("/status", {"id": "x"}, headers=headers)


@pytest.mark.parametrize("by", ["the person", "an administrator"])
def test_a_new_password_ends_the_other_sessions(ada: User, by: str) -> None:
    """X8: a thief with the old password or a stolen session loses access."""
    here, there = signed_in(), signed_in()
    if by == "the person":
        form = {
            "old_password": PASSWORD,
            "new_password1": "a-new-pass-of-mine",
            "new_password2": "a-new-pass-of-mine",
        }
        answer = here.post("/admin/password_change/", form)
    else:
        admin = Client()
        admin.force_login(factories.user(is_superuser=True))
        form = {"password1": "a-new-pass-of-hers", "password2": "a-new-pass-of-hers"}
        answer = admin.post(f"/admin/auth/user/{ada.pk}/password/", form)
    assert answer.status_code == 302
    assert is_signed_in(here) == (by == "the person")
    assert not is_signed_in(there)


def test_a_deactivated_person_is_signed_out_at_once(ada: User) -> None:
    """X8: the next request is refused."""
    client = signed_in()
    User.objects.update(is_active=False)
    assert not is_signed_in(client)


def test_sessions_that_have_ended_are_deleted(ada: User, clock: Any) -> None:
    """X11: the table does not grow without limit."""
    signed_in()
    clock.shift(9 * HOUR)
    signed_in()
    assert Session.objects.count() == 1


@pytest.mark.parametrize(
    ("password", "said"),
    [
        ("short-one-1", "This password is too short. It must contain at least 12 characters."),
        ("829301928374", "This password is entirely numeric."),
        ("qwertyuiop123", "This password is too common."),
        ("abababababab!", "Your password must have at least 5 different characters."),
        ("maximilian-ada", "The password is too similar to the username."),
        ("Maximilian-Adam2Maximilian-Adam2", "Your password has your username in it."),
    ],
)
def test_a_weak_password_is_refused_with_the_reason(password: str, said: str) -> None:
    """X8: a person's own, another person's, and a new person's."""
    admin = factories.user(username="maximilian-adam", password=PASSWORD, is_superuser=True)
    client = Client()
    client.force_login(admin)
    before = list(User.objects.values())
    form = {"old_password": PASSWORD, "new_password1": password, "new_password2": password}
    answer = client.post("/admin/password_change/", form)
    assert said in answer.content.decode()
    form = {"password1": password, "password2": password}
    answer = client.post(f"/admin/auth/user/{admin.pk}/password/", form)
    assert said in answer.content.decode()
    answer = client.post("/admin/auth/user/add/", {**form, "username": "maximilian-adam2"})
    assert said in answer.content.decode()
    assert list(User.objects.values()) == before
