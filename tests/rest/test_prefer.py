"""How long a request may wait for an outcome."""

from contextlib import ExitStack
from typing import Any

import pytest
from django.conf import settings
from django.test import RequestFactory
from rest_framework.request import Request

from rest import prefer


def request(header: str | None = None) -> Request:
    headers: Any = {"Prefer": header} if header else {}
    return Request(RequestFactory().get("/", headers=headers))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=5", 5),
        ("respond-async, wait=7", 7),
        ("wait=0", 0),
        ("wait=60", 60),
        ("wait=999999", 60),
        *((odd, None) for odd in (None, "wait", "wait=", "wait=x", "wait=-1", "await=5", "\xe9")),
    ],
)
def test_the_wait_is_what_the_client_prefers_up_to_a_minute(
    header: str | None, seconds: float | None
) -> None:
    """E12, J1: without a preference it is the default of the endpoint."""
    with prefer.wait(request(header)) as granted:
        assert granted == seconds
    with prefer.wait(request(header), default=10) as granted:
        assert granted == (10 if seconds is None else seconds)


def test_half_of_the_threads_may_wait() -> None:
    """E12, J1: the next request may not. A request that does not wait takes no place, and an error
    frees the place."""
    for _ in range(2):
        with ExitStack() as waiting, pytest.raises(RuntimeError):
            for seconds in (0, 5):
                for _ in range(settings.WEB_THREADS // 2):
                    wait = prefer.wait(request(f"wait={seconds}"))
                    assert waiting.enter_context(wait) == seconds
            assert waiting.enter_context(prefer.wait(request("wait=5"))) == 0
            assert waiting.enter_context(prefer.wait(request(), default=10)) == 0
            assert waiting.enter_context(prefer.wait(request())) is None
            raise RuntimeError
