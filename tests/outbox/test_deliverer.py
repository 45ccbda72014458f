"""Delivery at commit and by the relay, with a real database and a real Temporal server."""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.utils import timezone
from temporalio.client import Client

from outbox import deliverer, handlers, relay, services
from outbox.models import Message
from temporal import client, loop
from temporal.addresses import Address
from temporal.outcomes import Outcome
from tests.servers import TemporalServer, eventually
from tests.waits import Waiter, waiter

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
async def _close_connections() -> AsyncIterator[None]:
    """Of the thread in which asynchronous code uses the database."""
    yield
    await sync_to_async(connections.close_all)()


@pytest.fixture
def delivering(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process delivers at commit, as a web process does."""
    monkeypatch.setattr(deliverer, "_active", True)
    monkeypatch.setattr(deliverer, "_deliverer", None)
    monkeypatch.setattr(loop, "_current", None)
    yield
    if deliverer._deliverer is not None:
        database = deliverer._deliverer._database
        database.submit(connections.close_all).result()
        database.shutdown()
    if loop._current is not None:
        running = loop._current[1]._event_loop
        running.call_soon_threadsafe(running.stop)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TemporalServer]:
    """A server of the test's own, to freeze and kill."""
    server = TemporalServer(tmp_path)
    monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
    server.start()
    yield server
    server.kill()


def enqueue(address: Address, key: str = "k", value: str = "APPROVED") -> Message:
    payload = {"address": address.sealed(), "value": value}
    with transaction.atomic():
        return services.enqueue(handlers.COMPLETE_ACTIVITY, key, payload)


def attempts() -> list[int]:
    return sorted(Message.objects.values_list("attempts", flat=True))


def outcome(key: str = "k") -> str | None:
    return Message.objects.get(key=key).outcome


async def test_a_web_process_delivers_and_settles_what_it_commits(
    delivering: None, waiting: Waiter, temporal_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: the web process delivers what it commits, and settles it."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    wait = await waiting()
    address = await wait.address()

    def decide() -> tuple[Outcome | None, list[Outcome | None]]:
        message = enqueue(address)
        assert message.due_at - message.created_at == services.COMMIT_LEASE
        assert message.report is not None
        return message.report.result(20), services.wait_for_report([message])

    assert await sync_to_async(decide)() == (Outcome.DELIVERED, [Outcome.DELIVERED])
    assert await wait.handle.result() == "APPROVED"
    assert await sync_to_async(outcome)() == Outcome.DELIVERED


def test_a_rolled_back_message_is_not_delivered(delivering: None) -> None:
    """X1: no effect leaves the database before its transaction commits."""
    with pytest.raises(RuntimeError), transaction.atomic():
        message = services.enqueue(handlers.COMPLETE_ACTIVITY, "k", {"address": {}})
        raise RuntimeError
    assert message.report is None
    assert not Message.objects.exists()


def test_without_a_deliverer_a_message_is_due_at_once() -> None:
    """X1: a process that does not deliver leaves the message due."""
    message = enqueue(Address(b"t"))
    assert message.due_at == message.created_at
    assert message.report is None
    assert services.wait_for_report([message]) == [None]


def test_commits_do_not_wait_for_a_frozen_temporal(
    delivering: None, server: TemporalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: the commit does not wait for Temporal. Once Temporal is known to be silent, nobody waits
    for a report, and the relay has the next message at once."""
    monkeypatch.setattr(loop, "PAUSE_SECONDS", 3600.0)
    server.signal(signal.SIGSTOP)
    first = enqueue(Address(b"garbage"), "first")
    assert first.report is not None
    assert not first.report.done()
    assert services.wait_for_report([first]) == [None]
    assert first.report.result(20) is None
    assert outcome("first") is None
    assert not deliverer.is_ready()
    second = enqueue(Address(b"garbage"), "second")
    assert second.report is None
    assert second.due_at == second.created_at
    # The pause that follows the next silence ends without a delivery.
    monkeypatch.setattr(loop, "PAUSE_SECONDS", 0.2)
    deliverer.hand_over(second)
    assert second.report is not None
    assert second.report.result(20) is None
    server.signal(signal.SIGCONT)
    eventually(deliverer.is_ready)
    third = enqueue(Address(b"garbage"), "third")
    assert third.report is not None
    third.report.result(20)
    eventually(lambda: outcome("third") == Outcome.DEAD)


def test_a_question_without_an_answer_is_cancelled_in_time(
    delivering: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J1: a question is cancelled when its time is over, which does not mean that Temporal is down.
    While Temporal is known to be down, no question is asked."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(loop, "PAUSE_SECONDS", 3600.0)
    asked, ended = [], threading.Event()

    async def endless(temporal: client.Temporal) -> None:
        asked.append(temporal)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(client.Unreachable):
        loop.ask(endless, seconds=0.05)
    assert ended.wait(20)
    assert deliverer.is_ready()
    with pytest.raises(client.Unreachable):
        loop.ask(lambda temporal: temporal.client())
    assert not deliverer.is_ready()
    with pytest.raises(client.Unreachable):
        loop.ask(endless, seconds=0.5)
    assert len(asked) == 1


async def test_the_relay_probes_with_one_message_then_delivers_all(
    server: TemporalServer, caplog: pytest.LogCaptureFixture
) -> None:
    """X1: while Temporal is dead the relay tries one message at a time; after its return the relay
    delivers all of them."""
    async with waiter(await Client.connect(server.address)) as start:
        waits = [await start() for _ in range(5)]
        addresses = [await wait.address() for wait in waits]
        server.kill()
        for number, address in enumerate(addresses):
            await sync_to_async(enqueue)(address, str(number))
        running = relay.Relay()
        assert await running.step() == relay.PROBE_SECONDS
        assert await sync_to_async(attempts)() == [1] * 5
        past = timezone.now() - timedelta(hours=1)
        await sync_to_async(Message.objects.update)(due_at=past)
        assert await running.step() == relay.PROBE_SECONDS
        assert await sync_to_async(attempts)() == [1] * 4 + [2]
        # A message that fails without asking Temporal says nothing of it, and keeps none waiting.
        poison = await Message.objects.acreate(
            kind="unknown",
            key="poison",
            payload={},
            created_at=past,
            due_at=past - timedelta(hours=1),
        )
        assert [await running.step(), await running.step()] == [0, relay.PROBE_SECONDS]
        await poison.adelete()
        assert await sync_to_async(attempts)() == [1] * 3 + [2] * 2
        assert await sync_to_async(Message.objects.filter(settled_at=None).count)() == 5
        server.start()
        task = asyncio.create_task(running.run())
        async with asyncio.timeout(60):
            results = [await wait.handle.result() for wait in waits]
        running.stop()
        await task
    assert results == ["APPROVED"] * 5
    settled = Message.objects.values_list("outcome", flat=True)
    # A call that the kill cut off may have been applied.
    assert set(await sync_to_async(list)(settled)) <= {
        Outcome.DELIVERED,
        Outcome.ALREADY_COMPLETED,
    }


async def test_a_poison_row_stops_no_other(
    waiting: Waiter, temporal_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: a message that cannot be delivered waits; the others go."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    wait = await waiting()
    now = timezone.now() - timedelta(seconds=10)
    await Message.objects.acreate(
        kind="unknown", key="poison", payload={}, created_at=now, due_at=now
    )
    await sync_to_async(enqueue)(await wait.address())
    assert await relay.Relay().step() == 0
    assert await wait.handle.result() == "APPROVED"
    assert await sync_to_async(outcome)("poison") is None


async def test_a_message_older_than_a_minute_alarms_once(caplog: pytest.LogCaptureFixture) -> None:
    """X6: a message older than a minute raises an alarm in the log, once a minute."""
    created = timezone.now() - relay.ALARM_AGE - timedelta(seconds=5)
    await Message.objects.acreate(
        kind="unknown",
        key="old",
        payload={},
        created_at=created,
        due_at=timezone.now() + timedelta(seconds=10),
        attempts=7,
        last_error="Temporal does not answer.",
    )
    running = relay.Relay()
    with caplog.at_level(logging.ERROR, "outbox.relay"):
        await running.step()
        await running.step()
    (alarm,) = [record.getMessage() for record in caplog.records]
    assert alarm.startswith("old has waited 6")
    assert alarm.endswith("s for its delivery, 7 attempts; last: Temporal does not answer.")


async def test_the_relay_outlives_a_database_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """X1: the relay goes on when the database fails, and says so without a traceback."""
    from django.db import OperationalError

    running = relay.Relay()
    answers = iter([OperationalError("database is locked")])

    def now() -> object:
        if error := next(answers, None):
            raise error
        running.stop()
        return timezone.now()

    monkeypatch.setattr(relay, "database_now", now)
    await running.run()
    assert "The database does not answer (OperationalError)" in caplog.text
