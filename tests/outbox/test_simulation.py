"""Generated schedules of delivery: two relays and a web process, crashes at any point, a clock that
is set forward and back, and every answer of Temporal to a call that was applied, was not, or is
later.

Real are the relay's step, the rules of settlement, the attempt, the handlers, the classification
of answers and the SDK's client. Modelled are Temporal's frontend and the table of messages with its
leases, which `test_the_database_leases_and_settles_as_the_model_does` compares with the database.
"""

import asyncio
import copy
import functools
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from temporalio.client import Client

from outbox import handlers, relay, services
from outbox.models import ALARMING, Message
from temporal import client
from temporal.addresses import Address
from temporal.outcomes import Outcome
from tests.factories import NOW
from tests.outbox import frontend

OPPOSITE = {"APPROVED": "REJECTED", "REJECTED": "APPROVED"}
WAIT = timedelta(seconds=relay.ATTEMPT_SECONDS)
# How a message addresses the activity, and its fault until somebody repairs it.
ADDRESSES = ("named", "named", "damaged token", "garbage", "token alone", "wait", "early wait")
WAITS = ("wait", "early wait")
FAULTS = ("",) * 8 + ("unreadable", "unknown kind", "raises", "times out")
POISON = "poison"


@pytest.fixture(scope="module", autouse=True)
def _simulated() -> Iterator[None]:
    async def poison(temporal: client.Temporal, payload: dict[str, Any]) -> Outcome:
        raise {"raises": ValueError, "times out": TimeoutError}[payload["fault"]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "connect", frontend.connect)
        patch.setitem(handlers.HANDLERS, POISON, poison)
        # The only time is the model's.
        patch.setattr(client, "CALL_SECONDS", 3600.0)
        patch.setattr(relay, "ATTEMPT_SECONDS", 3600.0)
        logging.disable()
        yield
        logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as one:
        yield one


@functools.cache
def sealed_address(token: bytes, *ids: str) -> dict[str, str]:
    """Encrypted once for all schedules."""
    return Address(token, *ids).sealed()


# How long a relay holds what it takes; nobody holds a message beyond two such times.
LEASE = timedelta(seconds=15)


class Table:
    """A model of the table of messages and of its leases."""

    def __init__(self, rows: Iterable[Message] = ()) -> None:
        self.rows = {row.pk: row for row in rows}

    def lease_due(self, *, now: datetime, limit: int) -> list[Message]:
        free = [
            row
            for row in self.rows.values()
            if row.settled_at is None and not now < row.due_at <= now + 2 * LEASE
        ]
        leased = sorted(free, key=lambda row: (row.due_at, row.pk))[:limit]
        for row in leased:
            row.due_at = now + LEASE
        return [copy.copy(row) for row in leased]

    def settle(self, attempts: Iterable[relay.Attempt], *, now: datetime, jitter: float) -> None:
        for attempt in attempts:
            row = self.rows[attempt.message.pk]
            changes = relay.settlement(row, attempt, now=now, jitter=jitter)
            for name, value in changes.items():
                setattr(row, name, value)

    def values(self) -> dict[int, tuple[Any, ...]]:
        return {pk: values(row) for pk, row in self.rows.items()}


def values(row: Message) -> tuple[Any, ...]:
    names = ("kind", "payload", "due_at", "attempts", "last_error", "outcome", "settled_at")
    return tuple(getattr(row, name) for name in names)


@dataclass
class Decided:
    """A decision, whom it is for, and how its message says so."""

    pk: int
    value: str
    address: str
    fault: str

    @classmethod
    def generated(cls, pk: int, schedule: "Schedule") -> "Decided":
        value = schedule.choose(tuple(OPPOSITE))
        return cls(pk, value, schedule.choose(ADDRESSES), schedule.choose(FAULTS))

    @property
    def token(self) -> bytes:
        return frontend.token(self.workflow_id, "run-0", 1)

    @property
    def workflow_id(self) -> str:
        return f"wf-{self.pk}"

    def message(self, *, repaired: bool) -> tuple[str, dict[str, Any]]:
        """Its kind and payload."""
        if self.fault in ("raises", "times out") and not repaired:
            return POISON, {"fault": self.fault}
        if self.address in WAITS:
            kind = handlers.COMPLETE_WAIT
            payload = {
                "workflow_id": self.workflow_id,
                "activity_type": frontend.ACTIVITY_TYPE,
                "argument": frontend.ARGUMENT,
                "value": self.value,
                "started": self.address == "wait",
            }
        else:
            damaged = self.address in ("damaged token", "garbage")
            alone = self.address in ("garbage", "token alone")
            ids = () if alone else (self.workflow_id, "run-0", frontend.ACTIVITY_ID)
            sealed = sealed_address(b"garbage" if damaged else self.token, *ids)
            if self.fault == "unreadable" and not repaired:
                sealed = {**sealed, "token": "nonsense"}
            kind, payload = handlers.COMPLETE_ACTIVITY, {"address": sealed, "value": self.value}
        if self.fault == "unknown kind" and not repaired:
            kind = "unknown"
        return kind, payload


