"""Bearer tokens: knox, hashed at rest, with the rights of their user."""

import logging
from datetime import datetime, timedelta
from typing import Any, Final

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.db import OperationalError, connection
from django.http import HttpRequest
from django.utils import timezone
from knox.auth import TokenAuthentication
from knox.crypto import hash_token
from rest_framework.exceptions import AuthenticationFailed

from access.models import Token

log = logging.getLogger(__name__)

# A token's last use is stored at most this often.
USE_NOTED_EVERY: Final = timedelta(hours=1)
# Every request of a program runs this query. The ORM needs twenty times as long to build it as
# the database needs to answer it.
_PERMISSIONS: Final = """
    SELECT content_type.app_label, permission.codename
    FROM auth_permission permission
    JOIN django_content_type content_type ON content_type.id = permission.content_type_id
    WHERE permission.id IN (
        SELECT own.permission_id FROM auth_user_user_permissions own WHERE own.user_id = %s
        UNION ALL
        SELECT granted.permission_id FROM auth_group_permissions granted
        JOIN auth_user_groups member ON member.group_id = granted.group_id
        WHERE member.user_id = %s
    )
"""


class Backend(ModelBackend):
    """Django's own backend, but one query reads all permissions of a user."""

    def get_all_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        if not user_obj.is_active or user_obj.is_superuser or obj is not None:
            return super().get_all_permissions(user_obj, obj)
        if not hasattr(user_obj, "_perm_cache"):
            with connection.cursor() as cursor:
                cursor.execute(_PERMISSIONS, [user_obj.pk, user_obj.pk])
                user_obj._perm_cache = {f"{app}.{codename}" for app, codename in cursor}
        permissions: set[str] = user_obj._perm_cache
        return permissions


class BearerAuthentication(TokenAuthentication):  # type: ignore[misc]
    """Authentication by `Authorization: Bearer <token>`; REST_KNOX sets the prefix.

    One query looks up the hash. Knox's own class reads several tokens, deletes expired ones while
    it reads, and fails on a token that is not UTF-8.
    """

    def authenticate_credentials(self, token: bytes) -> tuple[User, Token]:
        try:
            digest = hash_token(token.decode("ascii"))
        except ValueError:
            raise AuthenticationFailed("This is not a token.") from None
        try:
            found = Token.objects.select_related("user").get(digest=digest)
        except Token.DoesNotExist:
            reason = "The token is unknown or has expired; ask for a new one."
            raise AuthenticationFailed(reason) from None
        now = timezone.now()
        if refusal := found.refusal(now):
            raise AuthenticationFailed(f"{refusal} Ask for a new one.")
        _note_use(found, now)
        return found.user, found


def _note_use(token: Token, now: datetime) -> None:
    if token.last_used_at and now - token.last_used_at < USE_NOTED_EVERY:
        return
    # One of several simultaneous requests writes.
    unnoted = Token.objects.filter(pk=token.pk, last_used_at=token.last_used_at)
    try:
        unnoted.update(last_used_at=now)
    except OperationalError as error:
        # A request that only reads is answered even while the database takes no writes.
        log.warning("The last use of a token of %s was not stored: %s", token.user_id, error)


def bearer_user(request: HttpRequest) -> User | None:
    """The user of the request's bearer token; None when it carries no Authorization header.

    Raises AuthenticationFailed for a header that names no valid token.
    """
    if "HTTP_AUTHORIZATION" not in request.META:
        return None
    found = BearerAuthentication().authenticate(request)
    if found is None:
        raise AuthenticationFailed("The Authorization header carries no bearer token.")
    user: User = found[0]
    return user
