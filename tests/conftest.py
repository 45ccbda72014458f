"""Fixtures of the whole suite, and how many examples hypothesis generates."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management.commands import flush
from django.core.management.sql import sql_flush
from django.db import connection, connections, transaction
from django.test import Client
from hypothesis import HealthCheck, Phase, settings
from pytest_django.plugin import DjangoDbBlocker
from temporalio.client import Client as TemporalClient

from approvals.models import AuditEntry
from expensesite import guards
from rest import prefer
from temporal import loop
from tests import factories
from tests.servers import TemporalServer
from tests.waits import Waiter, waiter

# Every run generates the same examples. Others: `--hypothesis-profile=explore --hypothesis-seed=N`.
# There is no deadline, since a slow example on a busy machine is no failure.
settings.register_profile(
    "suite",
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
suite = settings.get_profile("suite")
settings.register_profile("explore", suite, derandomize=False)
# `make test`: a tenth of the examples.
settings.register_profile("brief", suite, max_examples=10)
# `make mutants` asks only whether a test fails, not for the smallest example.
settings.register_profile(
    "unshrunk", suite, phases=[phase for phase in Phase if phase is not Phase.shrink]
)
settings.load_profile("suite")


def examples(count: int) -> int:
    """`max_examples` of a test that generates `count` examples in the profile `suite`."""
    return count * settings.default.max_examples // 100


Unchanged = Callable[..., AbstractContextManager[None]]
Plans = Callable[[], AbstractContextManager[list[str]]]


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Let the flush that ends a transactional test pass the triggers of expensesite.guards, and
    restore groups and permissions as rows after it.

    Django sends `post_migrate` instead, which takes 450 queries each time.
    """
    models = (ContentType, Permission, Group, Group.permissions.through)
    with django_db_blocker.unblock():
        rows = [(model, list(model._base_manager.all())) for model in models]

    def restore(*_: Any) -> None:
        with transaction.atomic():
            for model, kept in rows:
                model._base_manager.bulk_create(kept)

    # One transaction executes these statements.
    def unguarded(*args: Any, **kwargs: Any) -> list[str]:
        statements = sql_flush(*args, **kwargs)
        if connection.vendor == "postgresql":
            return ["SET LOCAL session_replication_role = replica", *statements]
        made = guards.triggers(connection)
        on_delete = {name: made[name] for name in made if "_before_delete_" in name}
        return [
            *(f'DROP TRIGGER "{name}"' for name in on_delete),
            *statements,
            *on_delete.values(),
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flush, "emit_post_migrate_signal", restore)
        patch.setattr(flush, "sql_flush", unguarded)
        yield


@pytest.fixture(scope="session")
def temporal_address() -> Iterator[str]:
    """The address of a Temporal dev server for the session; each test uses its own task queue."""
    with TemporalServer() as server:
        yield server.address


@pytest.fixture
def local(settings: Any) -> Client:
    """An anonymous client of a local installation."""
    settings.EXPENSES_PROTOCOL_ACCESS = "open"
    return Client(SERVER_NAME="localhost")


@pytest.fixture
def unchanged() -> Unchanged:
    """`with unchanged(refusals=1):` checks that the block writes nothing but that many refusals."""

    @contextmanager
    def check(*, refusals: int = 0) -> Iterator[None]:
        before = factories.records()
        last = AuditEntry.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
        yield
        assert factories.records() == before
        events = AuditEntry.objects.filter(pk__gt=last).values_list("event", flat=True)
        assert list(events) == ["refused"] * refusals

    return check


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give this process a new loop for questions, as in a web process that has just started."""
    monkeypatch.setattr(loop, "_current", None)
    yield
    if loop._current is not None:
        running = loop._current[1]._event_loop
        running.call_soon_threadsafe(running.stop)


@pytest.fixture
def no_temporal(asking: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")


@pytest.fixture
def no_free_thread() -> Iterator[None]:
    """Occupy every place for a request that waits."""
    with ExitStack() as waiting:
        while prefer._waiting.acquire(blocking=False):
            waiting.callback(prefer._waiting.release)
        yield


@pytest.fixture
def plans() -> Plans:
    """`with plans() as read:` collects the query plan of each SELECT on the outbox."""

    @contextmanager
    def collect() -> Iterator[list[str]]:
        read: list[str] = []
        postgresql = connection.vendor == "postgresql"
        explain = "EXPLAIN " if postgresql else "EXPLAIN QUERY PLAN "

        def explained(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith("SELECT") and 'FROM "outbox_message"' in sql:
                execute(explain + sql, params, many, context)
                read.append("\n".join(str(row[-1]) for row in context["cursor"].fetchall()))
            return execute(sql, params, many, context)

        if postgresql:  # the planner needs statistics, which autovacuum would collect
            with connection.cursor() as cursor:
                cursor.execute("ANALYZE outbox_message")
        with connection.execute_wrapper(explained):
            yield read

    return collect


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Make the calls at the same moment, each in its own thread; return their results."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        try:
            barrier.wait()
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


@pytest.fixture
async def waiting(temporal_address: str) -> AsyncIterator[Waiter]:
    """Start a workflow that waits: `await waiting(seconds=60, attempts=0)`."""
    client = await TemporalClient.connect(temporal_address)
    async with waiter(client) as start:
        yield start
