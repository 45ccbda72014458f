"""`Prefer: wait=N` (RFC 7240): a client that would rather wait for an outcome than poll for it."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from django.conf import settings
from rest_framework.request import Request

LONGEST_SECONDS: Final = 60.0
_WAIT = re.compile(r"\bwait=(\d{1,6})\b")
# A request that waits holds a thread; half of them stay free for those that do not.
_waiting = threading.BoundedSemaphore(max(1, settings.WEB_THREADS // 2))


@contextmanager
def wait(request: Request, *, default: float | None = None) -> Iterator[float | None]:
    """Within it the request may wait for so many seconds: as many as the client prefers, at most
    60, or `default` where it says nothing; 0 where half of the threads wait already."""
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
