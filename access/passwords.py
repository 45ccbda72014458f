"""Passwords are hashed as Django does it, by at most two threads of a process at once.

A hash occupies a core for a good part of a second, and anybody can cause one by trying to sign in.
"""

import threading
from typing import Final

from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.utils.deprecation import MiddlewareMixin

AT_ONCE: Final = 2
RETRY_SECONDS: Final = 3
DIFFERENT: Final = 5
# A shorter username is in many a good password.
SHORTEST_NAME: Final = 4

_free = threading.BoundedSemaphore(AT_ONCE)


class Busy(Exception):
    """This process is already hashing as many passwords as it may."""

    def __init__(self) -> None:
        super().__init__("Too many people are signing in right now. Try again in a few seconds.")


class Hasher(PBKDF2PasswordHasher):
    """Django's default hasher; it raises Busy instead of waiting for its turn."""

    # Pinned, because a sign-in under another number stores the password again, which ends the
    # person's tokens and other sessions.
    iterations = 1_000_000

    def encode(self, password: str, salt: str, iterations: int | None = None) -> str:
        if not _free.acquire(blocking=False):
            raise Busy
        try:
            return super().encode(password, salt, iterations)
        finally:
            _free.release()


class VariedValidator:
    """The rule against passwords of few different characters and passwords with the username."""

    def validate(self, password: str, user: User | None = None) -> None:
        """Raise ValidationError for fewer than five different characters, or for the username."""
        if len(set(password)) < DIFFERENT:
            raise ValidationError(self.get_help_text(), code="password_not_varied")
        name = user.get_username().casefold() if user else ""
        if len(name) >= SHORTEST_NAME and name in password.casefold():
            raise ValidationError(
                "Your password has your username in it.", code="password_has_username"
            )

    def get_help_text(self) -> str:
        return f"Your password must have at least {DIFFERENT} different characters."


class Middleware(MiddlewareMixin):
    """Answer Busy with 503. The page that took the password has changed nothing yet.

    The answer is plain text, because the page would cost ten times as much.
    """

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, Busy):
            return None
        headers = {"Retry-After": str(RETRY_SECONDS)}
        return HttpResponse(f"{error}\n", "text/plain; charset=utf-8", 503, headers=headers)
