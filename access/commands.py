"""What commands share: the user whom a command line names."""

from typing import Final

from django.contrib.auth.models import User
from django.core.management.base import CommandError

from access.text import is_opaque_id

# Django's limit for usernames.
_NAME_LENGTH: Final = 150


def active_user(username: str) -> User:
    """Return the active user of this name. Raises CommandError."""
    # Bytes of a command line that are not UTF-8 become lone surrogates, which no database takes.
    user = is_opaque_id(username, _NAME_LENGTH) and User.objects.filter(username=username).first()
    if not user:
        raise CommandError(f"There is no user {username!r}. Add one in the admin first.")
    if not user.is_active:
        raise CommandError(f"The user {username!r} is not active. Activate it in the admin.")
    return user
