"""The probes and the metrics, by HTTP (requirements X6)."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from access import groups
from expensesite import health
from outbox import relay
from outbox.models import Message
from temporal.outcomes import Outcome
from tests import factories
from tests.conftest import Plans
from tests.servers import eventually, free_port

ROOT = Path(__file__).resolve().parents[2]
READY = {"status": "ok", "database": "ok", "migrations": "ok", "delivery": "ok", "waiting": 0}
POD = {"Host": "10.42.0.7:8099"}


def waiting(key: str, *, seconds: float = 0, outcome: Outcome | None = None, **fields: Any) -> None:
    """A message that was queued so long ago."""
    now = relay.database_now()
    fields = {"kind": "complete_activity", "due_at": now, "payload": {}, **fields}
    Message.objects.create(
        key=key,
        created_at=now - timedelta(seconds=seconds),
        outcome=outcome,
        settled_at=outcome and now,
        **fields,
    )


# GET /health


@pytest.mark.parametrize("access", ["token", "open", "off"])
def test_health_answers_everybody_without_a_query(
    client: Client, settings: Any, access: str
) -> None:
    """X6: the process is up, for everybody and under every Host; no query (this test has no
    database), no session, no cookie."""
    settings.EXPENSES_PROTOCOL_ACCESS = access
    answer = client.get("/health", headers=POD)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert not answer.cookies
    head = client.head("/health", headers=POD)
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("path", ["/health", "/readyz", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods_are_405(path: str, method: str) -> None:
    """X6: GET and HEAD alone; nothing else asks the database."""
    answer = Client(enforce_csrf_checks=True).generic(method, path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert answer.headers["Cache-Control"] == "no-store"


# GET /readyz


@pytest.mark.django_db(transaction=True)
def test_readiness_reports_delivery_and_stays_200_while_it_is_late(client: Client) -> None:
    """X6: anyone reads how delivery stands, and nothing about people. Late delivery leaves the
    site in service (X1)."""
    answer = client.get("/readyz", headers=POD)
    assert answer.status_code == 200
    assert answer.json() == {**READY, "oldest_undelivered_seconds": None}
    assert answer.headers["Cache-Control"] == "no-store"
    assert not answer.cookies

    waiting("settled", seconds=9000, outcome=Outcome.DELIVERED)
    waiting("gone", seconds=9000, outcome=Outcome.UNDELIVERABLE)
    waiting("young", seconds=10)
    found = client.get("/readyz").json()
    assert 10 <= found.pop("oldest_undelivered_seconds") < 60
    assert found == {**READY, "waiting": 1}

    waiting("old", seconds=60)
    answer = client.get("/readyz")
    found = answer.json()
    assert answer.status_code == 200
    assert 60 <= found.pop("oldest_undelivered_seconds") < 120
    assert found == {**READY, "waiting": 2, "delivery": "late"}
    assert client.head("/readyz").status_code == 200


@contextmanager
def site(database: str) -> Iterator[httpx.Client]:
    """The site as it is served elsewhere, on this database; answers when /health does."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "manage.py", "web", f"--port={port}", "--processes=1"],
        env={**os.environ, "DATABASE_URL": database, "WEB_THREADS": "4"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20
        ) as client:
            eventually(lambda: _is_up(client))
            yield client
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def frozen_server() -> Iterator[int]:
    """A port where connections are taken and nothing is ever said."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


@pytest.mark.parametrize("kind", ["no file", "frozen server"])
def test_without_a_database_readiness_is_503_in_time(kind: str) -> None:
    """X6: without its database the site answers 503 before a probe gives up, says no more than
    that, and is up all the same."""
    with frozen_server() as frozen:
        database = {
            "no file": "sqlite:////nowhere/at/all.sqlite3",
            "frozen server": f"postgres://someone:secret@127.0.0.1:{frozen}/expenses",
        }[kind]
        with site(database) as client:
            answer = client.get("/readyz", headers=POD)
            assert answer.status_code == 503
            assert answer.json() == {"status": "unavailable", "database": "unavailable"}
            assert answer.elapsed < timedelta(seconds=5)
            # A request that needs the database keeps its thread for no longer than a probe waits.
            for path in ("/metrics", "/status?id=x", "/api/v1/expenses/"):
                answer = client.get(path, headers={"Authorization": "Bearer x"})
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2"), path
                assert answer.elapsed < timedelta(seconds=10)
                assert "The database does not answer; send the request again." in answer.text
                assert "127.0.0.1" not in answer.text
            assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.django_db(transaction=True)
def test_missing_migrations_are_503(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """X6: not ready before the migrations, ready after them without a restart, and then never asked
    again."""
    # As in a process that has just started.
    monkeypatch.setattr(health, "_database", health._Database())
    recorder = MigrationRecorder(connection)
    newest = recorder.migration_qs.filter(app="outbox").latest("pk").name
    recorder.record_unapplied("outbox", newest)
    try:
        for _ in range(2):
            answer = client.get("/readyz")
            assert answer.status_code == 503
            assert answer.json() == {
                "status": "unavailable",
                "database": "ok",
                "migrations": "missing",
            }
    finally:
        recorder.record_applied("outbox", newest)
    assert client.get("/readyz").status_code == 200
    monkeypatch.delattr(health, "MigrationExecutor")
    assert client.get("/readyz").json() == {**READY, "oldest_undelivered_seconds": None}


# GET /metrics


@pytest.mark.django_db
@pytest.mark.parametrize("access", ["token", "open", "off"])
def test_metrics_need_a_sign_in_outside_open_access(
    client: Client, settings: Any, access: str
) -> None:
    """X6, X8: who may see the outbox reads the metrics, in every mode; without signing in, this
    machine alone and in open access alone."""
    settings.EXPENSES_PROTOCOL_ACCESS = access
    local = Client(SERVER_NAME="localhost")
    refused: list[tuple[Client, dict[str, str], int]] = [
        (client, POD, 401 if access != "open" else 400),
        (local, {"X-Forwarded-For": "127.0.0.1"}, 401),
        (local, {"Authorization": "Bearer wrong"}, 401),
        (local, factories.bearer(factories.user(groups.EMPLOYEE)), 403),
        (local, factories.bearer(factories.user(groups.WORKER)), 403),
        (local, {}, 200 if access == "open" else 401),
    ]
    for who, headers, status in refused:
        answer = who.get("/metrics", headers=headers)
        assert answer.status_code == status, headers
        assert (b"outbox" in answer.content) is (status == 200)
        assert answer.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
    for group in (groups.OPERATOR, groups.AUDITOR):
        person = factories.user(group)
        by_token = client.get("/metrics", headers=POD | factories.bearer(person))
        client.force_login(person)
        by_session = client.get("/metrics")
        for answer in (by_token, by_session):
            assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
        assert not by_token.cookies
        assert by_session.cookies.keys() == {"sessionid"}  # which lasts longer by this
        client.logout()


def samples(client: Client, **headers: str) -> dict[str, Any]:
    """The value of each sample; its labels' values follow its name."""
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200
    parse = openmetrics if "openmetrics" in answer.headers["Content-Type"] else plain
    found = {}
    for family in parse(answer.content.decode()):
        assert (family.type, bool(family.documentation)) == ("gauge", True)
        for sample in family.samples:
            found[" ".join([sample.name, *sample.labels.values()])] = sample.value
    return found


