"""Lease, attempt and settle messages: the code that the deliverer and the relay share."""

import asyncio
import logging
import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Q

from outbox import handlers
from outbox.models import ALARMING, Message
from temporal import addresses, client
from temporal.outcomes import Outcome

log = logging.getLogger(__name__)

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


async def attempt(temporal: client.Temporal, message: Message) -> Attempt:
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
    """The database's clock, which all relays use. Aware, UTC."""
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
    """The fields of the stored `message` that `attempt` changes.

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
    """The message that has waited longest for its delivery; None when none waits."""
    return Message.objects.filter(settled_at=None).order_by("created_at").first()
