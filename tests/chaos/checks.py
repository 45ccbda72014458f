"""The invariants, judged from outside: by HTTP answers, the ledger, the audit trail and the results
of workflows, never by the database."""

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
# The states that each verdict leads to.
STATES = {APPROVED: (APPROVED, "COMPLETED"), REJECTED: (REJECTED,)}
# For each final state: the result of the workflow, and the number of rows in the ledger.
ENDS = {"COMPLETED": (contracts.COMPLETED, 1), "REJECTED": ("", 0)}
# For each state: the decisions and payments in the audit trail, once each.
DECISIONS_AND_PAYMENTS = ("approved", "rejected", "withdrawn", "paid")
EVENTS = {"COMPLETED": ("approved", "paid"), "APPROVED": ("approved",), "REJECTED": ("rejected",)}

INVARIANTS = {
    "end": "each expense was decided and its workflow ended within 60 s of the last fault",
    "answered": "each decision was answered as the protocol says",
    "I1": "each acknowledged create exists",
    "I2": "at most one verdict was acknowledged, which is the final verdict",
    "I3": 'COMPLETED: result "COMPLETED", paid once; REJECTED: result "", not paid',
    "I4": "no workflow of a decided expense runs",
    "I5": "the audit trail has one decision, the final verdict, and each payment",
    "outbox": "no message waits for delivery",
}


class Violation(NamedTuple):
    invariant: str
    expense: str
    text: str


@dataclass
class Seen:
    """The state of an expense as seen from outside."""

    status: str
    """The body of `/status`."""
    listed: bool
    """Whether the REST list has it."""
    payments: int
    result: str
    """The result of the workflow; RUNNING or NO_WORKFLOW if there is none."""
    events: Counter[str] = field(default_factory=Counter)
    """The entries in the audit trail."""


async def waiting_seconds(load: Load) -> float | None:
    """Return the age of the oldest waiting message, None if no message waits, or infinity if the
    site does not answer."""
    try:
        answer = await load.site.get("/readyz")
        seconds: float | None = answer.json()["oldest_undelivered_seconds"]
    except (httpx.TransportError, ValueError, KeyError):
        return math.inf
    return seconds if seconds is not None or answer.status_code == 200 else math.inf


async def look(load: Load, expenses: Iterable[str], prefix: str) -> dict[str, Seen]:
    """Look at each expense, and at all others with the prefix that the site has."""
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
    """Return the number of facts on which each invariant was checked."""
    return dict.fromkeys(INVARIANTS, len(seen)) | {
        "answered": len(told),
        "I1": sum(client.created for client in told.values()),
        "I2": sum(len(client.acknowledged) + len(client.refused) for client in told.values()),
        "outbox": 1,
    }


def judge(told: Mapping[str, Told], seen: Mapping[str, Seen]) -> list[Violation]:
    """Compare each expense with the answers that its clients got."""
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
    """Do the work for all items, several at a time, and return the results."""
    slots = asyncio.Semaphore(at_a_time)

    async def one(item: str) -> T:
        async with slots:
            return await work(item)

    return await asyncio.gather(*map(one, items))
