"""Ids for requests that named none and carry an `Idempotency-Key`."""

from django.contrib.auth.models import User
from django.utils.crypto import salted_hmac


def digest(user: User | None, key: str) -> str:
    """64 hexadecimal digits, the same for the same person and key.

    It is keyed with SECRET_KEY, so nobody else can compute the id that a request will get and
    take it first.
    """
    whose = user and user.pk
    return salted_hmac("rest.idempotency", f"{whose}:{key}", algorithm="sha256").hexdigest()