class Schedule:
    """What happens next, read off bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def choose(self, options: Sequence[Any]) -> Any:
        """One of the options; the first where nothing is left."""
        chosen = self._data[self._at] if self else 0
        self._at += 1
        return options[chosen % len(options)]


class Process:
    """A process that delivers: what it has under way goes with it."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.restart()

    def restart(self) -> None:
        self.connection = frontend.Frontend(self.world.server)
        self.gates: list[asyncio.Future[None]] = []
        self.tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Any) -> None:
        frontend.reached.set(self.connection)
        self.tasks.append(asyncio.create_task(work))

    def possible(self) -> list[Any]:
        """What may happen here next: requests under way, attempts to settle, None to begin."""
        begins = [None] if self.may_begin() else []
        return [*self.connection.calls, *self.gates, *begins]

    async def gate(self) -> None:
        """Between attempt and settle."""
        if not self.connection.well:
            gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.gates.append(gate)
            await gate

    def open(self, gate: "asyncio.Future[None]") -> None:
        self.gates.remove(gate)
        gate.set_result(None)

    def crash(self, applied: str) -> None:
        for call in self.connection.calls:
            self.connection.lose(call, applied)
            call.answered.cancel()
        for task in self.tasks:
            task.cancel()
        self.restart()

    async def finish(self) -> None:
        """Do what is under way, with true answers."""
        self.connection.well = True
        while True:
            for call in list(self.connection.calls):
                self.connection.answer(call)
            for gate in list(self.gates):
                self.open(gate)
            if all(task.done() for task in self.tasks):
                break
            await asyncio.sleep(0)
        self.report()

    def report(self) -> None:
        """Raises what a finished task raised."""
        for task in [one for one in self.tasks if one.done()]:
            self.tasks.remove(task)
            task.result()


class RelayProcess(Process, relay.Relay):
    """The relay's own steps, on the table."""

    def restart(self) -> None:
        Process.restart(self)
        relay.Relay.__init__(self)

    def may_begin(self) -> bool:
        rows = self.world.table.rows.values()
        return not self.tasks and any(
            not row.outcome and row.due_at <= self.world.now for row in rows
        )

    def begin(self) -> None:
        self.start(self.step())

    async def lease(self, limit: int) -> list[Message]:
        return self.world.lease(self, limit)

    async def settle(self, attempts: Sequence[relay.Attempt]) -> None:
        await self.gate()
        self.world.settle(self, attempts)


class WebProcess(Process):
    """Commits decisions, leased to itself or not, and delivers its own."""

    def restart(self) -> None:
        super().restart()
        self.temporal = client.Temporal()

    def may_begin(self) -> bool:
        return len(self.world.table.rows) < len(self.world.decided)

    def begin(self) -> None:
        if message := self.world.commit(self):
            self.start(self.deliver(message))

    async def deliver(self, message: Message) -> None:
        attempt = await relay.try_once(self.temporal, message)
        await self.gate()
        self.world.settle(self, [attempt])


# How long a relay that finds nothing to do is left alone.
IDLE = timedelta(seconds=4)
MOVES = (
    *("go",) * 20,
    *("clock",) * 3,
    *("happen",) * 3,
    *("poll", "retry", "catch_up", "crash"),
)
HAPPENINGS = (
    *("wait", "retry", "retry", "complete", "reset", "reset"),
    *("time out", "close", "restart", "forget"),
)
CLOCK = tuple(timedelta(seconds=seconds) for seconds in (1, 6, 16, 3600, -3600))
ERRORS = (*frontend.UNCERTAIN, frontend.UNKNOWN_NAMESPACE)
ANSWERS = (None,) * 2 * len(ERRORS) + ERRORS
APPLIED = ("now", "now", "never", "late", "twice")


