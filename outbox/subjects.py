"""What messages are about, for people. The outbox knows no domain: each registers the prefixes of
its keys."""

from collections.abc import Callable
from typing import NamedTuple


class Subject(NamedTuple):
    """`words` and `name` read as one: "decision on", "lunch-1". `url` is the page of what has
    that name, for those with `permission`; both "" where there is none."""

    words: str
    name: str
    url: str = ""
    permission: str = ""

    def __str__(self) -> str:
        return f"{self.words} {self.name}"


_SUBJECTS: dict[str, Callable[[str], Subject]] = {}


def register(prefix: str, *, words: str, url: Callable[[str], str], permission: str) -> None:
    """Say what keys are about that consist of `prefix`, which ends with its only colon, and a
    name; `url` makes the address of the name's page, without asking the database."""
    _SUBJECTS[prefix] = lambda name: Subject(words, name, url(name), permission)


def of(key: str) -> Subject:
    """What the message with this key is about."""
    prefix, colon, name = key.partition(":")
    describe = _SUBJECTS.get(prefix + colon)
    return describe(name) if describe else Subject("message", key)
