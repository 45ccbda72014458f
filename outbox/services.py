"""Enqueue, supersede and retry messages; wait a moment for the report of their delivery."""

import concurrent.futures
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Case, DateTimeField, F, Q, QuerySet, When
from django.db.models.functions import Coalesce

from outbox import deliverer, relay
from outbox.models import NEEDS_ATTENTION, Message
from temporal.outcomes import Outcome

# A web process delivers its own messages; after this time the relay takes over.
COMMIT_LEASE = timedelta(seconds=5)
REPORT_SECONDS = 0.3


def enqueue(kind: str, key: str, payload: dict[str, Any]) -> Message:
    """Insert a message in the caller's transaction and hand it over when that commits.

    Where this process delivers, the message is inserted leased to it. In other processes, and
    while Temporal is known to be down, it is due at once and the relay takes it. The times are the
    database's, which the relays use too.
    """
    deliver_here = deliverer.is_ready()
    now = relay.database_now()
    message = Message.objects.create(
        kind=kind,
        key=key,
        payload=payload,
        created_at=now,
        due_at=now + COMMIT_LEASE if deliver_here else now,
    )
    if deliver_here:
        # robust: an error in the delivery must not fail a request that has committed (E9).
        transaction.on_commit(lambda: deliverer.hand_over(message), robust=True)
    return message


def enqueue_again(kind: str, key: str, payload: dict[str, Any]) -> bool:
    """Have the relay deliver an effect once more.

    A settled message is opened again with this payload, and without the attempts and the error of
    the earlier delivery; a missing message is inserted. Returns False where a message with this key
    waits already. Concurrent calls queue the effect once.
    """
    now = relay.database_now()
    again = {"kind": kind, "payload": payload, "created_at": now, "due_at": now}
    again |= {"attempts": 0, "last_error": ""}
    settled = Message.objects.filter(key=key, settled_at__isnull=False)
    if settled.update(**again, outcome=None, settled_at=None):
        return True
    return Message.objects.get_or_create(key=key, defaults=again)[1]


def supersede(key: str) -> None:
    """Mark a message that ended with an alarm as OBSOLETE: its effect happens in another way."""
    Message.objects.filter(NEEDS_ATTENTION, key=key).update(
        outcome=Outcome.OBSOLETE, last_error="Superseded: the workflow is started again."
    )


def mark_obsolete(keys: Iterable[str], *, why: str) -> None:
    """Mark messages that wait or alarm as OBSOLETE: their workflow needs them no longer. An attempt
    under way changes nothing any more."""
    Message.objects.filter(Q(settled_at=None) | NEEDS_ATTENTION, key__in=keys).update(
        outcome=Outcome.OBSOLETE,
        settled_at=Coalesce("settled_at", relay.database_now(), output_field=DateTimeField()),
        last_error=why,
    )


def waiting(keys: Iterable[str]) -> set[str]:
    """The keys whose messages are not settled yet."""
    messages = Message.objects.filter(key__in=keys, settled_at=None)
    return set(messages.values_list("key", flat=True))


def retry(messages: QuerySet[Message], *, now: datetime) -> int:
    """Make messages due now, and return how many (requirements X6).

    A waiting message does not wait for the end of its back-off or lease, so it may be delivered
    twice. A message with an alarming outcome is opened again and waits from now on. Other settled
    messages stay as they are.
    """
    return messages.filter(Q(settled_at=None) | NEEDS_ATTENTION).update(
        created_at=Case(When(settled_at=None, then=F("created_at")), default=now),
        due_at=now,
        outcome=None,
        settled_at=None,
    )


def wait_for_report(messages: Iterable[Message]) -> list[Outcome | None]:
    """Wait up to 300 ms for messages that this thread has committed. Return their outcomes, None
    for a message that has none yet.

    Returns at once where no delivery is under way, for example while Temporal is known to be down.
    """
    reports = [message.report for message in messages]
    under_way = [report for report in reports if report is not None]
    if under_way:
        concurrent.futures.wait(under_way, timeout=REPORT_SECONDS)
    return [report.result() if report is not None and report.done() else None for report in reports]
