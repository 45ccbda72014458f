"""The paths of the API, and how a path names a record."""

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

from django.db.models import Model, QuerySet
from django.http import Http404, HttpResponseBase
from django.urls import URLPattern, re_path

# A UUID or an id of the record's own, in one segment. A record whose id has a slash is reached by
# its UUID only.
REF: Final = r"(?P<ref>[^/]+)"
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_Record = TypeVar("_Record", bound=Model)


def route(path: str, view: Callable[..., HttpResponseBase]) -> URLPattern:
    """Serve `path`, a regular expression, with and without a slash at its end."""
    return re_path(rf"^{path}/?$", view)


def find(records: QuerySet[_Record], ref: str, *own_ids: str) -> _Record:
    """Return the record that `ref` names: by its UUID, else by the first of the fields `own_ids`.

    The UUID comes first, because people choose the other ids: one that looks like the UUID of
    another record must not take its place (requirements X7). Raises Http404.
    """
    conditions: list[dict[str, Any]] = [{name: ref} for name in own_ids]
    if _UUID.fullmatch(ref):
        conditions.insert(0, {"pk": ref})
    # No database compares NUL.
    if "\0" not in ref:
        for condition in conditions:
            if found := records.filter(**condition).first():
                return found
    raise Http404
