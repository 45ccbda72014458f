"""A sign-in cannot be tried at will: limits by name, by address, and on hashing."""

from datetime import timedelta
from typing import Any

import pytest
from axes.models import AccessAttempt, AccessLog
from django.contrib.auth.hashers import check_password, make_password
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client

from access import passwords, sign_in
from tests import factories
from tests.access.conftest import PASSWORD
from tests.conftest import at_once

pytestmark = pytest.mark.django_db

LIMIT = 10
WAIT = timedelta(minutes=5)
WRONG = "The user name or the password is wrong."
TOO_MANY = "Too many sign-ins have failed. Wait 5 minutes and try again."
BUSY = "Too many people are signing in right now. Try again in a few seconds."


@pytest.fixture
def real_hasher(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["access.passwords.Hasher"]


def attempt(
    name: str = "ada", password: str = "wrong", *, at: str = "192.0.2.1", by: Client | None = None
) -> HttpResponse:
    form = {"username": name, "password": password}
    return (by or Client()).post("/admin/login/", form, REMOTE_ADDR=at)


def fail(times: int, name: str = "ada", *, at: str = "192.0.2.1") -> None:
    for _ in range(times):
        attempt(name, at=at)


def is_refused(answer: HttpResponse) -> bool:
    """Whether the sign-in was not tried: 429 with the sentence and the seconds to wait."""
    if answer.status_code != 429:
        return False
    assert TOO_MANY in answer.content.decode()
    assert WRONG not in answer.content.decode()
    assert answer["Retry-After"] == "300"
    return True


@pytest.mark.parametrize(
    ("name", "at", "refused"),
    [
        ("ada", "192.0.2.1", True),
        ("ada", "192.0.2.2", True),
        ("bob", "192.0.2.1", True),
        ("bob", "192.0.2.2", False),
        ("ADA", "192.0.2.2", False),
    ],
)
def test_failures_lock_the_name_and_the_address(
    ada: User, name: str, at: str, refused: bool
) -> None:
    """X11: after ten failures neither the name nor the address signs in, with the right password
    either; others do."""
    for person in ("bob", "ADA"):
        factories.user(username=person, password=PASSWORD)
    for number in range(LIMIT):
        answer = attempt()
        assert is_refused(answer) == (number == LIMIT - 1)
        assert number == LIMIT - 1 or WRONG in answer.content.decode()
    answer = attempt(name, PASSWORD, at=at)
    assert is_refused(answer) == refused
    assert (answer.status_code == 302) == (not refused)


def test_the_wait_ends_and_is_not_prolonged(ada: User, clock: Any) -> None:
    """X11: it ends five minutes after the last counted failure; attempts meanwhile do not extend
    it."""
    fail(LIMIT)
    clock.shift(WAIT - timedelta(seconds=1))
    assert is_refused(attempt(password=PASSWORD))
    clock.shift(timedelta(seconds=2))
    assert attempt(password=PASSWORD).status_code == 302


def test_a_refused_sign_in_hashes_and_writes_nothing(
    ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X11: an attempt during the wait costs no hash and no row."""
    fail(LIMIT)
    before = list(AccessAttempt.objects.values())
    monkeypatch.setattr(User, "check_password", lambda *_: pytest.fail("it was hashed"))
    assert is_refused(attempt())
    assert list(AccessAttempt.objects.values()) == before


def test_a_known_browser_is_not_locked_out_by_others(ada: User) -> None:
    """X11: strangers who fail on purpose do not lock a person out of their usual browser. Another
    person's browser and a forged cookie do not count as known."""
    known, other = Client(), Client()
    factories.user(username="bob", password=PASSWORD)
    attempt(password=PASSWORD, at="192.0.2.2", by=known)
    attempt("bob", PASSWORD, at="192.0.2.3", by=other)
    forger = Client()
    forger.cookies["known_browser"] = "é" * 64
    fail(LIMIT)
    assert is_refused(attempt(password=PASSWORD, at="192.0.2.3", by=other))
    assert is_refused(attempt(password=PASSWORD, at="192.0.2.4", by=forger))
    known.cookies.pop("sessionid")
    assert attempt(password=PASSWORD, at="192.0.2.2", by=known).status_code == 302
    cookie = known.cookies["known_browser"]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (
        True,
        "Strict",
        "/admin/login/",
    )


def test_a_known_browser_is_limited_by_its_address(ada: User) -> None:
    """X11: a thief of such a browser cannot try passwords without limit."""
    known = Client()
    attempt(password=PASSWORD, by=known)
    for _ in range(LIMIT):
        attempt(by=known)
    assert is_refused(attempt(password=PASSWORD, by=known))


def test_a_session_goes_on_while_its_name_is_locked(ada: User) -> None:
    """X11: strangers end nobody's session."""
    client = Client()
    client.force_login(ada)
    fail(LIMIT)
    assert client.get("/admin/").status_code == 200


def test_signing_in_forgets_failures_with_that_name_only(ada: User) -> None:
    """X11: a person with an account cannot reset the count of attempts on other accounts."""
    factories.user(username="mallory", password=PASSWORD)
    for _ in range(3):
        fail(4)
        answer = attempt("mallory", PASSWORD)
    assert is_refused(answer)
    assert is_refused(attempt(password=PASSWORD))

    fail(LIMIT - 1, "mallory", at="192.0.2.9")
    attempt("mallory", PASSWORD, at="192.0.2.9")
    assert not is_refused(attempt("mallory", at="192.0.2.9"))


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::1", "::"),
        ("", "::"),
        ("unix:", "::"),
    ],
)
def test_sign_ins_are_counted_by_the_network_of_one_customer(
    rf: Any, address: str, network: str
) -> None:
    """X11: an IPv6 customer has 2^64 addresses. Headers of the client are ignored."""
    request = rf.get("/", REMOTE_ADDR=address, HTTP_X_FORWARDED_FOR="198.51.100.7")
    assert sign_in.client_network(request) == network


