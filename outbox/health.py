"""How delivery stands: what waits, how long, and what needs a person (requirements X6).

Everything is read by partial indexes: the cost does not grow with what was delivered. Only
:func:`waiting_by_kind` reads all that waits.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from django.db.models import Count

from outbox import delivery, handlers, relay
from outbox.models import ALARMING, NEEDS_ATTENTION, Message
from temporal.outcomes import Outcome

LARGEST_COUNT: Final = 10_000


@dataclass(frozen=True)
class Backlog:
    """What waits: how many messages, of which `oldest` for `age`; both None when none waits.

    `waiting` ends at 10,000.
    """

    waiting: int
    oldest: Message | None
    age: timedelta | None

    @property
    def is_late(self) -> bool:
        """Whether a message has waited so long that the relay alarms."""
        return self.age is not None and self.age >= relay.ALARM_AGE


def backlog() -> Backlog:
    """What waits now, at a bounded cost however much it is."""
    age, oldest = delivery.oldest_waiting(now=delivery.database_now()) or (None, None)
    waiting = Message.objects.filter(settled_at=None)[:LARGEST_COUNT].count()
    return Backlog(waiting, oldest, age)


def waiting_by_kind() -> dict[str, int]:
    """How many messages of each kind wait, zeros included."""
    kinds = Message.objects.filter(settled_at=None).order_by().values_list("kind")
    return dict.fromkeys(handlers.HANDLERS, 0) | dict(kinds.annotate(Count("pk")))


def needing_attention() -> dict[Outcome, int]:
    """How many messages ended with each alarming outcome, zeros included."""
    outcomes = Message.objects.filter(NEEDS_ATTENTION).order_by().values_list("outcome")
    found = {Outcome(outcome): count for outcome, count in outcomes.annotate(Count("pk"))}
    return dict.fromkeys(ALARMING, 0) | found
