"""The event loop of a web process, in a thread of its own: requests ask Temporal there.

A request thread only waits for the loop's answer.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from temporal import client

# How long nobody asks a silent Temporal; the relay, which keeps asking, delivers meanwhile.
PAUSE_SECONDS: Final = 2.0
# To connect and to call a few times, each bounded by the client.
ANSWER_SECONDS: Final = 5.0
T = TypeVar("T")
Question = Callable[[client.Temporal], Coroutine[Any, Any, T]]


class Loop:
    """Runs coroutines with one connection, and remembers whether Temporal is down."""

    def __init__(self) -> None:
        self.temporal = client.Temporal()
        self._down_until = 0.0
        self._event_loop = asyncio.new_event_loop()
        threading.Thread(target=self._event_loop.run_forever, name="temporal", daemon=True).start()

    def is_paused(self) -> bool:
        """Whether Temporal was silent less than :data:`PAUSE_SECONDS` ago."""
        return time.monotonic() < self._down_until

    def note(self, *, down: bool) -> None:
        """Remember whether Temporal was silent just now."""
        self._down_until = time.monotonic() + PAUSE_SECONDS if down else 0.0

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run the coroutine on this loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._event_loop)

    def ask(self, question: Question[T], *, seconds: float) -> T:
        if self.is_paused():
            raise client.Unreachable("Temporal does not answer.")
        asked = self.submit(self._ask(question))
        try:
            return asked.result(seconds)
        except TimeoutError:
            asked.cancel()
            raise client.Unreachable("Temporal does not answer in time.") from None

    async def _ask(self, question: Question[T]) -> T:
        try:
            return await question(self.temporal)
        except client.Unreachable as error:
            self.note(down=error.down)
            raise


_current: tuple[int, Loop] | None = None
_making = threading.Lock()


def current() -> Loop:
    """Return the loop of this process. Neither a thread nor a connection survives a fork."""
    global _current
    with _making:
        if _current is None or _current[0] != os.getpid():
            _current = (os.getpid(), Loop())
        return _current[1]


def ask(question: Question[T], *, seconds: float = ANSWER_SECONDS) -> T:
    """Ask Temporal from this process; never within a transaction.

    Raises Unreachable when there is no answer after `seconds`, and at once while Temporal is known
    to be down. What was asked for may have been done.
    """
    return current().ask(question, seconds=seconds)
