"""Lease, attempt and settle messages: the code that the deliverer and the relay share."""

import asyncio
import logging
import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import connection, transaction
from django.db.models import F

from outbox import addresses, client, handlers
from outbox.models import Message, Outcome

log = logging.getLogger(__name__)

ATTEMPT_SECONDS = 8.0
# Longer than any attempt, so that a lease ends only when its holder is gone or frozen.
RELAY_LEASE = timedelta(seconds=15)
LONGEST_BACKOFF_SECONDS = 10.0
_ALARMING = (Outcome.CONFLICT, Outcome.UNDELIVERABLE, Outcome.DEAD)


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
    level = logging.ERROR if outcome in _ALARMING else logging.INFO
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
    due = Message.objects.filter(settled_at=None, due_at__lte=now).order_by("due_at")
    if not due.exists():  # an idle relay takes no write lock
        return []
    with transaction.atomic():
        if connection.features.has_select_for_update_skip_locked:
            due = due.select_for_update(skip_locked=True)
        # Elsewhere (SQLite) the transaction is IMMEDIATE: one writer at a time.
        messages = list(due[:limit])
        Message.objects.filter(pk__in=[message.pk for message in messages]).update(
            due_at=now + RELAY_LEASE
        )
    return messages


def settle(attempts: Iterable[Attempt], *, now: datetime) -> None:
    """Store what the attempts came to. A message settles once; the first outcome stays."""
    with transaction.atomic():
        for attempt in attempts:
            open_message = Message.objects.filter(pk=attempt.message.pk, settled_at=None)
            if attempt.outcome is not None:
                open_message.update(
                    outcome=attempt.outcome,
                    settled_at=now,
                    attempts=F("attempts") + 1,
                    last_error=attempt.error,
                )
            else:
                open_message.update(
                    due_at=now + backoff(attempt.message.attempts),
                    attempts=F("attempts") + 1,
                    last_error=attempt.error,
                )


def backoff(attempts: int) -> timedelta:
    """1 s doubling to 10 s, with jitter so that a crowd does not return together. No last try."""
    seconds = min(2.0 ** min(attempts, 10), LONGEST_BACKOFF_SECONDS)
    return timedelta(seconds=seconds * random.uniform(0.8, 1.2))  # noqa: S311


def oldest_waiting(*, now: datetime) -> tuple[timedelta, Message] | None:
    """The age and the message that waits longest for its delivery; None when none waits."""
    message = Message.objects.filter(settled_at=None).order_by("created_at").first()
    return (now - message.created_at, message) if message else None