def test_old_attempts_are_deleted(ada: User, clock: Any) -> None:
    """X11: the table keeps only attempts that still count, and no password."""
    for name in ("a", "b", "c"):
        fail(1, name)
    assert AccessAttempt.objects.count() == 3
    assert "wrong" not in str(list(AccessAttempt.objects.values()))
    clock.shift(WAIT + timedelta(seconds=1))
    attempt(password=PASSWORD)
    assert not AccessAttempt.objects.exists()
    assert not AccessLog.objects.exists()


def test_the_log_names_the_address_and_no_secret(
    ada: User, caplog: pytest.LogCaptureFixture
) -> None:
    """X8, X11: some people type a password into the field of the name."""
    caplog.set_level("INFO")
    fail(LIMIT + 1, "my-secret")
    assert '"192.0.2.1"' in caplog.text
    assert "my-secret" not in caplog.text
    assert "wrong" not in caplog.text


@pytest.mark.parametrize(
    ("name", "password"),
    [("x" * 151, "y"), ("x" * 100_000, "y"), ("a\0da", "y"), ("ada", "y\0"), ("", ""), ("ada", "")],
)
def test_an_impossible_name_or_password_is_a_form_error(name: str, password: str) -> None:
    """X11: it causes no server error, no hash and no row."""
    answer = attempt(name, password)
    assert answer.status_code == 200
    assert "errornote" in answer.content.decode()
    assert not AccessAttempt.objects.exists()


@pytest.mark.parametrize(
    "password", ["y" * 100_000, "ünï\u202ecode", "\ud800".encode("utf-8", "replace").decode()]
)
def test_an_odd_password_is_a_wrong_password(ada: User, password: str) -> None:
    """X11: of any length and in any script."""
    answer = attempt(password=password)
    assert (answer.status_code, WRONG in answer.content.decode()) == (200, True)


