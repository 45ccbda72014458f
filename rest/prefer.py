"""`Prefer: wait=N` (RFC 7240): the client waits for an outcome instead of polling for it."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Final, TypeVar

from django.conf import settings
from rest_framework.request import Request

LONGEST_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1
_WAIT = re.compile(r"\bwait=(\d{1,6})\b")
# A request that waits holds a thread. Half of the threads stay free for other requests.
_waiting = threading.BoundedSemaphore(max(1, settings.WEB_THREADS // 2))

_Record = TypeVar("_Record")


@contextmanager
def wait(request: Request, *, default: float | None = None) -> Iterator[float | None]:
    """Yield the seconds that the request may wait, and keep its place while it waits.

    That is what the client prefers, at most 60, or `default` without a preference; 0 where half of
    the threads wait already.
    """
    preference = _WAIT.search(request.headers.get("Prefer", ""))
    seconds = min(float(preference[1]), LONGEST_SECONDS) if preference else default
    if not seconds:
        yield seconds
    elif _waiting.acquire(blocking=False):
        try:
            yield seconds
        finally:
            _waiting.release()
    else:
        yield 0.0


def wait_until(
    request: Request,
    record: _Record,
    *,
    settled: Callable[[_Record], bool],
    reread: Callable[[_Record], _Record],
) -> tuple[_Record, bool]:
    """Wait, as long as the client prefers, until `record` is settled.

    Returns the record as it then is, and whether the client got what it asked for: True for a
    settled record, and for a client that does not wait.
    """
    with wait(request) as seconds:
        if seconds is None:
            return record, True
        end = monotonic() + seconds
        while not settled(record) and monotonic() < end:
            sleep(_POLL_SECONDS)
            record = reread(record)
        return record, settled(record)
