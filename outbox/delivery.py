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
    """What one delivery attempt came to: an outcome, or None and why to try again. `down` says
    whether Temporal was silent; None where it was not asked."""

    message: Message
    outcome: Outcome | None
    error: str = ""
    down: bool | None = None


async def attempt(temporal: client.Temporal, message: Message) -> Attempt:
    """Try to deliver `message` once, within ATTEMPT_SECONDS. Raises nothing: whatever goes wrong
    is a reason to try again."""
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
    except Exception as error:  # a poison row waits for its mend; it stops no other
        log.exception("%s waits for delivery", message.key)
        return Attempt(message, None, f"{type(error).__name__}; see the log.")
    level = logging.ERROR if outcome in ALARMING else logging.INFO
    log.log(level, "%s: %s", message.key, outcome.label)
    return Attempt(message, outcome, down=False)


def database_now() -> datetime:
    """The database's clock: the one clock of all relays. Aware, UTC."""
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
    """Take up to `limit` due messages, oldest due first, pushing each into the future before any
    work is done on it. Two relays never take the same message within a lease."""
    free = Q(due_at__lte=now) | Q(due_at__gt=longest_hold(now))
    due = Message.objects.filter(free, settled_at=None).order_by("due_at", "pk")
    if not due.exists():  # an idle relay takes no write lock
        return []
    with transaction.atomic():
        if connection.features.has_select_for_update_skip_locked:
            due = due.select_for_update(skip_locked=True)
        # Elsewhere (SQLite) the transaction is IMMEDIATE: one writer at a time.
        messages = take(due[:limit], now=now, limit=limit)
        Message.objects.filter(pk__in=[message.pk for message in messages]).update(
            due_at=lease_end(now)
        )
    return messages


def settle(attempts: Iterable[Attempt], *, now: datetime) -> None:
    """Store what the attempts came to. A message settles once, by who holds it: an attempt that
    outlived its lease changes nothing, and the one that follows finds what it did."""
    of = {attempt.message.pk: attempt for attempt in attempts}
    with transaction.atomic():
        # In one order, so that two who settle the same messages wait and do not deadlock.
        for message in Message.objects.select_for_update().filter(pk__in=of).order_by("pk"):
            changes = settlement(message, of[message.pk], now=now, jitter=random.random())  # noqa: S311
            if changes:
                Message.objects.filter(pk=message.pk).update(**changes)


# The rules of a step: functions of messages, the time and what an attempt came to.


def lease_end(now: datetime) -> datetime:
    """Until when a message that is leased now is left to its holder."""
    return now + RELAY_LEASE


def longest_hold(now: datetime) -> datetime:
    """Nothing is held beyond this: such a due time is from before the clock was set back.

    It is more than a lease, since another relay may have read the clock after this one did.
    """
    return now + 2 * RELAY_LEASE


def take(messages: Iterable[Message], *, now: datetime, limit: int) -> list[Message]:
    """Lease up to `limit` of the messages that wait for an attempt, oldest due first: their
    `due_at` is the end of the lease.

    Those with an outcome and those that somebody holds are passed over.
    """
    end, longest = lease_end(now), longest_hold(now)
    free = [one for one in messages if one.settled_at is None and not now < one.due_at <= longest]
    taken = sorted(free, key=lambda one: (one.due_at, one.pk))[:limit]
    for one in taken:
        one.due_at = end
    return taken


def settlement(
    message: Message, attempt: Attempt, *, now: datetime, jitter: float
) -> dict[str, Any]:
    """The fields that `attempt` changes on `message`, given as it is now; none where it has an
    outcome, or where its lease ended and its due time was moved since: by another who took it, or
    by an operator. `jitter` is from 0 to 1."""
    if message.outcome is not None or message.due_at != attempt.message.due_at:
        return {}
    changes = {"attempts": message.attempts + 1, "last_error": attempt.error}
    if attempt.outcome is None:
        return {**changes, "due_at": now + backoff(message.attempts, jitter=jitter)}
    return {**changes, "outcome": attempt.outcome, "settled_at": now}


def backoff(attempts: int, *, jitter: float) -> timedelta:
    """1 s doubling to 10 s, a fifth less to a fifth more by `jitter` (0 to 1) so that a crowd does
    not return together. No last try."""
    seconds = min(2.0 ** min(attempts, 10), LONGEST_BACKOFF_SECONDS)
    return timedelta(seconds=seconds * (0.8 + 0.4 * jitter))


def oldest_waiting(*, now: datetime) -> tuple[timedelta, Message] | None:
    """The age and the message that waits longest for its delivery; None when none waits."""
    message = Message.objects.filter(settled_at=None).order_by("created_at").first()
    return (now - message.created_at, message) if message else None
