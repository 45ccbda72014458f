"""The chaos run: load and faults on one timeline, then the check of the invariants."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from temporalio.client import Client

from tests.chaos import checks, faults, load
from tests.chaos.checks import Violation
from tests.chaos.faults import Fault
from tests.chaos.load import Load, Plan
from tests.chaos.record import Record
from tests.chaos.stack import Stack

DROPPED = 0.1
# Seconds from one fault to the next, on average.
FAULT_GAP = 2.75
IN_FLIGHT = 100
# An expense that takes longer gives its place to another one, and continues.
PLACE_SECONDS = 60.0
CONSISTENT_SECONDS = 60.0
LOOK_SECONDS = 600.0
LINE_SECONDS = 15.0
SHOWN = 10


async def run(
    folder: Path, expenses: int, count: int, *, seed: int, console: Console, command: str
) -> bool:
    """Return whether every invariant held. `command` repeats the run."""
    random = Random(seed)
    prefix = f"chaos-{seed}-{int(time.time()):x}-"
    plans = load.draw(random, expenses, prefix)
    planned = faults.draw(random, count)
    record = Record(folder / "record.jsonl")
    drops = _Drops(Random(seed), record)
    with Stack(folder, drops) as stack:
        temporal = await Client.connect(stack.temporal_address)
        async with stack.client() as site:
            carried = Load(stack, site, temporal, record)
            await carried.sign_in()

            def done() -> int:
                return sum(told.finished for told in carried.told.values())

            def state() -> str:
                decided = sum(bool(told.acknowledged) for told in carried.told.values())
                return (
                    f"{decided} decided, {done()} finished of {expenses}; "
                    f"{record.counts['fault']} of {count} faults"
                )

            began = time.monotonic()
            async with shown(console, state, done, expenses):
                tasks = await _timeline(random, stack, carried, plans, planned, record)
                drops.stopped = True  # a lost reply is a fault too
                seconds = await _settle(carried, tasks)
                pace = done() / (time.monotonic() - began)
            async with asyncio.timeout(LOOK_SECONDS):
                seen = await checks.look(carried, [plan.expense for plan in plans], prefix)
                waits = await checks.waiting_seconds(carried)
    record.close()
    violations = checks.judge(carried.told, seen)
    if waits is not None:
        violations.append(Violation("outbox", "", f"a message has waited {waits:.0f} s"))
    _show(console, violations, record)
    table = _table(checks.checked(carried.told, seen), violations, planned)
    table.add_row("replies lost between worker and site", str(record.counts["reply lost"]))
    table.add_row("finished expenses/s", f"{pace:.1f}")
    settled = f"{seconds:.1f}" if seconds is not None else f"not in {CONSISTENT_SECONDS:g}"
    table.add_row("seconds to consistency", settled)
    table.add_row(command)
    console.print(table)
    return not violations and seconds is not None


class _Drops:
    """Choose the replies that are lost: a tenth of them, until `stopped`."""

    def __init__(self, random: Random, record: Record) -> None:
        self.stopped = False
        self._random = random
        self._record = record

    def __call__(self, request: str) -> bool:
        lost = not self.stopped and self._random.random() < DROPPED
        if lost:
            about = re.search(r"[?&]id=([^&]+)", request)
            expense = about[1] if about else None
            self._record.write("reply lost", expense=expense, request=request.partition("?")[0])
        return lost


async def _timeline(
    random: Random,
    stack: Stack,
    carried: Load,
    plans: Sequence[Plan],
    planned: Sequence[Fault],
    record: Record,
) -> "list[asyncio.Task[None]]":
    """Start the expenses at even intervals and the faults at random moments between them.

    Return the tasks of the expenses when the last fault is over. A load that falls behind delays
    the faults too, so both end together.
    """
    length = FAULT_GAP * len(planned)
    events: list[tuple[float, Plan | Fault]] = [
        (length * number / len(plans), plan) for number, plan in enumerate(plans)
    ]
    events += [(random.uniform(0, length), fault) for fault in planned]
    places = asyncio.Semaphore(IN_FLIGHT)
    tasks: list[asyncio.Task[None]] = []

    async def hold_place(task: "asyncio.Task[None]") -> None:
        await asyncio.wait({task}, timeout=PLACE_SECONDS)
        places.release()

    now = 0.0
    async with asyncio.TaskGroup() as strikes:
        for at, event in sorted(events, key=lambda event: event[0]):
            await asyncio.sleep(at - now)
            now = at
            if isinstance(event, Fault):
                strikes.create_task(faults.strike(stack, event, record))
            else:
                await places.acquire()
                tasks.append(asyncio.create_task(carried.carry(event)))
                tasks.append(asyncio.create_task(hold_place(tasks[-1])))
    return tasks


async def _settle(carried: Load, tasks: "Sequence[asyncio.Task[None]]") -> float | None:
    """Return the seconds until all work is done; None after CONSISTENT_SECONDS."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(CONSISTENT_SECONDS):
            await asyncio.gather(*tasks)
            while await checks.waiting_seconds(carried) is not None:
                await asyncio.sleep(0.25)
    except TimeoutError:
        return None
    return time.monotonic() - began


@asynccontextmanager
async def shown(
    console: Console, state: Callable[[], str], done: Callable[[], int], total: int
) -> AsyncIterator[None]:
    """Show a progress bar while the block runs; without a terminal, a line now and then."""

    async def lines() -> None:
        while True:
            await asyncio.sleep(LINE_SECONDS)
            console.print(state())

    async def bar() -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=total)
            while True:
                progress.update(task, description=state(), completed=done())
                await asyncio.sleep(0.25)

    showing = asyncio.create_task(bar() if console.is_terminal else lines())
    try:
        yield
    finally:
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing


def _show(console: Console, violations: Sequence[Violation], record: Record) -> None:
    """Print the first violations, with the lines of the record about their expenses."""
    by_expense: dict[str, list[Violation]] = {}
    for violation in violations:
        by_expense.setdefault(violation.expense, []).append(violation)
    for expense, wrong in list(by_expense.items())[:SHOWN]:
        lines = [f"{violation.invariant} violated: {violation.text}" for violation in wrong]
        lines += [f"  {line}" for line in record.lines_of(expense)]
        console.print("\n".join([expense, *lines]), markup=False, soft_wrap=True)
    if len(by_expense) > SHOWN:
        console.print(f"… and {len(by_expense) - SHOWN} more expenses")


def _table(
    checked: Mapping[str, int], violations: Sequence[Violation], planned: Sequence[Fault]
) -> Table:
    table = Table("", "checked", "violated")
    violated = Counter(violation.invariant for violation in violations)
    for name, sentence in checks.INVARIANTS.items():
        table.add_row(f"{name}: {sentence}", str(checked[name]), str(violated[name]))
    table.add_section()
    struck = Counter((fault.kind, fault.target) for fault in planned)
    for kind in faults.KINDS:
        parts = [f"{target} {struck[kind, target]}" for target in faults.TARGETS]
        total = sum(struck[kind, target] for target in faults.TARGETS)
        table.add_row(f"{kind}: {', '.join(parts)}", str(total))
    table.add_section()
    return table
