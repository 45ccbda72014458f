"""What people do while something fails, what they are told, and what must be true afterwards."""

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import Callable
from typing import Any, Literal, Self, TypeVar

import httpx
from temporalio.client import Client

from tests.faults.points import SHORTER_WORKFLOW_TASK, Action, Point
from tests.faults.stack import Stack
from worker import contracts

T = TypeVar("T")
Verb = Literal["approve", "reject"]

# A client gives up, and asks again.
CLIENT_SECONDS = 1.5
# "Within a bounded time": the longest chain of timeouts and back-offs, doubled for a slow machine.
BOUND_SECONDS = 30.0
# Whoever decides does not wait longer for a registration that may not come.
PATIENCE_SECONDS = 4.0
# A fault here may keep an expense from its registration until it is decided.
HINDER_REGISTRATION = {
    "created",
    "registered",
    "create-unasked",
    "registration-unasked",
    "registration-answered",
}
# A web process that has found Temporal silent leaves delivery to the relay for a while, and the
# point in it is not passed.
ROUNDS = 3


async def survive(stack: Stack, point: Point, action: Action) -> None:
    """Carry three expenses from their start to their end, while the point fails once; three others
    where it did not. It must fail in one of the rounds."""
    for _ in range(ROUNDS):
        if await _survive(stack, point, action):
            return
    raise AssertionError(f"{point.name} was not passed in {ROUNDS} rounds")


async def _survive(stack: Stack, point: Point, action: Action) -> bool:
    """Whether the point has failed."""
    ids = [f"{point.name}-{action}-{uuid.uuid4().hex[:8]}-{number}" for number in (1, 2, 3)]
    first, second, third = ids
    async with People(stack) as people:
        with stack.armed(point, action):
            await asyncio.gather(people.start(first), people.start(second), people.submit(third))
            hindered = point.name in HINDER_REGISTRATION
            seconds = PATIENCE_SECONDS if hindered else BOUND_SECONDS
            assert await people.registered(*ids, seconds=seconds) or hindered
            if point.name == "bulk-row":
                await people.approve_in_bulk(*ids)
            else:
                await asyncio.gather(
                    people.decide(first, "approve"),
                    people.decide(second, "reject"),
                    people.decide(third, "approve"),
                )
            await asyncio.gather(*map(people.see, ids))
            fired = stack.has_fired(point)
        # What hung has gone on: too late, and that changes nothing.
        await asyncio.gather(*map(people.see, ids))
    assert stack.database.rows(
        "SELECT count(*) FROM approvals_decision WHERE id NOT IN "
        "(SELECT decision_id FROM expenses_expense WHERE decision_id IS NOT NULL)"
    ) == [(0,)]
    return fired


