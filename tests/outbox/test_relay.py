import asyncio
import logging
import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

from outbox import handlers, relay
from outbox.models import Message
from temporal import client
from temporal.addresses import Address
from temporal.outcomes import Outcome

NOW = datetime(2026, 11, 20, 9, tzinfo=UTC)


@pytest.mark.django_db(transaction=True)
def test_two_relays_never_lease_the_same_message() -> None:
    """X1: racing relays lease each message exactly once, though each read the clock at another
    moment."""
    Message.objects.bulk_create(
        Message(kind="k", key=str(number), payload={}, created_at=NOW, due_at=NOW)
        for number in range(200)
    )
    taken: list[str] = []

    def lease(now: datetime) -> None:
        while leased := relay.lease_due(now=now, limit=7):
            taken.extend(one.key for one in leased)
        connection.close()

    moments = [NOW + timedelta(milliseconds=number) for number in range(4)]
    threads = [threading.Thread(target=lease, args=[now]) for now in moments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(str(number) for number in range(200))


def waiting(pk: int, *, due: float, **fields: object) -> Message:
    times = {"created_at": NOW, "due_at": NOW + timedelta(seconds=due)}
    return Message(pk=pk, kind="k", key=str(pk), payload={}, **times, **fields)


@pytest.mark.django_db
def test_due_messages_are_leased_oldest_first() -> None:
    """X1: messages that are due, and messages that are due later than any lease ends, since the
    clock was set back; neither settled nor leased messages."""
    due = [waiting(1, due=0), waiting(2, due=-2), waiting(3, due=-1), waiting(4, due=30.001)]
    others = [
        waiting(5, due=0.001),
        waiting(6, due=30),
        waiting(7, due=-9, outcome=Outcome.DELIVERED, settled_at=NOW),
    ]
    Message.objects.bulk_create([*others, *due])
    leased = relay.lease_due(now=NOW, limit=9)
    assert [message.pk for message in leased] == [2, 3, 1, 4]
    assert {message.due_at for message in leased} == {NOW + timedelta(seconds=15)}
    stored = Message.objects.filter(pk__in=[1, 2, 3, 4]).values_list("due_at", flat=True)
    assert set(stored) == {NOW + timedelta(seconds=15)}
    assert relay.lease_due(now=NOW, limit=9) == []


@pytest.mark.django_db
def test_messages_beyond_the_limit_keep_their_due_time() -> None:
    """X1: the rest is left for the next step, or for another relay."""
    first, second = waiting(1, due=-2), waiting(2, due=-1)
    Message.objects.bulk_create([second, first])
    assert relay.lease_due(now=NOW, limit=1) == [first]
    second.refresh_from_db()
    assert second.due_at == NOW - timedelta(seconds=1)


def test_an_attempt_settles_or_backs_off_and_never_changes_a_settled_message() -> None:
    """X1, X6: an outcome settles; a failure is due again after the back-off, with its error. Where
    the message has an outcome, or somebody else holds it, nothing changes."""
    one = waiting(1, due=15, attempts=3)
    later = NOW + timedelta(seconds=2)

    def settlement(current: Message, *came_to: object) -> dict[str, object]:
        attempt = relay.Attempt(one, *came_to)
        return relay.settlement(current, attempt, now=later, jitter=0.5)

    delivered = {"attempts": 4, "last_error": "", "outcome": "DELIVERED", "settled_at": later}
    assert settlement(one, Outcome.DELIVERED) == delivered
    again = {"attempts": 4, "last_error": "No.", "due_at": later + timedelta(seconds=8)}
    assert settlement(one, None, "No.") == again
    for current in (
        waiting(1, due=15, outcome=Outcome.DELIVERED, settled_at=NOW),
        waiting(1, due=20),
    ):
        assert settlement(current, Outcome.CONFLICT) == {}
        assert settlement(current, None, "No.") == {}


def test_backoff_grows_to_ten_seconds_and_never_ends() -> None:
    """X1: 1 s doubling, at most 10 s, jitter of a fifth; a thousand attempts later as well. All of
    it is shorter than a lease."""
    for attempts, seconds in ((0, 1), (1, 2), (3, 8), (4, 10), (1000, 10)):
        for jitter, factor in ((0, 0.8), (0.5, 1), (1, 1.2)):
            pause = relay.backoff(attempts, jitter=jitter)
            assert pause.total_seconds() == pytest.approx(seconds * factor)
            assert pause < relay.RELAY_LEASE


def attempt(one: Message) -> relay.Attempt:
    return asyncio.run(relay.try_once(client.Temporal(), one))


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
        (Outcome.OBSOLETE, logging.INFO),
        (Outcome.CONFLICT, logging.ERROR),
        (Outcome.UNDELIVERABLE, logging.ERROR),
        (Outcome.DEAD, logging.ERROR),
    ],
)
def test_alarming_outcomes_are_logged_as_errors(
    outcome: Outcome,
    level: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """E10: each outcome is logged, alarming outcomes as errors."""

    async def handler(temporal: client.Temporal, payload: dict[str, object]) -> Outcome:
        return outcome

    monkeypatch.setitem(handlers.HANDLERS, "test", handler)
    with caplog.at_level(logging.INFO, "outbox"):
        assert attempt(Message(kind="test", key="k", payload={})).outcome is outcome
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (level, f"k: {outcome.label}")
    ]


@pytest.mark.django_db
def test_the_clock_is_the_databases_and_aware() -> None:
    """X1: all relays use the clock of the database."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    assert before < relay.database_now() < datetime.now(UTC) + timedelta(seconds=1)
