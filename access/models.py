"""The bearer tokens of the API; only their hashes are stored."""

import hashlib
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.db import models
from knox.models import AbstractAuthToken, AuthTokenManager

from access import groups


def password_fingerprint(user: User) -> str:
    """What a token of `user` is bound to: a hash of the stored password."""
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
    every way of changing a password ends the tokens. A service token, whose user is in the group
    Worker now, goes on.
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
        return bool(self.user.groups.filter(name=groups.WORKER).exists())

    def refusal(self, now: datetime) -> str:
        """Why the token is not valid at `now`, in a sentence; empty for a valid token."""
        if self.expiry and self.expiry < now:
            return "The token has expired."
        if not self.user.is_active:
            return "The user of this token is not active."
        changed = self.password_fingerprint != password_fingerprint(self.user)
        if changed and not self.is_service:
            return "The token ended when its user's password changed."
        return ""
