"""Ids for submissions that give an `Idempotency-Key` and no id of their own."""

from typing import Final

from django.contrib.auth.models import User
from django.utils.crypto import salted_hmac

KEY_REUSED: Final = "This Idempotency-Key belongs to another request. Send a new key."


def digest(user: User | None, key: str) -> str:
    """Return 64 hexadecimal digits, the same for the same person and key.

    SECRET_KEY goes into them, so nobody else can compute the id of a future submission and take it
    first.
    """
    user_id = user and user.pk
    return salted_hmac("rest.idempotency", f"{user_id}:{key}", algorithm="sha256").hexdigest()
