"""Delivery at commit: one deliverer per web process, on the process's Temporal loop.

The relay delivers by the same code the messages that the deliverer does not settle within their
lease.
"""

import asyncio
import concurrent.futures
import logging
import threading
from typing import Final

from django.db import Error, close_old_connections

from outbox import relay
from outbox.models import Message
from temporal import loop
from temporal.outcomes import Outcome

log = logging.getLogger(__name__)

IN_FLIGHT: Final = 256


class Deliverer:
    """Delivers what it is handed, up to 256 messages at a time, and settles them in batches."""

    def __init__(self, on: loop.Loop) -> None:
        self.loop = on
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._unsettled: list[tuple[relay.Attempt, asyncio.Future[None]]] = []
        self._settling: asyncio.Task[None] | None = None
        self._database = concurrent.futures.ThreadPoolExecutor(1, "deliverer-database")

    async def deliver(self, message: Message) -> Outcome | None:
        """Attempt and settle; None where the message is to be tried again."""
        async with self._slots:
            attempt = await relay.try_once(self.loop.temporal, message)
        if attempt.down is not None:
            self.loop.note(down=attempt.down)
        settled = asyncio.get_running_loop().create_future()
        self._unsettled.append((attempt, settled))
        if self._settling is None or self._settling.done():
            self._settling = asyncio.create_task(self._settle())
        await settled
        return attempt.outcome

    async def _settle(self) -> None:
        running = asyncio.get_running_loop()
        while self._unsettled:
            batch, self._unsettled = self._unsettled, []
            attempts = [attempt for attempt, _ in batch]
            try:
                await running.run_in_executor(self._database, _settle_in_thread, attempts)
            except Error:
                # The leases run out, and the relay finds that the messages were delivered.
                log.exception("%d delivered messages could not be settled", len(batch))
            finally:
                for _, settled in batch:
                    settled.set_result(None)


def _settle_in_thread(attempts: list[relay.Attempt]) -> None:
    close_old_connections()
    try:
        relay.settle(attempts, now=relay.database_now())
    finally:
        close_old_connections()


_active = False
_deliverer: Deliverer | None = None
_making = threading.Lock()


def activate() -> None:
    """Let this process, or those forked from it, deliver at commit. Called by the WSGI entry."""
    global _active
    _active = True


def is_ready() -> bool:
    """Whether this process delivers a message that it commits now."""
    return _active and not loop.current().is_paused()


def hand_over(message: Message) -> None:
    """Deliver a committed message from this process."""
    global _deliverer
    running = loop.current()
    with _making:
        if _deliverer is None or _deliverer.loop is not running:
            _deliverer = Deliverer(running)
    message.report = running.submit(_deliverer.deliver(message))
