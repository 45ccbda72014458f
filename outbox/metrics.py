"""The state of delivery: what waits, how long, and what needs a person (requirements X6).

Partial indexes answer every question here: the cost does not grow with the delivered messages.
Only :func:`waiting_by_kind` reads all that waits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from django.db.models import Count
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from outbox import handlers, relay
from outbox.models import ALARMING, NEEDS_ATTENTION, Message
from temporal.outcomes import Outcome

LARGEST_COUNT: Final = 10_000


@dataclass(frozen=True)
class Backlog:
    """How many messages wait, at most 10,000, and the oldest of them with its age; both None where
    none waits."""

    waiting: int
    oldest: Message | None
    age: timedelta | None

    @property
    def is_late(self) -> bool:
        """Whether a message has waited so long that the relay alarms."""
        return self.age is not None and self.age >= relay.ALARM_AGE


def backlog() -> Backlog:
    """Return what waits now, at a bounded cost."""
    oldest = relay.oldest_waiting()
    age = relay.database_now() - oldest.created_at if oldest else None
    waiting = Message.objects.filter(settled_at=None)[:LARGEST_COUNT].count()
    return Backlog(waiting, oldest, age)


def readiness() -> dict[str, Any]:
    """Return the fields of `GET /readyz`: `delivery` is `late` where a message has waited so long
    that the relay alarms, and `oldest_undelivered_seconds` is null where none waits."""
    current = backlog()
    return {
        "delivery": "late" if current.is_late else "ok",
        "waiting": current.waiting,
        "oldest_undelivered_seconds": None if current.age is None else current.age.total_seconds(),
    }


def waiting_by_kind() -> dict[str, int]:
    """Return how many messages of each kind wait, zeros included."""
    kinds = Message.objects.filter(settled_at=None).order_by().values_list("kind")
    return dict.fromkeys(handlers.HANDLERS, 0) | dict(kinds.annotate(Count("pk")))


def needing_attention() -> dict[Outcome, int]:
    """Return how many messages ended with each alarming outcome, zeros included."""
    outcomes = Message.objects.filter(NEEDS_ATTENTION).order_by().values_list("outcome")
    found = {Outcome(outcome): count for outcome, count in outcomes.annotate(Count("pk"))}
    return dict.fromkeys(ALARMING, 0) | found


class Metrics(Collector):
    """The metrics of delivery, read from the database at each scrape: any web process answers for
    all."""

    def collect(self) -> Iterator[Metric]:
        current = backlog()
        waiting = GaugeMetricFamily(
            "outbox_messages_waiting", "Messages that wait for delivery.", labels=["kind"]
        )
        for kind, count in waiting_by_kind().items():
            waiting.add_metric([kind], count)
        yield waiting
        yield GaugeMetricFamily(
            "outbox_oldest_waiting_age_seconds",
            "How long the oldest waiting message has waited; 0 when none waits.",
            0 if current.age is None else current.age.total_seconds(),
        )
        yield GaugeMetricFamily(
            "outbox_oldest_waiting_attempts",
            "Delivery attempts of the oldest waiting message; 0 when none waits.",
            0 if current.oldest is None else current.oldest.attempts,
        )
        attention = GaugeMetricFamily(
            "outbox_messages_needing_attention",
            "Messages that could not take effect and are not tried again automatically.",
            labels=["outcome"],
        )
        for outcome, count in needing_attention().items():
            attention.add_metric([outcome.value.lower()], count)
        yield attention
