"""Deliver messages to Temporal: lease, attempt and settle them, and try again after a back-off.

The relay does this as long as it runs. The deliverer of a web process uses the same functions for
the messages that the process has just committed.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.db import Error, close_old_connections, connection, transaction
from django.db.models import Q

from outbox import handlers
from outbox.models import ALARMING, Message
from temporal import addresses, client
from temporal.outcomes import Outcome

log = logging.getLogger(__name__)

BATCH = 256
POLL_SECONDS = 0.25
PROBE_SECONDS = 1.0
ALARM_AGE = timedelta(seconds=60)
ALARM_EVERY = timedelta(seconds=60)
ATTEMPT_SECONDS = 8.0
# Longer than any attempt, so that a lease ends only when its holder is gone or frozen.
RELAY_LEASE = timedelta(seconds=15)
LONGEST_BACKOFF_SECONDS = 10.0


@dataclass(frozen=True)
class Attempt:
    """The result of one delivery attempt: an outcome, or None and the reason to try again.

    `down` is True where Temporal did not answer, None where the attempt did not ask it.
    """

    message: Message
    outcome: Outcome | None
    error: str = ""
    down: bool | None = None


async def try_once(temporal: client.Temporal, message: Message) -> Attempt:
    """Try to deliver `message` once, within ATTEMPT_SECONDS. Raises nothing: every error is a
    reason to try again."""
    try:
        async with asyncio.timeout(ATTEMPT_SECONDS):
            outcome = await handlers.HANDLERS[message.kind](temporal, message.payload)
    except client.Unreachable as error:
        log.info("%s waits for delivery: %s", message.key, error)
        return Attempt(message, None, str(error), down=error.down)
    except TimeoutError:
        log.info("%s waits for delivery: no answer within the attempt", message.key)
        return Attempt(message, None, "Temporal does not answer in time.", down=True)
    except addresses.Unreadable as error:
        log.error("%s waits for delivery: %s", message.key, error)  # noqa: TRY400
        return Attempt(message, None, str(error))
    except Exception as error:  # a poison row waits until somebody repairs it; it stops no other
        log.exception("%s waits for delivery", message.key)
        return Attempt(message, None, f"{type(error).__name__}; see the log.")
    level = logging.ERROR if outcome in ALARMING else logging.INFO
    log.log(level, "%s: %s", message.key, outcome.label)
    return Attempt(message, outcome, down=False)


def database_now() -> datetime:
    """Return the time of the database's clock, which all relays use. Aware, UTC."""
    postgresql = connection.vendor == "postgresql"
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT clock_timestamp()"
            if postgresql
            else "SELECT strftime('%Y-%m-%dT%H:%M:%f', 'now')"
        )
        (value,) = cursor.fetchone()
    return value if postgresql else datetime.fromisoformat(value).replace(tzinfo=UTC)


def lease_due(*, now: datetime, limit: int) -> list[Message]:
    """Lease up to `limit` due messages, the oldest due first: push `due_at` to the end of the
    lease, before any work is done. Two relays never lease the same message within a lease."""
    # Nobody holds a message longer than a lease, so a later due time is from before the clock was
    # set back. Two leases, since another relay may have read the clock after this relay did.
    free = Q(due_at__lte=now) | Q(due_at__gt=now + 2 * RELAY_LEASE)
    due = Message.objects.filter(free, settled_at=None).order_by("due_at", "pk")
    if not due.exists():  # an idle relay takes no write lock
        return []
    end = now + RELAY_LEASE
    with transaction.atomic():
        if connection.features.has_select_for_update_skip_locked:
            due = due.select_for_update(skip_locked=True)
        # Elsewhere (SQLite) the transaction is IMMEDIATE: one writer at a time.
        leased = list(due[:limit])
        Message.objects.filter(pk__in=[message.pk for message in leased]).update(due_at=end)
    for message in leased:
        message.due_at = end
    return leased


def settle(attempts: Iterable[Attempt], *, now: datetime) -> None:
    """Store the results of attempts. Only the holder of a message settles it: an attempt that
    outlived its lease changes nothing, and the next attempt finds what it did."""
    by_message = {attempt.message.pk: attempt for attempt in attempts}
    with transaction.atomic():
        # In one order, so that two who settle the same messages wait and do not deadlock.
        rows = Message.objects.select_for_update().filter(pk__in=by_message).order_by("pk")
        for row in rows:
            changes = settlement(row, by_message[row.pk], now=now, jitter=random.random())  # noqa: S311
            if changes:
                Message.objects.filter(pk=row.pk).update(**changes)


def settlement(
    message: Message, attempt: Attempt, *, now: datetime, jitter: float
) -> dict[str, Any]:
    """Return the fields of the stored `message` that `attempt` changes.

    Empty where the message has an outcome, or where its due time is no longer the end of the
    attempt's lease: another relay or an operator has moved it. `jitter` is from 0 to 1.
    """
    if message.outcome is not None or message.due_at != attempt.message.due_at:
        return {}
    changes = {"attempts": message.attempts + 1, "last_error": attempt.error}
    if attempt.outcome is None:
        return {**changes, "due_at": now + backoff(message.attempts, jitter=jitter)}
    return {**changes, "outcome": attempt.outcome, "settled_at": now}


def backoff(attempts: int, *, jitter: float) -> timedelta:
    """1 s doubling to 10 s, a fifth less to a fifth more by `jitter` (0 to 1) so that a crowd does
    not return together. Attempts have no limit."""
    seconds = min(2.0 ** min(attempts, 10), LONGEST_BACKOFF_SECONDS)
    return timedelta(seconds=seconds * (0.8 + 0.4 * jitter))


def oldest_waiting() -> Message | None:
    """Return the message that has waited longest for its delivery; None when none waits."""
    return Message.objects.filter(settled_at=None).order_by("created_at").first()


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
        """Lease, deliver and settle one batch. Return the seconds to pause before the next."""
        messages = await self.lease(1 if self._down else BATCH)
        if not messages:
            return POLL_SECONDS
        attempts = await asyncio.gather(
            *(try_once(self._temporal, message) for message in messages)
        )
        silences = [attempt.down for attempt in attempts if attempt.down is not None]
        if silences and self._down != any(silences):
            self._down = any(silences)
            log.info("Temporal %s", "does not answer" if self._down else "answers again")
        await self.settle(attempts)
        # Pause only after an attempt that Temporal did not answer.
        return PROBE_SECONDS if any(silences) else 0

    @sync_to_async
    def settle(self, attempts: Sequence[Attempt]) -> None:
        """Store the results of the attempts. Raises Error."""
        settle(attempts, now=database_now())

    @sync_to_async
    def lease(self, limit: int) -> list[Message]:
        """Take up to `limit` due messages from the database. Raises Error."""
        close_old_connections()
        now = database_now()
        self._alarm(now)
        return lease_due(now=now, limit=limit)

    def _alarm(self, now: datetime) -> None:
        if self._alarmed_at is not None and now - self._alarmed_at < ALARM_EVERY:
            return
        oldest = oldest_waiting()
        if oldest is not None and now - oldest.created_at >= ALARM_AGE:
            self._alarmed_at = now
            log.error(
                "%s has waited %d s for its delivery, %d attempts; last: %s",
                oldest.key,
                (now - oldest.created_at).total_seconds(),
                oldest.attempts,
                oldest.last_error or "none yet",
            )
