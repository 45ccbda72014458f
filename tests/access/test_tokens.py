"""Bearer tokens: their end, their last use, and the people who see and revoke them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.contrib.admin.models import DELETION, LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.core.management import CommandError
from django.db import OperationalError
from django.db.models import QuerySet
from django.test import Client
from knox.crypto import hash_token

from access import groups
from access.models import Token
from local import credentials
from tests import factories
from tests.access.conftest import PASSWORD

pytestmark = pytest.mark.django_db

TOKENS = "/admin/access/token/"


@pytest.fixture
def worker() -> User:
    return factories.user(groups.WORKER, username="worker")


def is_valid(headers: dict[str, str]) -> bool:
    status = Client().get("/list", headers=headers).status_code
    assert status in (200, 401)
    return status == 200


def signed_in(person: User) -> Client:
    client = Client()
    client.force_login(person)
    return client


def test_a_persons_tokens_end_with_a_new_password(ada: User, worker: User) -> None:
    """X8: for every way of changing it. The answer to the old token says why. A token made
    afterwards is valid."""
    old, other, service = (
        factories.bearer(user) for user in (ada, factories.user(password="x"), worker)
    )
    ada.set_password("a-new-pass-of-mine")
    ada.save()
    worker.set_password("a-new-pass-of-its")
    worker.save()
    assert [is_valid(headers) for headers in (old, other, service)] == [False, True, True]
    assert is_valid(factories.bearer(ada))
    answer = Client().get("/api/v1/expenses/", headers=old)
    assert answer.json()["detail"] == (
        "The token ended when its user's password changed. Ask for a new one."
    )
    newer = factories.bearer(ada)
    User.objects.filter(pk=ada.pk).update(password="!")
    assert not is_valid(newer)


def test_a_workers_token_survives_a_password_change_until_its_user_leaves_the_group(
    worker: User,
) -> None:
    """X8: afterwards it ends with the password, like any person's token."""
    made = factories.bearer(worker)
    worker.groups.set([Group.objects.get(name=groups.APPROVER)])
    assert is_valid(made)
    worker.set_password("a-new-pass-of-its")
    worker.save()
    assert not is_valid(made)


def test_a_token_that_ended_stays_ended_when_its_user_becomes_a_worker(ada: User) -> None:
    """X8: a person's token never becomes a service's."""
    made = factories.bearer(ada)
    ada.set_password("a-new-pass-of-its")
    ada.save()
    ada.groups.add(Group.objects.get_or_create(name=groups.WORKER)[0])
    assert not is_valid(made)


def test_a_service_token_of_a_former_worker_expires_after_90_days(
    worker: User,
) -> None:
    """X8: a person's account has no token that is valid permanently."""
    made = factories.bearer(worker)
    Token.objects.update(expiry=None, created=datetime(2026, 1, 1, tzinfo=UTC))
    assert is_valid(made)
    worker.groups.set([Group.objects.get(name=groups.APPROVER)])
    with time_machine.travel(datetime(2026, 3, 31, tzinfo=UTC)):
        assert is_valid(made)
    with time_machine.travel(datetime(2026, 4, 2, tzinfo=UTC)):
        assert not is_valid(made)


def test_signing_in_ends_no_token(ada: User, settings: Any) -> None:
    """X8: nor does a change of anything but the password."""
    settings.PASSWORD_HASHERS = ["access.passwords.Hasher"]
    ada.set_password(PASSWORD)
    ada.email = "ada@example.com"
    ada.save()
    headers = factories.bearer(ada)
    answer = Client().post("/admin/login/", {"username": "ada", "password": PASSWORD})
    assert answer.status_code == 302
    assert is_valid(headers)


def test_the_tokens_of_a_deactivated_user_are_refused(ada: User, worker: User) -> None:
    """X8: a service token too."""
    both = [factories.bearer(ada), factories.bearer(worker)]
    User.objects.update(is_active=False)
    assert [is_valid(headers) for headers in both] == [False, False]