class World:
    """The processes, the table, Temporal and the clock. Each settlement and each lease is checked
    when it is made."""

    def __init__(self, schedule: Schedule, decided: Sequence[Decided]) -> None:
        self.schedule = schedule
        self.decided = decided
        self.now = NOW
        self.table = Table()
        self.server = frontend.Server(
            {
                one.workflow_id: []
                if one.address == "early wait"
                else [frontend.Run("run-0", "run-0", scheduled=one.address != "wait")]
                for one in decided
            }
        )
        self.trace: list[Any] = []
        # Who has which message, and since when and until when nobody else may take it.
        self.holders: dict[int, tuple[Process, datetime, datetime]] = {}
        self.relays = RelayProcess(self), RelayProcess(self)
        self.web = WebProcess(self)
        self.processes: tuple[Process, ...] = (*self.relays, self.web)

    # The table, as the processes reach it

    def commit(self, web: Process) -> Message | None:
        """Insert the next message; the copy that the web process delivers, if it is to."""
        pk = len(self.table.rows) + 1
        kind, payload = self.decided[pk - 1].message(repaired=False)
        here = self.schedule.choose((True, True, False))
        due_at = self.now + services.COMMIT_LEASE if here else self.now
        row = Message(
            pk=pk,
            kind=kind,
            key=str(pk),
            payload=payload,
            created_at=self.now,
            due_at=due_at,
            attempts=self.schedule.choose((0, 3, 30)),
        )
        self.table.rows[pk] = row
        if not here:
            return None
        self.holders[pk] = (web, self.now, due_at)
        return copy.copy(row)

    def lease(self, process: Process, limit: int) -> list[Message]:
        # The clock was read before the rows were.
        now = self.now - self.schedule.choose((timedelta(0), timedelta(milliseconds=5)))
        taken = self.table.lease_due(now=now, limit=limit)
        if not taken:
            self.now += IDLE
        for one in taken:
            assert one.outcome is None
            if one.pk in self.holders:
                _, since, until = self.holders[one.pk]
                assert not since <= self.now < until, f"{one.pk} is taken from its holder"
            self.holders[one.pk] = (process, now, now + WAIT)
        return taken

    def settle(self, process: Process, attempts: Sequence[relay.Attempt]) -> None:
        rows = [self.table.rows[attempt.message.pk] for attempt in attempts]
        before = [values(row) for row in rows]
        jitter = self.schedule.choose((0.0, 0.5, 1.0))
        self.table.settle(attempts, now=self.now, jitter=jitter)
        for attempt, row, was in zip(attempts, rows, before, strict=True):
            if self.holders.get(row.pk, (None,))[0] is not process:
                assert values(row) == was, f"{row.pk} is settled by one that does not hold it"
                continue
            del self.holders[row.pk]
            assert row.outcome == attempt.outcome
            if row.outcome is None:
                assert timedelta(0) < row.due_at - self.now <= LEASE
            else:
                self.check_outcome(self.decided[row.pk - 1], row)

    def check_outcome(self, decided: Decided, row: Message) -> None:
        runs = self.server.workflows[decided.workflow_id]
        held = [run.result for run in runs if run.result is not None]
        match row.outcome:
            case Outcome.DELIVERED | Outcome.ALREADY_COMPLETED:
                assert frontend.payload(decided.value) in held
            case Outcome.CONFLICT:
                assert frontend.payload(OPPOSITE[decided.value]) in held
            case Outcome.UNDELIVERABLE:
                assert not self.could_tell(decided), f"{row.pk} could be delivered"
            case _:
                assert (row.outcome, decided.address) == (Outcome.DEAD, "garbage")

    def could_tell(self, decided: Decided) -> bool:
        """Whether somebody waits, or will, for this decision, or it is known who told it."""
        runs = self.server.workflows[decided.workflow_id]
        if not runs:
            return True
        first, current = runs[0], runs[-1]
        if decided.address == "token alone":
            return first.waits and first.attempt == 1
        if current.first_id != first.id:
            return False
        told = current.known and current.result is not None
        return told or (current.running and not current.timed_out)

    # The moves of a schedule

    async def play(self) -> None:
        while self.schedule:
            # No two moments are the same.
            self.now += timedelta(milliseconds=1)
            move = self.schedule.choose(MOVES)
            self.trace.append((move, getattr(self, move)()))
            if move in ("go", "poll"):
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                for process in self.processes:
                    process.report()

    def go(self) -> Any:
        """One thing that is under way, or may begin, goes on."""
        possible = [(one, what) for one in self.processes for what in one.possible()]
        if not possible:
            return self.poll()
        process, what = self.schedule.choose(possible)
        if what is None:
            return process, process.begin()
        if isinstance(what, asyncio.Future):
            return process, process.open(what)
        error, applied = self.schedule.choose(ANSWERS), self.schedule.choose(APPLIED)
        if error is frontend.UNKNOWN_NAMESPACE:
            applied = "never"
        process.connection.answer(what, error, applied)
        return process, what, error, applied

    def poll(self) -> Any:
        """A relay looks whether there is something to do."""
        one = self.schedule.choose(self.relays)
        return one, one.tasks or one.begin()

    def crash(self) -> Any:
        process = self.schedule.choose(self.processes)
        process.crash(self.schedule.choose(APPLIED))
        return process

    def clock(self) -> Any:
        self.now += self.schedule.choose(CLOCK)
        return self.now

    def catch_up(self) -> None:
        self.server.catch_up()

    def retry(self) -> Any:
        """An operator makes one due, also one that settled with an alarm."""
        row = self.table.rows.get(self.schedule.choose(self.decided).pk)
        if row is not None and row.outcome in (None, *ALARMING):
            row.outcome, row.settled_at, row.due_at = None, None, self.now
            self.holders.pop(row.pk, None)
        return row

    def happen(self) -> Any:
        """To a workflow, by others."""
        decided = self.schedule.choose(self.decided)
        runs = self.server.workflows[decided.workflow_id]
        if not runs:
            runs.append(frontend.Run("run-0", "run-0"))
            return decided.workflow_id, "start"
        current, fresh = runs[-1], f"run-{len(runs)}"
        what = self.schedule.choose(HAPPENINGS)
        match what:
            case "wait" if current.running:
                current.scheduled = True
            case "retry" if current.waits:
                current.attempt += 1
            case "complete" if current.waits:
                current.result = frontend.payload(self.schedule.choose(tuple(OPPOSITE)))
            case "time out" if current.waits:
                current.timed_out = True
            case "close":
                current.running = False
            case "reset" if current.running and not current.timed_out:
                current.running = False
                waits = self.schedule.choose((True, False))
                runs.append(
                    frontend.Run(fresh, current.first_id, current.argument, scheduled=waits)
                )
            case "restart" if not current.running:
                runs.append(frontend.Run(fresh, fresh, "another expense", scheduled=True))
            # Not within the weeks of retention of a start that is still under way.
            case "forget" if not current.running and decided.address != "early wait":
                for run in runs:
                    run.known = False
            case _:
                return "nothing"
        return decided.workflow_id, what

    # The end: all is well again

    async def drain(self) -> None:
        """One relay goes on; the other processes stay frozen until all is settled."""
        for decided in self.decided:
            runs = self.server.workflows[decided.workflow_id]
            current = runs[-1] if runs else frontend.Run("run-0", "run-0")
            runs[-1:] = [current]
            current.scheduled |= current.running
            if decided.address in WAITS and current.first_id != "run-0":
                # What wait that run may come to is not known before it ends.
                current.running = False
        goes_on, *frozen = self.processes
        await goes_on.finish()
        await self.work_off([one for one in self.decided if not one.fault], steps=30)
        for pk, row in self.table.rows.items():
            row.kind, row.payload = self.decided[pk - 1].message(repaired=True)
        await self.work_off(self.decided, steps=30)
        settled = self.table.values()
        for process in frozen:
            await process.finish()
        self.server.catch_up()
        assert self.table.values() == settled
        for decided in self.decided:
            for run in self.server.workflows[decided.workflow_id]:
                if run.told:
                    assert run.result == frontend.payload(decided.value)
                    assert run.first_id == "run-0", "another workflow of the same id was told"

    def is_settled(self, decided: Iterable[Decided]) -> bool:
        """Whether those of them that are committed have an outcome."""
        rows = self.table.rows
        return all(rows[one.pk].outcome for one in decided if one.pk in rows)

    async def work_off(self, decided: Sequence[Decided], *, steps: int) -> None:
        """Settle every one of them, in bounded time and so many steps."""
        frontend.reached.set(self.relays[0].connection)
        end = self.now + timedelta(seconds=40)
        for _ in range(steps):
            if self.is_settled(decided):
                return
            pause = await self.relays[0].step()
            if pause != relay.POLL_SECONDS:
                self.now += timedelta(seconds=pause)
            assert self.now < end
        pytest.fail(f"not settled after {steps} steps")


