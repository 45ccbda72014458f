"""What ids and texts from outside may contain (design rule 7)."""

import unicodedata
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

ID_LENGTH = 100
TEXT_LENGTH = 2000


def is_opaque_id(value: str, max_length: int = ID_LENGTH) -> bool:
    """Whether `value` may be an id: 1 to `max_length` characters, not blank, no control
    characters, no U+FFFD (what undecodable bytes become). Ids are never trimmed."""
    return (
        len(value) <= max_length
        and not value.isspace()
        and value != ""
        and "\ufffd" not in value
        and not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)
    )


def validate_opaque_id(value: str) -> None:
    """Raise ValidationError unless `value` is an opaque id of at most 100 characters."""
    if not is_opaque_id(value):
        raise ValidationError(
            f"An id has 1 to {ID_LENGTH} characters, is not blank and has no control characters.",
            code="invalid_id",
        )


def clean_text(value: str, *, field: str) -> str:
    """`value` without surrounding white space.

    Raises ValidationError, naming `field`, for more than 2,000 characters and for characters
    that no database stores (NUL, lone surrogates).
    """
    value = value.strip()
    if len(value) > TEXT_LENGTH:
        raise ValidationError(f"The {field} has more than {TEXT_LENGTH} characters; shorten it.")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValidationError(f"The {field} has characters that cannot be stored; remove them.")
    return value


class OpaqueIdField(models.CharField):  # type: ignore[type-arg]
    """An opaque id, compared and ordered by code point on every database.

    SQLite compares bytes of UTF-8, which is the order of code points; PostgreSQL is told to.
    """

    def formfield(self, **kwargs: Any) -> Any:
        """Never trimmed, in a form either."""
        return super().formfield(**{"strip": False, **kwargs})

    def db_parameters(self, connection: BaseDatabaseWrapper) -> dict[str, Any]:
        parameters = super().db_parameters(connection)
        if connection.vendor == "postgresql":
            parameters["collation"] = "C"
        return parameters
