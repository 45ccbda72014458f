"""The characters and lengths that ids, texts and searches from outside may have."""

import re
import unicodedata
from typing import Any, Final

from django.core.exceptions import ValidationError
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

from worker import contracts

ID_LENGTH = 100
TEXT_LENGTH: Final = contracts.TEXT_LENGTH
SEARCH_LENGTH: Final = 200
SEARCH_TERMS: Final = 5

ID_RULE: Final = (
    f"1 to {ID_LENGTH} characters, is not blank and has no control, bidirectional or zero-width "
    "characters"
)

# Unicode's Default_Ignorable_Code_Point: characters that show nothing. They belong to several
# categories, and Python's tables do not have the property.
_IGNORABLE: Final = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    r"\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff"
)
# These choose the shape of the character before them. Emoji, Persian and Japanese need them.
_SHAPING: Final = r"\u180b-\u180d\u180f\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef"
# The categories of control and format characters, lone surrogates, and separators of lines and
# paragraphs.
_NOT_IN_IDS: Final = ("Cc", "Cf", "Cs", "Zl", "Zp")
_INVISIBLE: Final = re.compile(rf"[{_IGNORABLE}]")
_MARKED: Final = re.compile(rf"[{_IGNORABLE}\u2028\u2029\ufff9-\ufffb](?<![{_SHAPING}])")


def is_opaque_id(value: str, max_length: int = ID_LENGTH) -> bool:
    """Whether `value` may be an id (requirements E8).

    An id has 1 to `max_length` characters and is not blank. It has no control, bidirectional or
    zero-width characters, because a person could decide one of two ids that look alike in place of
    the other. It has no U+FFFD, which replaces bytes that cannot be decoded. Ids are never trimmed.
    """
    return (
        0 < len(value) <= max_length
        and not value.isspace()
        and "\ufffd" not in value
        and not any(unicodedata.category(character) in _NOT_IN_IDS for character in value)
        and not _INVISIBLE.search(value)
    )


def validate_opaque_id(value: str) -> None:
    """Raise ValidationError unless `value` is an opaque id of at most 100 characters."""
    if not is_opaque_id(value):
        raise ValidationError(f"An id has {ID_RULE}.", code="invalid_id")


def clean_text(value: str, *, field: str) -> str:
    """Remove the white space around `value`.

    Raises ValidationError, which names `field`, for more than 2,000 characters and for characters
    that a database cannot store (NUL, lone surrogates).
    """
    value = value.strip()
    if len(value) > TEXT_LENGTH:
        raise ValidationError(f"The {field} has more than {TEXT_LENGTH} characters; shorten it.")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValidationError(f"The {field} has characters that cannot be stored; remove them.")
    return value


def mark_invisible(text: str) -> str:
    """Replace each bidirectional or zero-width character by a visible mark such as ‹U+202E›.

    Characters that shape the character before them, as in emoji, stay.
    """
    return _MARKED.sub(lambda found: f"‹U+{ord(found[0]):04X}›", text)


def search_fault(search: str, *, terms: int = 1) -> str:
    """A sentence that says why a search is refused; "" for a search that may run.

    Each term costs one more comparison with every row (requirements X11).
    """
    if len(search) > SEARCH_LENGTH:
        return f"A search has at most {SEARCH_LENGTH} characters; shorten it."
    if terms > SEARCH_TERMS:
        return f"A search has at most {SEARCH_TERMS} words; leave some out."
    return ""


class OpaqueIdField(models.CharField):  # type: ignore[type-arg]
    """An opaque id, compared and ordered by code point on every database.

    SQLite compares bytes of UTF-8, which gives the order of code points. PostgreSQL needs the
    collation "C" for it.
    """

    def formfield(self, **kwargs: Any) -> Any:
        """A form does not trim the id either."""
        return super().formfield(**{"strip": False, **kwargs})

    def db_parameters(self, connection: BaseDatabaseWrapper) -> dict[str, Any]:
        parameters = super().db_parameters(connection)
        if connection.vendor == "postgresql":
            parameters["collation"] = "C"
        return parameters