@pytest.mark.django_db
@pytest.mark.parametrize("accept", ["*/*", "application/openmetrics-text;version=1.0.0"])
def test_metrics_count_what_waits_and_needs_attention(local: Client, accept: str) -> None:
    """X6: what waits by kind, how long, how often tried, and what needs attention by outcome; each
    is there before it happens."""
    zeros = {
        "outbox_messages_waiting complete_activity": 0,
        "outbox_messages_waiting complete_wait": 0,
        "outbox_messages_waiting start_workflow": 0,
        "outbox_messages_waiting signal_workflow": 0,
        "outbox_messages_waiting cancel_workflow": 0,
        "outbox_oldest_waiting_age_seconds": 0,
        "outbox_oldest_waiting_attempts": 0,
        "outbox_messages_needing_attention conflict": 0,
        "outbox_messages_needing_attention undeliverable": 0,
        "outbox_messages_needing_attention dead": 0,
    }
    waiting("done", seconds=9000, outcome=Outcome.DELIVERED, attempts=3)
    assert samples(local, Accept=accept) == zeros

    waiting("young", attempts=1)
    waiting("old", seconds=100, attempts=7, kind="start_workflow")
    waiting("gone", seconds=9000, outcome=Outcome.UNDELIVERABLE)
    waiting("gone-2", seconds=9000, outcome=Outcome.UNDELIVERABLE)
    waiting("other", seconds=9000, outcome=Outcome.CONFLICT)
    found = samples(local, Accept=accept)
    assert 100 <= found.pop("outbox_oldest_waiting_age_seconds") < 200
    assert found == {
        **{name: value for name, value in zeros.items() if "age_seconds" not in name},
        "outbox_messages_waiting complete_activity": 1,
        "outbox_messages_waiting start_workflow": 1,
        "outbox_oldest_waiting_attempts": 7,
        "outbox_messages_needing_attention conflict": 1,
        "outbox_messages_needing_attention undeliverable": 2,
    }


@pytest.mark.django_db
def test_a_scrape_reads_no_delivered_message(local: Client, plans: Plans) -> None:
    """X6: a scrape does not read the messages that were delivered."""
    factories.delivered_messages(5000)
    waiting("young")
    waiting("gone", outcome=Outcome.DEAD)
    with plans() as read:
        samples(local)
    # The count and the ages; either index has just what waits.
    waits = [bool(re.search("message_(waiting|due)", plan)) for plan in read]
    assert waits == [True, True, True, False]
    assert "message_attention" in read[3]
