"""Users who carry expenses through while something fails, and what must be true afterwards."""

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

# A client gives up after this time, and repeats the request.
CLIENT_SECONDS = 1.5
# The longest chain of timeouts and back-offs, doubled for a slow machine.
BOUND_SECONDS = 30.0
# An approver waits no longer for a registration that may not come.
PATIENCE_SECONDS = 4.0
# A fault here may prevent the registration of an expense until it is decided.
HINDER_REGISTRATION = {
    "created",
    "registered",
    "create-unasked",
    "registration-unasked",
    "registration-answered",
}
# A web process that got no answer from Temporal leaves delivery to the relay for a while, so its
# point may not be passed in one round.
ROUNDS = 3


async def survive(stack: Stack, point: Point, action: Action) -> None:
    """Carry three expenses from start to end while the point fails once.

    If the point was not passed, repeat with three others, up to ROUNDS times.
    """
    for _ in range(ROUNDS):
        if await _survive(stack, point, action):
            return
    raise AssertionError(f"{point.name} was not passed in {ROUNDS} rounds")


async def _survive(stack: Stack, point: Point, action: Action) -> bool:
    """Carry one round of expenses; return whether the point failed."""
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
        # The hanging call has continued, too late: nothing changes.
        await asyncio.gather(*map(people.see, ids))
    assert stack.database.rows(
        "SELECT count(*) FROM expenses_expense JOIN approvals_approval "
        "ON approvals_approval.id = approval_id WHERE (state = 'CREATED') != (verdict IS NULL)"
    ) == [(0,)]
    return fired


class People:
    """Users of the site, who repeat a request until an answer comes.

    `told` has the acknowledged verdict by expense id. Use as an async context manager.
    """

    def __init__(self, stack: Stack) -> None:
        self.told: dict[str, Verb] = {}
        self._stack = stack
        self._http = httpx.AsyncClient(base_url=stack.url, timeout=CLIENT_SECONDS, trust_env=False)

    async def __aenter__(self) -> Self:
        self._temporal = await Client.connect(self._stack.temporal_address)
        self._restarting = asyncio.create_task(self._restart())
        await self._answer("GET", "/status", "approver", params={"id": "none"})
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._restarting.cancel()
        await self._http.aclose()

    async def _restart(self) -> None:
        while True:
            self._stack.restart()
            await asyncio.sleep(0.05)

    async def until(self, ask: Callable[[], T], seconds: float = BOUND_SECONDS) -> T:
        """Return the first true answer, or the last answer after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (answer := ask()):
                    await asyncio.sleep(0.05)
        return answer

    async def start(self, expense_id: str) -> None:
        """Start a workflow as `startexpense` does."""
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
        """Whether each expense has a callback within `seconds`."""
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
        """Decide until one approver's decision is acknowledged: in turns, the first approver asks
        for `verb` and the second approver for the opposite."""
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
        """Run the admin's action on these rows, until it is answered."""
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
        """Check that the acknowledged verdict is the only one, in the database, at Temporal and
        over HTTP: an approved expense is paid once, a rejected one never, and no message waits
        (requirements X1, X2)."""
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
        """Return the result of the workflow. Raises TimeoutError."""
        handle = self._temporal.get_workflow_handle(contracts.expense_workflow_id(expense_id))
        async with asyncio.timeout(BOUND_SECONDS):
            return str(await handle.result())

    def _records(self, expense_id: str) -> dict[str, Any]:
        rows = self._stack.database.rows
        state = rows(
            "SELECT state, verdict FROM expenses_expense JOIN approvals_approval "
            "ON approvals_approval.id = approval_id WHERE expense_id = ?",
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
        """Repeat a request until it is answered."""
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
        """Send a request; None if no answer came. An answer with 5xx fails the test."""
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
    # Only a rejection needs the reason.
    return {"type": verb, "id": expense_id, "is_api_call": "true", "reason": "as tested"}
