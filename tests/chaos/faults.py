"""The faults: kill -9, or SIGSTOP and SIGCONT, for each process of the product."""

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from itertools import product
from random import Random

from tests.chaos.record import Record
from tests.chaos.stack import Stack

KINDS = ("kill", "freeze")
# `web` is the main process of the site's server, `web process` one that answers requests.
TARGETS = ("web", "web group", "web process", "worker", "relay", "temporal")
SHORTEST_FREEZE = 0.2
LONGEST_FREEZE = 4.0


@dataclass(frozen=True)
class Fault:
    kind: str
    target: str
    seconds: float
    """The duration of a freeze."""


def draw(random: Random, count: int) -> list[Fault]:
    """Draw faults in random order. Each kind hits each target once before any is repeated."""
    faults: list[Fault] = []
    while len(faults) < count:
        deck = list(product(KINDS, TARGETS))
        random.shuffle(deck)
        faults += [
            Fault(kind, target, round(random.uniform(SHORTEST_FREEZE, LONGEST_FREEZE), 2))
            for kind, target in deck
        ]
    return faults[:count]


async def strike(stack: Stack, fault: Fault, record: Record) -> None:
    """Hit the target as soon as it lives. Return when it is no longer frozen."""
    name, _, part = fault.target.partition(" ")
    while not (victims := _victims(stack, name, part)):
        await asyncio.sleep(0.05)
    freeze = fault.kind == "freeze"
    _send(victims, signal.SIGSTOP if freeze else signal.SIGKILL)
    seconds = fault.seconds if freeze else None
    record.write("fault", kind=fault.kind, target=fault.target, pids=victims, seconds=seconds)
    if freeze:
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            _send(victims, signal.SIGCONT)


def _victims(stack: Stack, name: str, part: str) -> list[int]:
    if not stack.is_up():
        raise RuntimeError(f"`up` has ended unexpectedly; see {stack.console}")
    living = stack.session(name)
    match part:
        case "group":
            return living
        case "process":
            return living[-1:] if len(living) > 1 else []
        case _:
            return living[:1]


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # the process has ended meanwhile
            os.kill(pid, number)
