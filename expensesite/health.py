"""Whether the site is up, is ready, and delivers: for probes and monitoring (requirements X6).

The probes answer everyone and under every Host, as orchestrators ask by a pod's address, and tell
nothing about people.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Final

from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import cache_control
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from access import open_access
from outbox import health as outbox_health

log = logging.getLogger(__name__)

# How long a request waits for the database; orchestrators give a probe 1 to 5 s.
DATABASE_SECONDS: Final = 2.0
# A question that has no answer by then never gets one: its connection is cut off.
LOST_SECONDS: Final = 10.0


@csrf_exempt  # another method is 405, with or without a token
@cache_control(no_store=True)
@require_safe
def health(request: HttpRequest) -> HttpResponse:
    """`GET /health`: 200, the process answers. It asks for nothing else, not even the database: a
    restart of this process would not mend that."""
    return JsonResponse({"status": "ok"})


@csrf_exempt  # another method is 405, with or without a token
@cache_control(no_store=True)
@require_safe
def ready(request: HttpRequest) -> HttpResponse:
    """`GET /readyz`: 200 where the database answers and is migrated; else 503, within 2 s.

    `delivery` is `late` when a message has waited so long that the relay alarms,
    `oldest_undelivered_seconds` null when none waits, and `waiting` ends at 10,000. None of them
    makes it 503: while Temporal is down, the site stays in service and decides (requirements X1).
    """
    try:
        found = _database.answer().result(timeout=DATABASE_SECONDS)
    except (Error, TimeoutError) as error:
        log.error("Not ready: the database does not answer (%s).", type(error).__name__)  # noqa: TRY400
        return _unavailable(database="unavailable")
    if found is None:
        log.error("Not ready: the database lacks migrations; run `manage.py migrate`.")
        return _unavailable(database="ok", migrations="missing")
    return JsonResponse(
        {
            "status": "ok",
            "database": "ok",
            "migrations": "ok",
            "delivery": "late" if found.is_late else "ok",
            "waiting": found.waiting,
            "oldest_undelivered_seconds": None if found.age is None else found.age.total_seconds(),
        }
    )


@csrf_exempt  # another method is 405, with or without a token
@cache_control(no_store=True)
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """`GET /metrics` for Prometheus: to who may see the outbox, by bearer token or session; in
    open access to this machine without signing in (design, Access)."""
    try:
        open_access.signed_in_or_local(request, permission="outbox.view_message", cookies=True)
    except open_access.NotSignedIn:
        challenge = {"WWW-Authenticate": "Bearer"}
        return HttpResponse(
            "A valid bearer token is needed.\n", "text/plain", 401, headers=challenge
        )
    except open_access.NotAllowed as error:
        return HttpResponse(f"{error}\n", "text/plain", 403)
    try:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    except (TypeError, ValueError):  # a version that is no number
        encode, content_type = choose_encoder("")
    return HttpResponse(encode(_REGISTRY), content_type)


def _unavailable(**parts: str) -> HttpResponse:
    return JsonResponse({"status": "unavailable", **parts}, status=503)


class _Database:
    """Asks the database in a thread of its own, one question at a time.

    Nothing bounds how long a driver waits for a server that is frozen. The caller waits as long as
    it likes, and whoever asks meanwhile has the same answer; a question is asked anew when it is
    lost.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answer: Future[outbox_health.Backlog | None] | None = None
        self._asked_at = 0.0
        self._migrated = False

    def answer(self) -> "Future[outbox_health.Backlog | None]":
        """How delivery stands; None where migrations are missing. Fails with django.db.Error."""
        with self._lock:
            lost = time.monotonic() - self._asked_at > LOST_SECONDS
            if self._answer is None or self._answer.done() or lost:
                self._answer, self._asked_at = Future(), time.monotonic()
                threading.Thread(
                    target=self._ask, args=[self._answer], name="readyz", daemon=True
                ).start()
            return self._answer

    def _ask(self, answer: "Future[outbox_health.Backlog | None]") -> None:
        try:
            with contextlib.closing(connection):
                found = outbox_health.backlog() if self._is_migrated() else None
        except BaseException as error:  # noqa: BLE001 (whoever waits has it)
            answer.set_exception(error)
        else:
            answer.set_result(found)

    def _is_migrated(self) -> bool:
        """Once it is, it stays so: newer code is another process."""
        if not self._migrated:
            executor = MigrationExecutor(connection)
            self._migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
        return self._migrated


class _Delivery(Collector):
    """Read from the database at each scrape, so that any web process answers for all."""

    def collect(self) -> Iterator[Metric]:
        backlog = outbox_health.backlog()
        waiting = GaugeMetricFamily(
            "outbox_messages_waiting", "Messages that wait for delivery.", labels=["kind"]
        )
        for kind, count in outbox_health.waiting_by_kind().items():
            waiting.add_metric([kind], count)
        yield waiting
        yield GaugeMetricFamily(
            "outbox_oldest_waiting_age_seconds",
            "How long the oldest waiting message has waited; 0 when none waits.",
            0 if backlog.age is None else backlog.age.total_seconds(),
        )
        yield GaugeMetricFamily(
            "outbox_oldest_waiting_attempts",
            "Delivery attempts of the oldest waiting message; 0 when none waits.",
            0 if backlog.oldest is None else backlog.oldest.attempts,
        )
        attention = GaugeMetricFamily(
            "outbox_messages_needing_attention",
            "Messages that could not take effect and are not tried again by themselves.",
            labels=["outcome"],
        )
        for outcome, count in outbox_health.needing_attention().items():
            attention.add_metric([outcome.value.lower()], count)
        yield attention


_database = _Database()
_REGISTRY = CollectorRegistry()
_REGISTRY.register(_Delivery())