def test_the_last_use_is_stored_once_an_hour(ada: User, django_assert_num_queries: Any) -> None:
    """X8, X11: the other requests look up the token in one query."""
    headers = factories.bearer(ada)
    assert Token.objects.get().last_used_at is None
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    Token.objects.update(expiry=None)
    for minutes, writes, noted in ((0, 1, 0), (1, 0, 0), (59, 0, 0), (60, 1, 60), (61, 0, 60)):
        with time_machine.travel(noon + timedelta(minutes=minutes), tick=False):
            with django_assert_num_queries(3 + writes):  # token, rights, expense
                answer = Client().get("/status", {"id": "x"}, headers=headers)
            assert answer.status_code == 200
        assert Token.objects.get().last_used_at == noon + timedelta(minutes=noted)


def test_guessing_tokens_writes_nothing(ada: User, django_assert_num_queries: Any) -> None:
    """X11: each guess costs one look-up."""
    factories.bearer(ada)
    for guess in ("x", "0" * 64, "0" * 6000):
        with django_assert_num_queries(1):
            answer = Client().get("/list", headers={"Authorization": f"Bearer {guess}"})
        assert answer.status_code == 401


def test_a_request_is_served_although_its_use_cannot_be_stored(
    ada: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """X11: reading works while the database takes no writes, and the log says so."""
    headers = factories.bearer(ada)

    def full(*args: Any, **kwargs: Any) -> int:
        raise OperationalError("database or disk is full")

    monkeypatch.setattr(QuerySet, "update", full)
    assert is_valid(headers)
    assert "was not stored: database or disk is full" in caplog.text
    assert headers["Authorization"][7:20] not in caplog.text


# The admin.


def test_the_list_describes_each_token_and_shows_no_part_of_it(ada: User, worker: User) -> None:
    """X8: it shows the user, the kind, the times, and why a token is no longer valid."""
    texts = [factories.token(worker), factories.token(ada), factories.token(ada)]
    Token.objects.filter(user=worker).update(
        expiry=None, last_used_at=datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    )
    Token.objects.filter(digest=hash_token(texts[1])).update(
        expiry=datetime(2026, 2, 1, tzinfo=UTC)
    )
    client = signed_in(factories.user(is_superuser=True))
    pages = [client.get(TOKENS).content.decode()]
    pages += [client.get(f"{TOKENS}{hash_token(text)}/change/").content.decode() for text in texts]
    for page in pages:
        assert all(text[:8] not in page for text in texts)
    for words in (
        *("worker", "service", "March 1, 2026, 12:30 p.m.", "valid"),
        *("ada", "personal", "Feb. 1, 2026", "ended", "The token has expired."),
    ):
        assert words in pages[0]
    assert 'type="text"' not in pages[1].partition("<main")[2]


@pytest.mark.parametrize("group", groups.NAMES)
def test_members_of_the_staff_see_and_revoke_only_their_own_tokens(group: str, ada: User) -> None:
    """X8, X10: not even the address of another person's token works."""
    me = factories.user(group)
    others = factories.token(ada)
    mine = [factories.token(me), factories.token(me)]
    client = signed_in(me)
    page = client.get(TOKENS).content.decode()
    assert [hash_token(text) in page for text in (others, *mine)] == [False, True, True]
    theirs = f"{TOKENS}{hash_token(others)}"
    for address in (f"{theirs}/change/", f"{theirs}/delete/", f"{theirs}/history/"):
        assert client.get(address).status_code == 302
        assert client.post(address, {"post": "yes"}).status_code in (302, 403)
    revoke(client, others, mine[0])
    assert {token.digest for token in Token.objects.all()} == {
        hash_token(others),
        hash_token(mine[1]),
    }


@pytest.mark.parametrize("may", ["superuser", "permission"])
def test_a_person_with_the_permission_revokes_any_token(may: str, ada: User, worker: User) -> None:
    """X8: the admin asks first and keeps who did it; the token is refused at once."""
    me = factories.user(is_superuser=may == "superuser")
    if may == "permission":
        me.user_permissions.add(Permission.objects.get(codename="revoke_any_token"))
    texts = [factories.token(worker), factories.token(ada)]
    client = signed_in(me)
    asked = client.post(
        TOKENS, {"action": "delete_selected", "_selected_action": hash_token(texts[0])}
    )
    assert "Are you sure" in asked.content.decode()
    assert Token.objects.count() == 2
    revoke(client, *texts)
    assert not Token.objects.exists()
    assert not is_valid({"Authorization": f"Bearer {texts[0]}"})
    entries = LogEntry.objects.values_list("user", "action_flag", "object_repr")
    assert sorted((*entry[:2], entry[2].partition(",")[0]) for entry in entries) == [
        (me.pk, DELETION, f"token of {name}") for name in ("ada", "worker")
    ]


def revoke(client: Client, *texts: str) -> None:
    form = {"action": "delete_selected", "_selected_action": [hash_token(text) for text in texts]}
    assert client.post(TOKENS, {**form, "post": "yes"}).status_code in (200, 302)


def test_nobody_adds_or_changes_a_token_in_the_admin(ada: User) -> None:
    """X8: only the command makes tokens."""
    text = factories.token(ada)
    before = list(Token.objects.values())
    client = signed_in(factories.user(is_superuser=True))
    assert client.post(f"{TOKENS}add/", {"user": ada.pk}).status_code == 403
    address = f"{TOKENS}{hash_token(text)}/change/"
    assert client.post(address, {"expiry": ""}).status_code == 403
    assert list(Token.objects.values()) == before


def test_a_user_with_tokens_can_be_deleted(ada: User) -> None:
    """X10: the admin offers that to a superuser."""
    factories.token(ada)
    client = signed_in(factories.user(is_superuser=True))
    answer = client.post(f"/admin/auth/user/{ada.pk}/delete/", {"post": "yes"})
    assert answer.status_code == 302
    assert not Token.objects.exists()


# Installations that exist.


@pytest.fixture
def made(tmp_path: Any) -> Any:
    """The credentials of a first `make up`."""
    return credentials.restore(tmp_path / "credentials.json")


def bearer(entry: dict[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {entry['token']}"}


def test_credentials_that_cannot_be_read_are_named_and_no_user_is_made(tmp_path: Any) -> None:
    """E13: a folder, or a file of somebody else, in place of the file."""
    with pytest.raises(CommandError, match="credentials cannot be read"):
        (tmp_path / "credentials").mkdir()
        credentials.restore(tmp_path / "credentials")
    assert not User.objects.exists()


def test_the_next_start_keeps_tokens_and_passwords(made: Any, tmp_path: Any) -> None:
    """X8: each works after the first start and after the second, from an empty database too."""
    for step in ("first", "second", "emptied"):
        if step == "emptied":
            User.objects.all().delete()
        assert credentials.restore(tmp_path / "credentials.json") == made
        for role, entry in made.items():
            assert is_valid(bearer(entry)), (step, role)
            if role != "worker":
                assert Client().post("/admin/login/", entry).status_code == 302, (step, role)


@pytest.mark.parametrize("ended", ["by a new password", "by a revocation"])
def test_the_next_start_revives_no_persons_token(made: Any, tmp_path: Any, ended: str) -> None:
    """X8: what ended in between has ended."""
    if ended == "by a new password":
        approver = User.objects.get(username="approver")
        approver.set_password("a-new-pass-of-mine")
        approver.save()
    else:
        Token.objects.get(user__username="approver").delete()
    assert credentials.restore(tmp_path / "credentials.json") == made
    assert not is_valid(bearer(made["approver"]))
    assert is_valid(bearer(made["employee"]))


@pytest.mark.parametrize("ended", ["revoked", "replaced"])
def test_the_next_start_replaces_the_workers_token(made: Any, tmp_path: Any, ended: str) -> None:
    """X8: the worker needs a token, so it gets another one; the old one is not revived."""
    token = Token.objects.filter(user__username="worker")
    if ended == "revoked":
        token.delete()
    else:
        token.update(expiry=datetime(2026, 1, 1, tzinfo=UTC))
    path = tmp_path / "credentials.json"
    again = credentials.restore(path)
    assert again == made | {"worker": again["worker"]}
    assert not is_valid(bearer(made["worker"]))
    assert is_valid(bearer(again["worker"]))
    assert credentials.restore(path) == again
