"""The relay: delivers due messages, as long as it runs."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from asgiref.sync import sync_to_async
from django.db import Error, close_old_connections

from outbox import delivery
from outbox.models import Message
from temporal import client

log = logging.getLogger(__name__)

BATCH = 256
POLL_SECONDS = 0.25
PROBE_SECONDS = 1.0
ALARM_AGE = timedelta(seconds=60)
ALARM_EVERY = timedelta(seconds=60)


class Relay:
    """Runs steps until stopped. While Temporal does not answer, the relay tries one message a
    second; the others stay due, and go as soon as Temporal is back."""

    def __init__(self) -> None:
        self._temporal = client.Temporal()
        self._stopping = asyncio.Event()
        self._down = False
        self._alarmed_at: datetime | None = None

    def stop(self) -> None:
        """Finish the step under way, then return from :meth:`run`."""
        self._stopping.set()

    async def run(self) -> None:
        while not self._stopping.is_set():
            try:
                pause = await self.step()
            except Error as error:
                log.error("The database does not answer (%s); trying again.", type(error).__name__)  # noqa: TRY400
                pause = PROBE_SECONDS
            if pause:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause)

    async def step(self) -> float:
        """Lease, deliver and settle one batch; the seconds to pause before the next."""
        messages = await self.lease(1 if self._down else BATCH)
        if not messages:
            return POLL_SECONDS
        attempts = await asyncio.gather(
            *(delivery.attempt(self._temporal, message) for message in messages)
        )
        answers = [attempt.down for attempt in attempts if attempt.down is not None]
        if answers and self._down != any(answers):
            self._down = any(answers)
            log.info("Temporal %s", "does not answer" if self._down else "answers again")
        await self.settle(attempts)
        # Without an answer from Temporal, the next step asks at once.
        return PROBE_SECONDS if any(answers) else 0

    @sync_to_async
    def settle(self, attempts: Sequence[delivery.Attempt]) -> None:
        """Store the results of the attempts. Raises Error."""
        delivery.settle(attempts, now=delivery.database_now())

    @sync_to_async
    def lease(self, limit: int) -> list[Message]:
        """Take up to `limit` due messages from the database. Raises Error."""
        close_old_connections()
        now = delivery.database_now()
        self._alarm(now)
        return delivery.lease_due(now=now, limit=limit)

    def _alarm(self, now: datetime) -> None:
        if self._alarmed_at is not None and now - self._alarmed_at < ALARM_EVERY:
            return
        oldest = delivery.oldest_waiting()
        if oldest is not None and now - oldest.created_at >= ALARM_AGE:
            self._alarmed_at = now
            log.error(
                "%s has waited %d s for its delivery, %d attempts; last: %s",
                oldest.key,
                (now - oldest.created_at).total_seconds(),
                oldest.attempts,
                oldest.last_error or "none yet",
            )
