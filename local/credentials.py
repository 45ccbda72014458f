"""The users of a local installation, and the file with their passwords and tokens."""

import json
import secrets
from pathlib import Path
from typing import Final

from django.contrib.auth.models import Group, User
from django.core.management.base import CommandError
from django.db import transaction
from django.utils import timezone
from knox.crypto import create_token_string, hash_token
from knox.settings import CONSTANTS, knox_settings

from access import groups
from access.models import Token, password_fingerprint
from local import installation

# The group of each role in the file; None makes a superuser.
GROUPS: Final = {
    "admin": None,
    "employee": groups.EMPLOYEE,
    "approver": groups.APPROVER,
    "finance": groups.FINANCE,
    "auditor": groups.AUDITOR,
    "operator": groups.OPERATOR,
    "worker": groups.WORKER,
}


def restore(path: Path) -> dict[str, dict[str, str]]:
    """Make the users and tokens of the file that the database lacks; return the file's content.

    A role that the file lacks is added, and so is a new token of the worker if the database has
    revoked the old one. Otherwise the file stays as it is. Raises CommandError if the file cannot
    be read.
    """
    new = {role: _new_credentials(role) for role in GROUPS}
    try:
        stored = json.loads(path.read_text()) if path.exists() else {}
        credentials = new | stored
        sound = all(credentials[role].keys() == new[role].keys() for role in GROUPS)
    except (OSError, ValueError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise CommandError(f"{path} cannot be read. Restore it, or delete it to have new users.")
    if _is_revoked(credentials["worker"]["token"]):
        credentials["worker"] = new["worker"]
    if credentials != stored:
        installation.write_private(path, json.dumps(credentials, indent=2) + "\n")
    with transaction.atomic():
        for role, group in GROUPS.items():
            _restore_user(group, **credentials[role])
    return credentials


def _new_credentials(role: str) -> dict[str, str]:
    token = {"token": create_token_string()}
    if role == "worker":
        return token
    # Another user may have the name of the role already, and keeps their password.
    taken = User.objects.filter(username=role).exists()
    username = f"{role}-{secrets.token_hex(2)}" if taken else role
    return {"username": username, "password": secrets.token_urlsafe(12)} | token


def _is_revoked(worker_token: str) -> bool:
    valid = Token.objects.filter(digest=hash_token(worker_token), expiry=None)
    return User.objects.filter(username="worker").exists() and not valid.exists()


def _restore_user(
    group: str | None, *, token: str, username: str = "worker", password: str | None = None
) -> None:
    """Make the user and the token if the user is missing; otherwise extend the token's expiry.

    A person's token that somebody revoked, or that a password change ended, is not made again.
    """
    user = User.objects.filter(username=username).first()
    if missing := user is None:
        user = User.objects.create_user(
            username, password=password, is_staff=password is not None, is_superuser=group is None
        )
        if group is not None:
            user.groups.add(Group.objects.get_or_create(name=group)[0])
    expiry = None if group == groups.WORKER else timezone.now() + knox_settings.TOKEN_TTL
    extended = Token.objects.filter(digest=hash_token(token)).update(expiry=expiry)
    if not extended and (missing or group == groups.WORKER):
        # The same fields as knox stores for a token that it makes.
        Token(
            digest=hash_token(token),
            token_key=token[: CONSTANTS.TOKEN_KEY_LENGTH],
            user=user,
            expiry=expiry,
            password_fingerprint=password_fingerprint(user),
            made_for_service=group == groups.WORKER,
        ).save()
