"""Enqueue messages, and wait a moment for their report."""

import concurrent.futures
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db import transaction

from outbox import deliverer, delivery
from outbox.models import Message, Outcome

# A web process delivers its own messages; after this the relay takes over.
COMMIT_LEASE = timedelta(seconds=5)
REPORT_SECONDS = 0.3


def enqueue(kind: str, key: str, payload: dict[str, Any]) -> Message:
    """Insert a message in the caller's transaction and hand it over when that commits.

    Where this process delivers, the message is inserted leased to it; elsewhere, and while
    Temporal is known to be down, it is due at once and the relay takes it. The times are the
    database's: those of the relays.
    """
    deliver_here = deliverer.is_ready()
    now = delivery.database_now()
    message = Message.objects.create(
        kind=kind,
        key=key,
        payload=payload,
        created_at=now,
        due_at=now + COMMIT_LEASE if deliver_here else now,
    )
    if deliver_here:
        # robust: what is committed is not answered with an error for its delivery (E9).
        transaction.on_commit(lambda: deliverer.hand_over(message), robust=True)
    return message


def is_waiting(key: str) -> bool:
    """Whether the message with this key is still to be delivered."""
    return Message.objects.filter(key=key, settled_at=None).exists()


def wait_for_report(messages: Iterable[Message]) -> list[Outcome | None]:
    """Wait up to 300 ms for messages that this thread has committed; the outcome of each, None
    where there is none yet.

    Returns at once where none is under way, as while Temporal is known to be down.
    """
    deliveries = [message.delivery for message in messages]
    under_way = [delivery for delivery in deliveries if delivery is not None]
    if under_way:
        concurrent.futures.wait(under_way, timeout=REPORT_SECONDS)
    return [one.result() if one is not None and one.done() else None for one in deliveries]
