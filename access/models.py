"""The bearer tokens of the API; only their hashes are stored."""

import hashlib
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.db import models
from knox.models import AbstractAuthToken, AuthTokenManager
from knox.settings import knox_settings

from access import groups


def password_fingerprint(user: User) -> str:
    """A hash of the user's stored password, which a token is bound to."""
    return hashlib.sha256(user.password.encode()).hexdigest()


class TokenManager(AuthTokenManager):  # type: ignore[misc]
    def create(self, user: User, *, expiry: timedelta | None) -> tuple["Token", str]:
        """Make a token that lasts for `expiry`; None means until it is revoked.

        Returns the token and its text. The text is not stored.
        """
        made: tuple[Token, str] = super().create(
            user,
            expiry=expiry,
            password_fingerprint=password_fingerprint(user),
            made_for_service=groups.is_worker(user),
        )
        return made


class Token(AbstractAuthToken):  # type: ignore[misc]
    """A bearer token with the rights of its user.

    A person's token ends when the password changes. Each use compares the fingerprint, so this
    holds for every way of changing a password. A service token stays valid: its user was in the
    group Worker when the token was made, and is in it now. A token that ended stays ended, whatever
    group its user joins later.
    """

    password_fingerprint = models.CharField(max_length=64, blank=True)
    made_for_service = models.BooleanField(default=False)
    last_used_at = models.DateTimeField(null=True, blank=True)

    objects = TokenManager()

    class Meta:
        permissions = [("revoke_any_token", "Can see and revoke the tokens of all users")]
        default_permissions = ()

    def __str__(self) -> str:
        return f"token of {self.user}, made {self.created:%Y-%m-%d %H:%M} UTC"

    @property
    def is_service(self) -> bool:
        return self.made_for_service and groups.is_worker(self.user)

    def refusal(self, now: datetime) -> str:
        """A sentence that says why the token is not valid at `now`; empty for a valid token."""
        # A service token without an expiry gets a person's expiry when its user leaves the group.
        expiry = self.expiry or self.created + knox_settings.TOKEN_TTL
        if expiry < now and (self.expiry or not self.is_service):
            return "The token has expired."
        if not self.user.is_active:
            return "The user of this token is not active."
        changed = self.password_fingerprint != password_fingerprint(self.user)
        if changed and not self.is_service:
            return "The token ended when its user's password changed."
        return ""