@settings(max_examples=2_000)
@pytest.mark.timeout(600)
@given(st.binary(min_size=50, max_size=150))
def test_no_schedule_loses_or_falsifies_a_message(runner: asyncio.Runner, data: bytes) -> None:
    """X1: no message is dropped, none is delivered with another verdict or reported as what it
    did not come to, none that is settled changes, none is taken from its holder, and whatever
    went wrong, all are delivered soon after all is well; a poison row keeps none of them back."""

    async def simulate() -> None:
        schedule = Schedule(data)
        world = World(schedule, [Decided.generated(pk, schedule) for pk in (1, 2, 3)])
        try:
            await world.play()
            await world.drain()
        except BaseException:
            note("\n".join(map(str, world.trace)))
            raise

    runner.run(simulate())


@pytest.mark.timeout(600)
def test_poison_rows_do_not_delay_the_thousands_behind_them(runner: asyncio.Runner) -> None:
    """X1: when Temporal is back, poison rows hold up the thousands behind them for no longer than
    their own attempts; a relay that waited a second after each would take minutes."""
    poison, waiting = 500, 3000

    async def simulate() -> None:
        faults = ["", *["unreadable"] * poison, *[""] * waiting]
        decided = [
            Decided(pk, "APPROVED", "named", fault) for pk, fault in enumerate(faults, start=1)
        ]
        world = World(Schedule(b"\2" * len(faults)), decided)
        for _ in decided:
            world.commit(world.web)
            world.now += timedelta(milliseconds=1)
        # The first finds that Temporal is down.
        one = world.relays[0]
        one.begin()
        while not one.connection.calls:
            await asyncio.sleep(0)
        one.connection.answer(one.connection.calls[0], RuntimeError, "never")
        await one.finish()
        healthy = [one for one in decided if not one.fault]
        await world.work_off(healthy, steps=poison + waiting // relay.BATCH + 10)

    runner.run(simulate())


@pytest.mark.django_db
def test_the_database_leases_and_settles_as_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """X1: the database leases and settles as the model of the generated schedules does."""
    generator = random.Random(1)
    monkeypatch.setattr(random, "random", lambda: 0.25)
    moments = [
        timedelta(seconds=seconds)
        for seconds in (-3600, -1, 0, 0.001, 15, 29.999, 30, 30.001, 3600)
    ]
    for _ in range(200):
        Message.objects.all().delete()
        for number in range(generator.randrange(8)):
            outcome = generator.choice([None, None, None, Outcome.DELIVERED])
            Message.objects.create(
                kind="k",
                key=str(number),
                payload={},
                created_at=NOW,
                due_at=NOW + generator.choice(moments),
                attempts=generator.randrange(5),
                outcome=outcome,
                settled_at=outcome and NOW,
            )
        table, now, held = Table(Message.objects.all()), NOW, []
        for _ in range(6):
            now += generator.choice(moments)
            if generator.random() < 0.5:
                limit = generator.randrange(1, 5)
                leased = relay.lease_due(now=now, limit=limit)
                expected = table.lease_due(now=now, limit=limit)
                assert list(map(values, leased)) == list(map(values, expected))
                held += leased
            else:
                attempts = {
                    one.pk: relay.Attempt(one, generator.choice([None, *Outcome]), "why")
                    for one in generator.sample(held, generator.randrange(len(held) + 1))
                }.values()
                relay.settle(attempts, now=now)
                table.settle(attempts, now=now, jitter=0.25)
            assert Table(Message.objects.all()).values() == table.values()
