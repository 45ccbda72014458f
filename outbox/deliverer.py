"""Delivery at commit: one deliverer per web process, an event loop in a thread of its own.

No request thread calls Temporal: it hands messages over, and asks its questions here. What the
deliverer does not manage within a message's lease, the relay does by the same code.
"""

import asyncio
import concurrent.futures
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from django.db import Error, close_old_connections

from outbox import delivery
from outbox.models import Message
from temporal import client
from temporal.outcomes import Outcome

log = logging.getLogger(__name__)

IN_FLIGHT: Final = 256
# How long a silent Temporal is left alone; the relay, which keeps asking, delivers meanwhile.
PAUSE_SECONDS: Final = 2.0
# To connect and to call a few times, each bounded by the client.
ANSWER_SECONDS: Final = 5.0
T = TypeVar("T")
Question = Callable[[client.Temporal], Coroutine[Any, Any, T]]


class Deliverer:
    """Delivers what it is handed, up to 256 messages at a time, and settles them in batches."""

    def __init__(self) -> None:
        self._temporal = client.Temporal()
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._unsettled: list[tuple[delivery.Attempt, asyncio.Future[None]]] = []
        self._settling: asyncio.Task[None] | None = None
        self._database = concurrent.futures.ThreadPoolExecutor(1, "deliverer-database")
        self._down_until = 0.0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="deliverer", daemon=True).start()

    def is_paused(self) -> bool:
        """Whether Temporal is known to be down."""
        return time.monotonic() < self._down_until

    def hand_over(self, message: Message) -> None:
        message.delivery = asyncio.run_coroutine_threadsafe(self._deliver(message), self._loop)

    def ask(self, question: Question[T], *, seconds: float) -> T:
        if self.is_paused():
            raise client.Unreachable("Temporal does not answer.")
        asked = asyncio.run_coroutine_threadsafe(self._ask(question), self._loop)
        try:
            return asked.result(seconds)
        except TimeoutError:
            asked.cancel()
            raise client.Unreachable("Temporal does not answer in time.") from None

    async def _ask(self, question: Question[T]) -> T:
        try:
            return await question(self._temporal)
        except client.Unreachable as error:
            self._heard(down=error.down)
            raise

    def _heard(self, *, down: bool) -> None:
        self._down_until = time.monotonic() + PAUSE_SECONDS if down else 0.0

    async def _deliver(self, message: Message) -> Outcome | None:
        async with self._slots:
            attempt = await delivery.attempt(self._temporal, message)
        if attempt.down is not None:
            self._heard(down=attempt.down)
        settled = self._loop.create_future()
        self._unsettled.append((attempt, settled))
        if self._settling is None or self._settling.done():
            self._settling = self._loop.create_task(self._settle())
        await settled
        return attempt.outcome

    async def _settle(self) -> None:
        while self._unsettled:
            batch, self._unsettled = self._unsettled, []
            attempts = [attempt for attempt, _ in batch]
            try:
                await self._loop.run_in_executor(self._database, _settle_in_thread, attempts)
            except Error:
                # The leases run out, and the relay finds that the messages were delivered.
                log.exception("%d delivered messages could not be settled", len(batch))
            finally:
                for _, settled in batch:
                    settled.set_result(None)


def _settle_in_thread(attempts: list[delivery.Attempt]) -> None:
    close_old_connections()
    try:
        delivery.settle(attempts, now=delivery.database_now())
    finally:
        close_old_connections()


_active = False
_deliverer: tuple[int, Deliverer] | None = None
_making = threading.Lock()


def activate() -> None:
    """Let this process, or those forked from it, deliver at commit. Called by the WSGI entry."""
    global _active
    _active = True


def is_ready() -> bool:
    """Whether a message that is committed now is delivered from here."""
    return _active and not _of_this_process().is_paused()


def hand_over(message: Message) -> None:
    """Deliver a committed message from this process."""
    _of_this_process().hand_over(message)


def ask(question: Question[T], *, seconds: float = ANSWER_SECONDS) -> T:
    """What Temporal answers, asked from this process; never within a transaction.

    Raises Unreachable when there is no answer after `seconds`, and at once while Temporal is known
    to be down. What was asked for may have been done.
    """
    return _of_this_process().ask(question, seconds=seconds)


def _of_this_process() -> Deliverer:
    # Neither a thread nor a Temporal client survives a fork.
    global _deliverer
    with _making:
        if _deliverer is None or _deliverer[0] != os.getpid():
            _deliverer = (os.getpid(), Deliverer())
        return _deliverer[1]
