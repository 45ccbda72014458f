"""The invariants, judged from outside: HTTP answers, the ledger, the audit trail and Temporal's
results; never the database."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import httpx

from tests.chaos.load import APPROVED, REJECTED, RUNNING, Load, Told
from worker import contracts

T = TypeVar("T")
AT_A_TIME = 32
# The states that a verdict may have led to.
STATES = {APPROVED: (APPROVED, "COMPLETED"), REJECTED: (REJECTED,)}
# What each final state comes with: the workflow's result and the rows in the ledger …
ENDS = {"COMPLETED": (contracts.COMPLETED, 1), "REJECTED": ("", 0)}
# … and, of these entries in the audit trail, once each:
DECISIONS_AND_PAYMENTS = ("approved", "rejected", "withdrawn", "paid")
EVENTS = {"COMPLETED": ("approved", "paid"), "APPROVED": ("approved",), "REJECTED": ("rejected",)}

INVARIANTS = {
    "end": "each expense was decided, and its workflow ended, within 60 s of the last fault",
    "answered": "each decision was answered, and as the protocol says",
    "I1": "each acknowledged create exists",
    "I2": "at most one verdict was acknowledged, and it is the final one",
    "I3": 'COMPLETED: result "COMPLETED", paid once; REJECTED: result "", not paid',
    "I4": "no workflow runs whose expense is decided",
    "I5": "the audit trail has one decision, the final one, and each payment",
    "outbox": "nothing waits for its delivery",
}


class Violation(NamedTuple):
    invariant: str
    expense: str
    text: str


@dataclass
class Seen:
    """What an expense looks like from outside."""

    status: str
    """The body of `/status`."""
    listed: bool
    """Whether the REST list has it."""
    payments: int
    result: str
    """Of its workflow; in parentheses where it has none."""
    events: Counter[str] = field(default_factory=Counter)
    """Its audit trail."""


async def waiting_seconds(load: Load) -> float | None:
    """Age of the oldest message that waits for its delivery; None when none waits. Infinite where
    the site does not say."""
    try:
        answer = await load.site.get("/readyz")
        seconds: float | None = answer.json()["oldest_undelivered_seconds"]
    except (httpx.TransportError, ValueError, KeyError):
        return math.inf
    return seconds if seconds is not None or answer.status_code == 200 else math.inf


async def look(load: Load, expenses: Iterable[str], prefix: str) -> dict[str, Seen]:
    """See each expense, and any other of that prefix that the site has."""
    listed = {row["expense_id"] for row in await load.rows("/api/v1/expenses/")}
    payments = Counter(row["expense_id"] for row in await load.rows("/api/v1/payments/"))

    async def see(expense: str) -> Seen:
        status = await load.status(expense)
        return Seen(
            status=status,
            listed=expense in listed,
            payments=payments[expense],
            result=await load.result(expense),
            events=Counter(await load.events(expense) if expense in listed else ()),
        )

    others = (one for one in listed | payments.keys() if one.startswith(prefix))
    every = sorted({*expenses, *others})
    return dict(zip(every, await each(every, see), strict=True))


def checked(told: Mapping[str, Told], seen: Mapping[str, Seen]) -> dict[str, int]:
    """How many facts each invariant was checked on."""
    return dict.fromkeys(INVARIANTS, len(seen)) | {
        "answered": len(told),
        "I1": sum(client.created for client in told.values()),
        "I2": sum(len(client.acknowledged) + len(client.refused) for client in told.values()),
        "outbox": 1,
    }


def judge(told: Mapping[str, Told], seen: Mapping[str, Seen]) -> list[Violation]:
    """What is wrong with the expenses, given what their clients were told."""
    violations = []
    for expense, was in seen.items():
        client = told.get(expense) or Told()
        violations += [Violation(row, expense, text) for row, text in _wrong(client, was)]
    return violations


def _wrong(told: Told, seen: Seen) -> Iterable[tuple[str, str]]:
    for verdict in told.unanswered:
        yield "answered", f"{verdict} was never answered; it is {seen.status}"
    if not told.finished and not told.unexpected:
        yield "end", f"{seen.status}, result {seen.result!r}"
    for answer in told.unexpected:
        yield "answered", answer
    if told.created and not (seen.listed and seen.status != "ERROR:INVALID_ID"):
        yield "I1", f"listed: {seen.listed}; status: {seen.status}"
    if len(told.acknowledged) > 1:
        yield "I2", "both verdicts were acknowledged"
    for verdict in told.acknowledged:
        if seen.status not in STATES[verdict]:
            yield "I2", f"{verdict} was acknowledged; it is {seen.status}"
    for verdict in told.refused:
        if seen.status in STATES[verdict]:
            yield "I2", f"{verdict} was refused as decided otherwise; it is {seen.status}"

    if (seen.result, seen.payments) != ENDS.get(seen.status, (RUNNING, 0)):
        yield "I3", f"{seen.status}, result {seen.result!r}, {seen.payments} payments"
    if seen.result == RUNNING and seen.status != "CREATED":
        yield "I4", f"{seen.status}, and its workflow runs"
    expected = EVENTS.get(seen.status, ())
    if any(seen.events[event] != expected.count(event) for event in DECISIONS_AND_PAYMENTS):
        yield "I5", f"{seen.status}, audit trail {dict(seen.events)}"


async def each(
    items: Iterable[str], work: Callable[[str], Awaitable[T]], *, at_a_time: int = AT_A_TIME
) -> list[T]:
    """The results, several at a time."""
    slots = asyncio.Semaphore(at_a_time)

    async def one(item: str) -> T:
        async with slots:
            return await work(item)

    return await asyncio.gather(*map(one, items))