class People:
    """Who uses the site: they ask again where no answer comes, and remember what they were told.

    `told` is the verdict that was acknowledged, by expense id. Use as an async context manager.
    """

    def __init__(self, stack: Stack) -> None:
        self.told: dict[str, Verb] = {}
        self._stack = stack
        self._http = httpx.AsyncClient(base_url=stack.url, timeout=CLIENT_SECONDS, trust_env=False)

    async def __aenter__(self) -> Self:
        self._temporal = await Client.connect(self._stack.temporal_address)
        self._mending = asyncio.create_task(self._mend())
        await self._answer("GET", "/status", "approver", params={"id": "none"})
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._mending.cancel()
        await self._http.aclose()

    async def _mend(self) -> None:
        while True:
            self._stack.mend()
            await asyncio.sleep(0.05)

    async def until(self, ask: Callable[[], T], seconds: float = BOUND_SECONDS) -> T:
        """The first true answer; the last one after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (answer := ask()):
                    await asyncio.sleep(0.05)
        return answer

    async def start(self, expense_id: str) -> None:
        """As `startexpense` does."""
        await self._temporal.start_workflow(
            contracts.EXPENSE_WORKFLOW,
            expense_id,
            id=contracts.expense_workflow_id(expense_id),
            task_queue=contracts.EXPENSE_QUEUE,
            task_timeout=SHORTER_WORKFLOW_TASK,
        )

    async def submit(self, expense_id: str) -> None:
        answer = await self._answer(
            "POST",
            "/api/v1/expenses/",
            "employee",
            headers={"Idempotency-Key": expense_id},
            json={"expense_id": expense_id, "amount": "12.50", "currency": "EUR"},
        )
        assert answer.status_code in (200, 201), answer.text

    async def registered(self, *expense_ids: str, seconds: float = BOUND_SECONDS) -> bool:
        """Whether each of them has a callback within `seconds`."""
        marks = ", ".join("?" for _ in expense_ids)
        count = (
            "SELECT count(*) FROM expenses_callbackaddress JOIN expenses_expense "
            "ON id = expenses_callbackaddress.expense_id "
            f"WHERE expenses_expense.expense_id IN ({marks})"
        )
        return await self.until(
            lambda: self._stack.database.rows(count, *expense_ids) == [(len(expense_ids),)],
            seconds,
        )

    async def decide(self, expense_id: str, verb: Verb) -> None:
        """The first approver wants `verb`; while no answer comes, the second wants the opposite,
        then the first again, until one is told that it is done."""
        opposite: Verb = "reject" if verb == "approve" else "approve"
        turns = itertools.cycle([(verb, "approver"), (opposite, "second approver")])
        for wanted, who in turns:
            answer = await self._ask("GET", "/action", who, params=_decision(expense_id, wanted))
            if answer is None or answer.text == "ERROR:INVALID_ID":
                await asyncio.sleep(0.05)
                continue
            assert answer.status_code == 200
            if answer.text == "SUCCEED":
                self.told[expense_id] = wanted
                return
            assert answer.text == "ERROR:INVALID_STATE"

    async def approve_in_bulk(self, *expense_ids: str) -> None:
        """The admin's action on these rows, again until it is answered."""
        form = {"username": "anna", "password": "anna"}
        page = await self._answer("GET", "/admin/login/")
        form["csrfmiddlewaretoken"] = self._http.cookies["csrftoken"]
        page = await self._answer("POST", "/admin/login/", data=form)
        assert page.status_code == 302
        marks = ", ".join("?" for _ in expense_ids)
        rows = self._stack.database.rows(
            f"SELECT id FROM expenses_expense WHERE expense_id IN ({marks})", *expense_ids
        )
        ticked = [str(pk) for (pk,) in rows]
        assert len(ticked) == len(expense_ids)
        done = await self._answer(
            "POST",
            "/admin/expenses/expense/",
            data={
                "action": "approve",
                "_selected_action": ticked,
                "csrfmiddlewaretoken": self._http.cookies["csrftoken"],
            },
        )
        assert done.status_code == 302
        self.told |= dict.fromkeys(expense_ids, "approve")

    async def see(self, expense_id: str) -> None:
        """The acknowledged verdict stands alone, in the database, at Temporal and over HTTP: paid
        once where approved, never where rejected; nothing waits (requirements X1, X2)."""
        verb = self.told[expense_id]
        approved = verb == "approve"
        verdict = "APPROVED" if approved else "REJECTED"
        end = {
            "state": "COMPLETED" if approved else "REJECTED",
            "decision": verdict,
            "decisions in the trail": [verdict.lower()],
            "payments": int(approved),
            "payments in the trail": int(approved),
            "messages that wait": 0,
            "messages that failed": 0,
        }
        await self.until(lambda: self._records(expense_id) == end)
        assert self._records(expense_id) == end
        assert await self.result(expense_id) == ("COMPLETED" if approved else "")

        asked: dict[Verb, str] = {"approve": "ERROR:INVALID_STATE", "reject": "ERROR:INVALID_STATE"}
        for verb_again, text in (asked | {verb: "SUCCEED"}).items():
            answer = await self._answer(
                "GET", "/action", "second approver", params=_decision(expense_id, verb_again)
            )
            assert answer.text == text
        assert self._records(expense_id) == end

    async def result(self, expense_id: str) -> str:
        """What the workflow returns; raises TimeoutError."""
        handle = self._temporal.get_workflow_handle(contracts.expense_workflow_id(expense_id))
        async with asyncio.timeout(BOUND_SECONDS):
            return str(await handle.result())

    def _records(self, expense_id: str) -> dict[str, Any]:
        rows = self._stack.database.rows
        state = rows(
            "SELECT state, verdict FROM expenses_expense LEFT JOIN approvals_decision "
            "ON approvals_decision.id = decision_id WHERE expense_id = ?",
            expense_id,
        )
        events = [
            event
            for (event,) in rows(
                "SELECT event FROM approvals_auditentry WHERE subject_id = ? ORDER BY id",
                expense_id,
            )
        ]
        payments = rows(
            "SELECT expenses_ledgerentry.id FROM expenses_ledgerentry JOIN expenses_expense "
            "ON expenses_expense.id = expenses_ledgerentry.expense_id "
            "WHERE expenses_expense.expense_id = ?",
            expense_id,
        )
        outcomes = [
            outcome
            for (outcome,) in rows(
                "SELECT outcome FROM outbox_message WHERE key IN (?, ?)",
                f"expense-start:{expense_id}",
                f"expense-decision:{expense_id}",
            )
        ]
        return {
            "state": state[0][0] if state else None,
            "decision": state[0][1] if state else None,
            "decisions in the trail": [e for e in events if e in ("approved", "rejected")],
            "payments": len(payments),
            "payments in the trail": events.count("paid"),
            "messages that wait": outcomes.count(None),
            "messages that failed": sum(
                outcome not in (None, "DELIVERED", "ALREADY_COMPLETED", "OBSOLETE")
                for outcome in outcomes
            ),
        }

    async def _answer(
        self, method: str, path: str, who: str = "", **request: Any
    ) -> httpx.Response:
        """The answer to a request that is repeated until there is one."""
        async with asyncio.timeout(BOUND_SECONDS):
            while True:
                answer = await self._ask(method, path, who, **request)
                if answer is not None:
                    return answer
                await asyncio.sleep(0.05)

    async def _ask(
        self,
        method: str,
        path: str,
        who: str,
        *,
        headers: dict[str, str] | None = None,
        **rest: Any,
    ) -> httpx.Response | None:
        """None where no answer came. An answer is never a failure of the site."""
        headers = dict(headers or {})
        if who:
            headers["Authorization"] = f"Bearer {self._stack.database.tokens[who]}"
        try:
            answer = await self._http.request(method, path, headers=headers, **rest)
        except httpx.TransportError:
            return None
        assert answer.status_code < 500, answer.text
        return answer


def _decision(expense_id: str, verb: Verb) -> dict[str, str]:
    # A reason only a rejection needs.
    return {"type": verb, "id": expense_id, "is_api_call": "true", "reason": "as tested"}
