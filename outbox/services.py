"""Enqueue messages, once more where asked, and wait a moment for their report."""

import concurrent.futures
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Case, DateTimeField, F, Q, QuerySet, When
from django.db.models.functions import Coalesce

from outbox import deliverer, delivery
from outbox.models import NEEDS_ATTENTION, Message
from temporal.outcomes import Outcome

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


def enqueue_again(kind: str, key: str, payload: dict[str, Any]) -> bool:
    """Have an effect delivered once more, whatever became of its message: the settled one is
    opened again with this payload, a missing one is inserted. False where one waits already.

    The relay takes it. Two that ask at the same time queue it once.
    """
    now = delivery.database_now()
    again = {"kind": kind, "payload": payload, "created_at": now, "due_at": now}
    settled = Message.objects.filter(key=key, settled_at__isnull=False)
    if settled.update(**again, outcome=None, settled_at=None):
        return True
    return Message.objects.get_or_create(key=key, defaults=again)[1]


def supersede(key: str) -> None:
    """The message ended with an alarm, and its effect comes about in another way."""
    Message.objects.filter(NEEDS_ATTENTION, key=key).update(
        outcome=Outcome.OBSOLETE, last_error="Superseded: the workflow is started again."
    )


def settle(keys: Iterable[str], *, why: str) -> None:
    """What the messages with these keys were to say is known to their workflow: they need neither
    another attempt nor attention. An attempt under way changes nothing any more."""
    Message.objects.filter(Q(settled_at=None) | NEEDS_ATTENTION, key__in=keys).update(
        outcome=Outcome.OBSOLETE,
        settled_at=Coalesce("settled_at", delivery.database_now(), output_field=DateTimeField()),
        last_error=why,
    )


def waiting(keys: Iterable[str]) -> set[str]:
    """Those of the keys whose messages are still to be delivered."""
    messages = Message.objects.filter(key__in=keys, settled_at=None)
    return set(messages.values_list("key", flat=True))


def retry(messages: QuerySet[Message], *, now: datetime) -> int:
    """Make messages due now (requirements X6); the number of those that are.

    Waiting ones go before their back-off or lease ends, at worst twice. Those that settled with
    an alarming outcome are opened again and wait from now on; delivered ones stay as they are.
    """
    return messages.filter(Q(settled_at=None) | NEEDS_ATTENTION).update(
        created_at=Case(When(settled_at=None, then=F("created_at")), default=now),
        due_at=now,
        outcome=None,
        settled_at=None,
    )


def wait_for_report(messages: Iterable[Message]) -> list[Outcome | None]:
    """Wait up to 300 ms for messages that this thread has committed; the outcome of each, None
    where there is none yet.

    Returns at once where none is under way, as while Temporal is known to be down.
    """
    reports = [message.report for message in messages]
    under_way = [report for report in reports if report is not None]
    if under_way:
        concurrent.futures.wait(under_way, timeout=REPORT_SECONDS)
    return [report.result() if report is not None and report.done() else None for report in reports]
