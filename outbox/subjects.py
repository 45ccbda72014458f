"""The subjects of messages, in words for people. Each domain registers the prefixes of its keys."""

from collections.abc import Callable
from typing import NamedTuple


class Subject(NamedTuple):
    """`words` and `name` read as one text: "decision on", "lunch-1". `url` is the page of the
    named record, for people with `permission`; both "" where there is no page."""

    words: str
    name: str
    url: str = ""
    permission: str = ""

    def __str__(self) -> str:
        return f"{self.words} {self.name}"


_SUBJECTS: dict[str, Callable[[str], Subject]] = {}


def register(prefix: str, *, words: str, url: Callable[[str], str], permission: str) -> None:
    """Register the subject of the keys that start with `prefix`, which ends with its only colon.

    The rest of such a key is the name of a record, and `url` returns the page of the record
    without a query.
    """
    _SUBJECTS[prefix] = lambda name: Subject(words, name, url(name), permission)


def of(key: str) -> Subject:
    """The subject of the message with this key."""
    prefix, colon, name = key.partition(":")
    describe = _SUBJECTS.get(prefix + colon)
    return describe(name) if describe else Subject("message", key)
