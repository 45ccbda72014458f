"""The subjects of messages, in words for people. Each domain registers the prefixes of its keys."""

from collections.abc import Callable
from typing import NamedTuple

from django.contrib.admin.utils import quote
from django.db.models import Model
from django.urls import reverse


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


def register(prefix: str, *, words: str, model: type[Model], own_id: str) -> None:
    """Register the subject of the keys that start with `prefix`, which ends with its only colon.

    The rest of such a key is the `own_id` of a record of `model`; its page is in the admin.
    """
    permission = f"{model._meta.app_label}.view_{model._meta.model_name}"
    _SUBJECTS[prefix] = lambda value: Subject(words, value, page(model, own_id, value), permission)


def page(model: type[Model], own_id: str, value: str) -> str:
    """Return the path of the record's page in the admin, by its own id."""
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}_change"
    return reverse(name, args=[quote(value)], query={"_to_field": own_id})


def describe(key: str) -> Subject:
    """Return the subject of the message with this key."""
    prefix, colon, name = key.partition(":")
    subject_of = _SUBJECTS.get(prefix + colon)
    return subject_of(name) if subject_of else Subject("message", key)
