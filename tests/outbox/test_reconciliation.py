"""What waits or failed is queued again, and the comparison runs for any domain."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections

from outbox import reconciliation, relay, services
from outbox.models import ALARMING, Message
from outbox.reconciliation import Difference, Reconciler
from temporal import client
from temporal.outcomes import Outcome
from tests.outbox.commands import reconcile
from tests.servers import free_port

NOW = datetime(2026, 11, 20, 9, tzinfo=UTC)
EARLIER = NOW - timedelta(days=1)


def message(key: str, outcome: Outcome | None, due_at: datetime = EARLIER) -> Message:
    return Message.objects.create(
        kind="k",
        key=key,
        payload={"value": "A"},
        created_at=EARLIER,
        due_at=due_at,
        attempts=7,
        last_error="why",
        outcome=outcome,
        settled_at=outcome and EARLIER,
    )


@pytest.mark.django_db
def test_retry_opens_waiting_and_alarming_messages_alone() -> None:
    """X6: what waits is due now, what failed for good is opened again and waits from now on; what
    was delivered, and what was not asked for, stays."""
    backed_off = message("waiting", None, NOW + timedelta(seconds=10))
    failed = [message(outcome, outcome) for outcome in ALARMING]
    kept = [
        message("delivered", Outcome.DELIVERED),
        message("there", Outcome.ALREADY_COMPLETED),
        message("other", Outcome.DEAD),
    ]
    before = list(Message.objects.filter(pk__in=[one.pk for one in kept]).values())
    assert services.retry(Message.objects.exclude(key="other").order_by("key"), now=NOW) == 4
    assert list(Message.objects.filter(pk__in=[one.pk for one in kept]).values()) == before

    backed_off.refresh_from_db()
    assert (backed_off.due_at, backed_off.created_at) == (NOW, EARLIER)
    assert len(failed) == 3
    for one in failed:
        one.refresh_from_db()
        assert (one.outcome, one.settled_at) == (None, None)
        assert (one.due_at, one.created_at, one.attempts) == (NOW, NOW, 7)
    assert relay.oldest_waiting() == backed_off
    assert len(relay.lease_due(now=NOW, limit=9)) == 4
    # Leased: asked for again, it goes again, which its receiver answers as a repeat.
    assert services.retry(Message.objects.filter(key="DEAD"), now=NOW) == 1
    [again] = relay.lease_due(now=NOW, limit=9)
    assert again.key == "DEAD"
    relay.settle([relay.Attempt(again, Outcome.DELIVERED)], now=NOW)
    assert services.retry(Message.objects.filter(key="DEAD"), now=NOW) == 0
    assert Message.objects.get(key="DEAD").outcome == Outcome.DELIVERED


@pytest.mark.django_db
def test_enqueue_again_opens_inserts_or_leaves_a_waiting_message() -> None:
    """X1: a settled message is opened with the new payload, a missing one inserted, a waiting one
    left to its delivery."""
    message("settled", Outcome.DELIVERED)
    waiting = message("waiting", None)
    payload = {"value": "B"}
    assert services.enqueue_again("again", "settled", payload)
    assert services.enqueue_again("again", "missing", payload)
    assert not services.enqueue_again("again", "waiting", payload)
    now = relay.database_now()
    for one in Message.objects.filter(key__in=["settled", "missing"]):
        assert (one.kind, one.payload, one.outcome, one.settled_at) == (
            "again",
            payload,
            None,
            None,
        )
        assert one.due_at == one.created_at
        assert timedelta() <= now - one.due_at < timedelta(seconds=20)
    waiting.refresh_from_db()
    assert (waiting.kind, waiting.payload, waiting.due_at) == ("k", {"value": "A"}, EARLIER)
    assert services.waiting(["settled", "waiting", "unknown"]) == {"settled", "waiting"}


@pytest.mark.django_db
def test_a_message_that_is_queued_again_has_neither_attempts_nor_an_error() -> None:
    """X6: the error and the back-off of its earlier delivery are over."""
    message("settled", Outcome.UNDELIVERABLE)
    Message.objects.update(attempts=7, last_error="as before")
    assert services.enqueue_again("again", "settled", {})
    queued = Message.objects.get()
    assert (queued.attempts, queued.last_error) == (0, "")


class Domain:
    """A domain that differs as the test says; what it queues is counted."""

    def __init__(self) -> None:
        self.differences: list[Difference] = []
        self.error: Exception | None = None
        self.queued: list[str] = []
        self.looks = 0

    def differs(self, subject: str, *, fixable: bool = False, automatic: bool = False) -> None:
        def fix() -> bool:
            self.queued.append(subject)
            return self.queued.count(subject) == 1

        self.differences.append(
            Difference(
                subject,
                "APPROVED",
                "[red]lost[/red]",
                "fix it",
                fix if fixable else None,
                automatic,
            )
        )

    def count(self) -> int:
        return len(self.differences)

    async def everything(
        self, temporal: client.Temporal, now: datetime, progress: Callable[[int], None]
    ) -> AsyncIterator[Difference]:
        for difference in self.differences:
            yield difference
            progress(1)
        if self.error:
            raise self.error

    async def suspects(self, temporal: client.Temporal, now: datetime) -> AsyncIterator[Difference]:
        self.looks += 1
        async for difference in self.everything(temporal, now, lambda done: None):
            yield difference


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Domain]:
    domain = Domain()
    monkeypatch.setattr(reconciliation, "COMPARISONS", {"things": domain})
    return domain


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_temporal")
class TestCommand:
    @pytest.fixture
    def _temporal(self, monkeypatch: pytest.MonkeyPatch, temporal_address: str) -> Iterator[None]:
        monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
        yield
        asyncio.run(sync_to_async(connections.close_all)())

    def test_without_a_difference_it_exits_with_0(self, domain: Domain) -> None:
        """X1: exit code 0 where nothing differs."""
        assert (
            reconcile()
            == reconcile("--fix")
            == (0, "Nothing differs, but for what changed in the last 30 s.\n")
        )

    def test_differences_are_shown_and_nothing_is_queued(self, domain: Domain) -> None:
        """X1: exit code 2 and a table, in which an id is what it is; nothing is queued unasked."""
        domain.differs("thing [b]1[/b]", fixable=True)
        domain.differs("thing 2")
        code, output = reconcile()
        assert code == 2
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines()]
        assert rows[3:5] == [
            ["thing [b]1[/b]", "APPROVED", "[red]lost[/red]", "fix it"],
            ["thing 2", "APPROVED", "[red]lost[/red]", "fix it"],
        ]
        assert output.splitlines()[-1] == "2 differ; 1 can be queued with --fix."
        assert domain.queued == []

    def test_fix_queues_what_has_a_remedy_once(
        self, domain: Domain, caplog: pytest.LogCaptureFixture
    ) -> None:
        """X1: --fix queues what it can, says so in the log, and exits with 0 if that was all."""
        domain.differs("thing 1", fixable=True)
        code, output = reconcile("--fix")
        assert (code, output.splitlines()[-1]) == (0, "1 differs; 1 queued, and a relay delivers.")
        domain.differs("thing 2")
        code, output = reconcile("--fix")
        assert (code, output.splitlines()[-1]) == (2, "2 differ; 1 queued; see to the rest.")
        assert domain.queued == ["thing 1", "thing 1"]
        # The second time it was queued already.
        assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
            (
                "WARNING",
                "thing 1: APPROVED here, in Temporal [red]lost[/red]; queued: fix it",
            )
        ]

    def test_differences_found_before_temporal_was_lost_are_shown(self, domain: Domain) -> None:
        """X1: exit code 1; what was found before is shown."""
        domain.differs("thing 1")
        domain.error = client.Unreachable("Temporal does not answer.")
        code, output = reconcile()
        assert code == 1
        assert "thing 1" in output
        assert output.endswith("Temporal does not answer. Compare again when it answers.")

    def test_without_temporal_it_exits_with_1(
        self, domain: Domain, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """X1: exit code 1 and one sentence, though there is nothing to compare."""
        port = free_port()
        monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{port}")
        said = f"Temporal at 127.0.0.1:{port} does not answer. Compare again when it answers."
        assert reconcile() == (1, said)


@pytest.mark.django_db(transaction=True)
class TestRelay:
    @pytest.fixture(autouse=True)
    async def _close_connections(self) -> AsyncIterator[None]:
        yield
        await sync_to_async(connections.close_all)()

    async def test_a_difference_alarms_once_an_hour(
        self,
        domain: Domain,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """X1: the relay queues automatic remedies, and logs other differences once an hour."""
        reconciler, clock = Reconciler(), NOW
        monkeypatch.setattr(relay, "database_now", lambda: clock)

        async def alarms() -> list[str]:
            caplog.clear()
            await reconciler.step()
            return [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]

        domain.differs("fixed", fixable=True, automatic=True)
        assert await alarms() == []
        assert domain.queued == ["fixed"]
        for number in range(12):
            domain.differs(f"thing {number}", fixable=number == 0)
        [alarm] = await alarms()
        assert alarm.startswith(
            "Differs from Temporal, see `manage.py reconcile`: "
            "thing 0: APPROVED here, in Temporal [red]lost[/red]; thing 1: "
        )
        assert alarm.endswith("; thing 9: APPROVED here, in Temporal [red]lost[/red]; and 2 more")
        clock += timedelta(minutes=59)
        assert await alarms() == []
        domain.differs("new")
        [alarm] = await alarms()
        assert alarm.partition(": ")[2].startswith("new: ")
        clock += timedelta(minutes=1)
        [alarm] = await alarms()
        assert "new" not in alarm
        assert alarm.endswith("and 2 more")
        assert set(domain.queued) == {"fixed"}

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (client.Unreachable("Temporal does not answer."), []),
            (DatabaseError("gone"), []),
            (ZeroDivisionError("defect"), ["The comparison with Temporal failed"]),
        ],
    )
    async def test_a_failed_comparison_is_made_again(
        self,
        domain: Domain,
        error: Exception,
        said: list[str],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """X1: neither an outage, which the relay names, nor a defect ends the comparison."""
        monkeypatch.setattr(reconciliation, "EVERY_SECONDS", 0.05)
        domain.error = error
        running = asyncio.create_task(Reconciler().run())
        async with asyncio.timeout(20):
            while domain.looks < 2:
                await asyncio.sleep(0.01)
            assert {r.getMessage() for r in caplog.records if r.levelname != "DEBUG"} == set(said)
            domain.error = None
            domain.differs("thing", fixable=True, automatic=True)
            while not domain.queued:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
