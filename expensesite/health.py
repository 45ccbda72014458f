"""Answers for probes and monitoring: the site is up, is ready, delivers (requirements X6).

The probes answer everyone and under every Host, since orchestrators ask by a pod's address. They
say nothing about people.
"""

import contextlib
import logging
import threading
import time
from concurrent.futures import Future
from typing import Any, Final

from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from prometheus_client.exposition import choose_encoder

from access import open_access
from expensesite import guards
from rest import monitoring

log = logging.getLogger(__name__)

# How long a request waits for the database; orchestrators give a probe 1 to 5 s.
DATABASE_SECONDS: Final = 2.0
# A question without an answer by then never gets one: its connection is cut off.
LOST_SECONDS: Final = 10.0


@csrf_exempt  # another method is 405, with or without a token
@require_safe
def health(request: HttpRequest) -> HttpResponse:
    """`GET /health`: 200, the process answers. It does not ask the database, since a restart of
    this process would not repair that."""
    return JsonResponse({"status": "ok"})


@csrf_exempt  # another method is 405, with or without a token
@require_safe
def ready(request: HttpRequest) -> HttpResponse:
    """`GET /readyz`: 200 where the database answers and is migrated; else 503, within 2 s.

    The fields of :data:`monitoring.READINESS` follow. None of them makes it 503: while Temporal is
    down, the site stays in service and takes decisions (requirements X1).
    """
    try:
        found = _database.answer().result(timeout=DATABASE_SECONDS)
    except (Error, TimeoutError) as error:
        log.error("Not ready: the database does not answer (%s).", type(error).__name__)  # noqa: TRY400
        return _unavailable(database="unavailable")
    if found is None:
        log.error("Not ready: the database lacks migrations; run `manage.py migrate`.")
        return _unavailable(database="ok", migrations="missing")
    return JsonResponse({"status": "ok", "database": "ok", "migrations": "ok", **found})


@csrf_exempt  # another method is 405, with or without a token
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """`GET /metrics` for Prometheus: by bearer token or session, with the permission to see the
    outbox. In open access this machine needs no sign-in."""
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
    return HttpResponse(encode(monitoring.METRICS), content_type)


def _unavailable(**parts: str) -> HttpResponse:
    return JsonResponse({"status": "unavailable", **parts}, status=503)


def _report() -> dict[str, Any]:
    return {name: value for part in monitoring.READINESS for name, value in part().items()}


class _Database:
    """Asks the database in a thread of its own, one question at a time.

    Nothing bounds how long a driver waits for a frozen server. Each caller chooses how long it
    waits, and all who ask meanwhile get the same answer. A lost question is asked again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answer: Future[dict[str, Any] | None] | None = None
        self._asked_at = 0.0
        self._migrated = False

    def answer(self) -> "Future[dict[str, Any] | None]":
        """What the packages report; None where migrations are missing. Fails with
        django.db.Error."""
        with self._lock:
            lost = time.monotonic() - self._asked_at > LOST_SECONDS
            if self._answer is None or self._answer.done() or lost:
                self._answer, self._asked_at = Future(), time.monotonic()
                threading.Thread(
                    target=self._ask, args=[self._answer], name="readyz", daemon=True
                ).start()
            return self._answer

    def _ask(self, answer: "Future[dict[str, Any] | None]") -> None:
        try:
            with contextlib.closing(connection):
                found = _report() if self._is_migrated() else None
        except BaseException as error:  # noqa: BLE001 (the caller raises it)
            answer.set_exception(error)
        else:
            answer.set_result(found)

    def _is_migrated(self) -> bool:
        """Asked until it is True: newer code runs in another process."""
        if not self._migrated:
            executor = MigrationExecutor(connection)
            plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
            self._migrated = not plan and guards.are_made(connection)
        return self._migrated


_database = _Database()
