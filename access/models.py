"""The bearer tokens of the API; only their hashes are stored."""

import hashlib
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.db import models
from knox.models import AbstractAuthToken, AuthTokenManager

from access import groups


def password_fingerprint(user: User) -> str:
    """What a new token of `user` is bound to: a hash of the stored password.

    It is empty for a user of the group Worker, whose tokens do not end with a password change.
    """
    return "" if user.groups.filter(name=groups.WORKER).exists() else _fingerprint(user)


def _fingerprint(user: User) -> str:
    return hashlib.sha256(user.password.encode()).hexdigest()


class TokenManager(AuthTokenManager):  # type: ignore[misc]
    def create(self, user: User, *, expiry: timedelta | None) -> tuple["Token", str]:
        """Make a token that lasts for `expiry` (None: until it is revoked); also its text, which
        is not stored."""
        made: tuple[Token, str] = super().create(
            user, expiry=expiry, password_fingerprint=password_fingerprint(user)
        )
        return made


class Token(AbstractAuthToken):  # type: ignore[misc]
    """A bearer token with the rights of its user.

    A person's token ends with a change of the password: each use compares the fingerprint, so
    every way of changing a password ends the tokens. A service token has no fingerprint.
    """

    password_fingerprint = models.CharField(max_length=64, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    objects = TokenManager()

    class Meta:
        permissions = [("revoke_any_token", "Can see and revoke the tokens of all users")]
        default_permissions = ()

    def __str__(self) -> str:
        return f"token of {self.user}, made {self.created:%Y-%m-%d %H:%M} UTC"

    @property
    def is_service(self) -> bool:
        return not self.password_fingerprint

    def refusal(self, now: datetime) -> str:
        """Why the token is not valid at `now`, in a sentence; empty for a valid token."""
        if self.expiry and self.expiry < now:
            return "The token has expired."
        if not self.user.is_active:
            return "The user of this token is not active."
        if not self.is_service and self.password_fingerprint != _fingerprint(self.user):
            return "The token ended when its user's password changed."
        return ""
