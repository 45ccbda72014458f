import asyncio
import logging
import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

from outbox import client, delivery, handlers
from outbox.addresses import Address
from outbox.models import Message, Outcome

NOW = datetime(2026, 11, 20, 9, tzinfo=UTC)


def message(key: str = "m", *, due: timedelta = timedelta(), **fields: object) -> Message:
    return Message.objects.create(
        **{
            "kind": "k",
            "key": key,
            "payload": {},
            "created_at": NOW,
            "due_at": NOW + due,
            **fields,
        }
    )


@pytest.mark.django_db
def test_lease_takes_the_due_ones_oldest_first() -> None:
    """X1: what is due is leased in order of its due time, pushed forward before the work."""
    for key, seconds in (("b", -1), ("a", -2), ("later", 1)):
        message(key, due=timedelta(seconds=seconds))
    message("settled", outcome=Outcome.DELIVERED, settled_at=NOW)
    assert [leased.key for leased in delivery.lease_due(now=NOW, limit=1)] == ["a"]
    assert [leased.key for leased in delivery.lease_due(now=NOW, limit=9)] == ["b"]
    assert delivery.lease_due(now=NOW, limit=9) == []
    end = NOW + delivery.RELAY_LEASE
    assert Message.objects.get(key="a").due_at == end
    assert {leased.key for leased in delivery.lease_due(now=end, limit=9)} == {"a", "b", "later"}


@pytest.mark.django_db(transaction=True)
def test_two_relays_never_lease_the_same() -> None:
    """X1: racing relays share the messages out, without one left or taken twice."""
    for number in range(200):
        message(str(number))
    taken: list[str] = []

    def lease() -> None:
        while leased := delivery.lease_due(now=NOW, limit=7):
            taken.extend(one.key for one in leased)
        connection.close()

    threads = [threading.Thread(target=lease) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(str(number) for number in range(200))


@pytest.mark.django_db
def test_settles_once() -> None:
    """X1: the first outcome stays; neither another outcome nor a failure reopens it."""
    one = message()
    delivery.settle([delivery.Attempt(one, Outcome.DELIVERED)], now=NOW)
    delivery.settle([delivery.Attempt(one, Outcome.CONFLICT)], now=NOW + timedelta(hours=1))
    delivery.settle([delivery.Attempt(one, None, "down")], now=NOW + timedelta(hours=1))
    one.refresh_from_db()
    assert (one.outcome, one.settled_at, one.due_at) == (Outcome.DELIVERED, NOW, NOW)
    assert (one.attempts, one.last_error) == (1, "")


@pytest.mark.django_db
def test_a_failed_attempt_is_tried_again() -> None:
    """X1: without an outcome the message stays, with its error, due after the back-off."""
    one = message(attempts=3)
    delivery.settle([delivery.Attempt(one, None, "Temporal does not answer.")], now=NOW)
    one.refresh_from_db()
    assert one.settled_at is None
    assert (one.attempts, one.last_error) == (4, "Temporal does not answer.")
    assert timedelta(seconds=6.4) <= one.due_at - NOW <= timedelta(seconds=9.6)


def test_backoff_grows_to_ten_seconds_and_never_ends() -> None:
    """X1: 1 s doubling, at most 10 s, jitter of a fifth; a thousand attempts later as well."""
    for attempts, seconds in ((0, 1), (1, 2), (3, 8), (4, 10), (1000, 10)):
        assert 0.8 * seconds <= delivery.backoff(attempts).total_seconds() <= 1.2 * seconds


def attempt(one: Message) -> delivery.Attempt:
    return asyncio.run(delivery.attempt(client.Temporal(), one))


def test_an_unknown_kind_waits(caplog: pytest.LogCaptureFixture) -> None:
    """X1: a message that no handler knows is kept and reported, not dropped."""
    result = attempt(Message(kind="unknown", key="odd", payload={}))
    assert (result.outcome, result.down) == (None, None)
    assert result.error == "KeyError; see the log."
    assert "odd waits for delivery" in caplog.text


def test_an_undecryptable_address_waits() -> None:
    """X1, E10: a lost key is a configuration error; the decision is kept until it is back."""
    sealed = {**Address(b"t").sealed(), "token": "nonsense"}
    result = attempt(
        Message(kind=handlers.COMPLETE_ACTIVITY, key="x", payload={"address": sealed, "value": "A"})
    )
    assert result.outcome is None
    assert "EXPENSES_FERNET_KEYS" in result.error
    assert "nonsense" not in result.error


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        (Outcome.DELIVERED, logging.INFO),
        (Outcome.ALREADY_COMPLETED, logging.INFO),
        (Outcome.CONFLICT, logging.ERROR),
        (Outcome.UNDELIVERABLE, logging.ERROR),
        (Outcome.DEAD, logging.ERROR),
    ],
)
def test_outcomes_that_alarm(
    outcome: Outcome,
    level: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """E10, design rule 3: each outcome is logged; the bad ones as errors."""

    async def handler(temporal: client.Temporal, payload: dict[str, object]) -> Outcome:
        return outcome

    monkeypatch.setitem(handlers.HANDLERS, "test", handler)
    with caplog.at_level(logging.INFO, "outbox"):
        assert attempt(Message(kind="test", key="k", payload={})).outcome is outcome
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (level, f"k: {outcome.label}")
    ]


@pytest.mark.django_db
def test_database_clock() -> None:
    """Design rule 2: the database's clock, aware."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    assert before < delivery.database_now() < datetime.now(UTC) + timedelta(seconds=1)