def test_the_answer_does_not_show_whether_a_user_exists(ada: User) -> None:
    """X11: nor whether the user is active, up to the limit of failures."""
    factories.user(username="gone", password=PASSWORD, is_active=False)

    def answers(name: str, password: str, at: str) -> list[tuple[int, str]]:
        tried = [attempt(name, password, at=at) for _ in range(LIMIT + 1)]
        return [
            (one.status_code, one.content.decode().replace(name, "").split("login-form")[0])
            for one in tried
        ]

    expected = answers("ada", "wrong", "192.0.2.1")
    assert answers("nobody", "wrong", "192.0.2.2") == expected
    assert answers("gone", PASSWORD, "192.0.2.3") == expected


# Hashing.


@pytest.fixture
def hashing(real_hasher: None) -> Any:
    """As many hashes are under way as may be."""
    for _ in range(passwords.AT_ONCE):
        assert passwords._free.acquire(blocking=False)
    yield
    for _ in range(passwords.AT_ONCE):
        passwords._free.release()


def test_a_third_password_is_refused_while_two_are_hashed(real_hasher: None) -> None:
    """X11: at once; another one is accepted when one of the two is done."""

    def hashed() -> bool:
        try:
            make_password("secret")
        except passwords.Busy:
            return False
        return True

    assert sorted(at_once([hashed] * 8)) == [False] * 6 + [True] * 2
    assert hashed()


def test_an_error_while_hashing_frees_its_place(real_hasher: None) -> None:
    """X11: no error reduces the number of places permanently."""
    for _ in range(passwords.AT_ONCE + 1):
        with pytest.raises(ValueError, match="salt"):
            passwords.Hasher().encode("secret", "$")


def test_stored_passwords_of_django_remain_valid(settings: Any) -> None:
    """X8: and a sign-in does not hash a stored password again."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]
    stored = make_password("secret")
    settings.PASSWORD_HASHERS = ["access.passwords.Hasher"]

    def rehashed(password: str) -> None:
        pytest.fail("it was stored anew")

    assert check_password("secret", stored, rehashed)


@pytest.mark.parametrize("name", ["ada", "nobody"])
def test_a_sign_in_beyond_the_limit_is_503(ada: User, hashing: None, name: str) -> None:
    """X11: the answer asks to try again; the attempt does not count."""
    User.objects.filter(pk=ada.pk).update(password="pbkdf2_sha256$1000000$salt$aGFzaA==")
    answer = attempt(name, PASSWORD)
    assert (answer.status_code, answer["Retry-After"]) == (503, "3")
    assert answer.content.decode() == f"{BUSY}\n"
    assert not AccessAttempt.objects.exists()


@pytest.mark.parametrize(
    ("path", "form"),
    [
        (
            "/admin/password_change/",
            {"old_password": "x", "new_password1": "new-pass-of-ada", "new_password2": "x"},
        ),
        (
            "/admin/auth/user/add/",
            {"username": "new", "password1": "long-enough-1", "password2": "long-enough-1"},
        ),
        (
            "/admin/auth/user/{}/password/",
            {"password1": "long-enough-1", "password2": "long-enough-1"},
        ),
    ],
)
def test_setting_a_password_beyond_the_limit_changes_nothing(
    hashing: None, path: str, form: dict[str, str]
) -> None:
    """X11: the answer is 503."""
    admin = User.objects.create(
        username="root",
        is_staff=True,
        is_superuser=True,
        password="pbkdf2_sha256$1000000$salt$aGFzaA==",
    )
    client = Client()
    client.force_login(admin)
    before = list(User.objects.values("username", "password"))
    answer = client.post(path.format(admin.pk), form)
    assert (answer.status_code, answer["Retry-After"]) == (503, "3")
    assert answer.content.decode() == f"{BUSY}\n"
    assert list(User.objects.values("username", "password")) == before
