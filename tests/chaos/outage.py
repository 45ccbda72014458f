"""Measure how fast decisions are answered while Temporal is down, and when they arrive later."""

import asyncio
import os
import signal
import statistics
import time
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table
from temporalio.client import Client
from temporalio.service import RPCError

from tests.chaos import checks
from tests.chaos.load import APPROVED, REJECTED, RUNNING, Load
from tests.chaos.record import Record
from tests.chaos.run import shown
from tests.chaos.stack import Stack

DECISIONS_AT_A_TIME = 4
P50_MS = 50.0
P99_MS = 500.0
DELIVERED_SECONDS = 30.0
# The run gives up after this time.
PATIENCE_SECONDS = 300.0


async def run(
    folder: Path, count: int, *, frozen: bool, seed: int, console: Console, command: str
) -> bool:
    """Return whether answers and deliveries kept the limits. `command` repeats the run."""
    random = Random(seed)
    expenses = [f"outage-{seed}-{int(time.time()):x}-{number}" for number in range(count)]
    record = Record(folder / "record.jsonl")
    done: dict[str, list[str]] = {"waiting": [], "decided": [], "ended": []}
    milliseconds: list[float] = []

    def state() -> str:
        return ", ".join(f"{len(ids)} {what}" for what, ids in done.items()) + f" of {count}"

    with Stack(folder, lambda _: False) as stack:
        temporal = await Client.connect(stack.temporal_address)
        async with stack.client() as site:
            load = Load(stack, site, temporal, record)

            async def prepare(expense: str) -> None:
                await load.submit(expense)
                while "registered" not in await load.events(expense):
                    await asyncio.sleep(0.5)
                done["waiting"].append(expense)

            async def decide(expense: str) -> None:
                verdict = random.choice((APPROVED, REJECTED))
                decide = random.choice((load.by_protocol, load.by_rest))
                began = time.perf_counter()
                acknowledged, status = await decide(expense, verdict)
                taken = (time.perf_counter() - began) * 1000
                assert acknowledged, expense
                milliseconds.append(taken)
                record.write(
                    "acknowledged",
                    expense=expense,
                    verdict=verdict,
                    route=decide.__name__.removeprefix("by_"),
                    status=status,
                    milliseconds=round(taken, 1),
                )
                done["decided"].append(expense)

            async def end(expense: str) -> None:
                while await load.result(expense) == RUNNING:
                    await asyncio.sleep(0.5)
                done["ended"].append(expense)

            def steps() -> int:
                return sum(map(len, done.values()))

            async with shown(console, state, steps, 3 * count):
                await checks.each(expenses, prepare)
                if frozen:
                    (server, *_) = stack.session("temporal")
                    os.kill(server, signal.SIGSTOP)
                else:
                    stack.hold_temporal_down()
                record.write("down", how="frozen" if frozen else "refusing")
                await checks.each(expenses, decide, at_a_time=DECISIONS_AT_A_TIME)
                if frozen:
                    os.kill(server, signal.SIGCONT)
                else:
                    stack.let_temporal_up()
                while not await _answers(temporal):
                    await asyncio.sleep(0.05)
                record.write("back")
                back = time.monotonic()
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while await checks.waiting_seconds(load) is not None:
                        await asyncio.sleep(0.25)
                    delivered = time.monotonic() - back
                    await checks.each(expenses, end)
                    ended = time.monotonic() - back
    record.close()
    p99 = statistics.quantiles(milliseconds, n=100, method="inclusive")[98]
    figures = (
        ("p50 of an answer, ms", statistics.median(milliseconds), P50_MS),
        ("p99 of an answer, ms", p99, P99_MS),
        ("slowest answer, ms", max(milliseconds), None),
        ("all delivered after its return, s", delivered, DELIVERED_SECONDS),
        ("all workflows ended, s", ended, DELIVERED_SECONDS),
    )
    table = Table(f"{count} decisions, Temporal {'frozen' if frozen else 'down'}", "", "limit")
    for name, figure, limit in figures:
        table.add_row(name, f"{figure:.1f}", "" if limit is None else f"{limit:g}")
    table.add_section()
    table.add_row(command)
    console.print(table)
    return all(limit is None or figure < limit for _, figure, limit in figures)


async def _answers(temporal: Client) -> bool:
    try:
        async with asyncio.timeout(2):
            await temporal.count_workflows()
    except (RPCError, RuntimeError, TimeoutError):
        return False
    return True
