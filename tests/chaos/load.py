"""The load: honest clients submit and decide expenses, and keep the answers that they got."""

import asyncio
import html
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from tests.chaos.record import Record
from tests.chaos.stack import Stack
from worker import contracts

APPROVED, REJECTED = contracts.APPROVED, contracts.REJECTED
VERB = {APPROVED: "approve", REJECTED: "reject"}
RUNNING, NO_WORKFLOW = "(running)", "(no workflow)"
ROUTES = ("protocol", "rest", "admin")
RACES = 0.3
LONGEST_PAUSE = 6.0
PROTOCOL_ANSWERS = {"SUCCEED": True, "ERROR:INVALID_STATE": False}
REST_ANSWERS = {200: True, 409: False}
CHANGELIST = "/admin/expenses/expense/"


class Unexpected(Exception):
    """The site answered what no honest client should get."""


@dataclass(frozen=True)
class Plan:
    """One expense: how it is created, after how many seconds it is decided, and how."""

    expense: str
    maker: str
    pause: float
    deciders: tuple[tuple[str, str], ...]
    """Verdicts and routes. Two deciders race."""


@dataclass
class Told:
    """The answers that the clients of one expense got."""

    created: bool = False
    acknowledged: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    """Verdicts that were answered with "already decided otherwise"."""
    unanswered: set[str] = field(default_factory=set)
    """Decisions that have no answer yet."""
    finished: bool = False
    unexpected: list[str] = field(default_factory=list)


def draw(random: Random, count: int, prefix: str) -> list[Plan]:
    plans = []
    for number in range(count):
        verdicts = random.sample((APPROVED, REJECTED), 2 if random.random() < RACES else 1)
        plans.append(
            Plan(
                expense=f"{prefix}{number}",
                maker=("rest", "workflow")[number % 2],
                pause=min(random.expovariate(1 / 1.5), LONGEST_PAUSE),
                deciders=tuple((verdict, random.choice(ROUTES)) for verdict in verdicts),
            )
        )
    return plans


class Load:
    """Carries out plans. Each request is repeated unchanged until the site acknowledges or refuses
    it."""

    def __init__(
        self, stack: Stack, site: httpx.AsyncClient, temporal: Client, record: Record
    ) -> None:
        self.told: dict[str, Told] = {}
        self._stack = stack
        self.site = site
        self._temporal = temporal
        self._record = record
        self._employee = stack.bearer("employee")
        self._approver = stack.bearer("approver")
        self._reader = stack.bearer("admin")
        self._session: dict[str, str] = {}

    async def sign_in(self) -> None:
        """Open the session for decisions in the admin."""
        page = await self.site.get("/admin/login/")
        cookies = {"csrftoken": page.cookies["csrftoken"]}
        admin = self._stack.credentials("admin")
        form = {name: admin[name] for name in ("username", "password")}
        answer = await self.site.post("/admin/login/", data=form, headers=_with_cookies(cookies))
        assert answer.status_code == 302, answer.status_code
        self._session = dict(answer.cookies)

    async def carry(self, plan: Plan) -> None:
        """Carry an expense until it is paid or rejected and its workflow has ended."""
        told = self.told[plan.expense] = Told()
        try:
            await (self.submit if plan.maker == "rest" else self._start)(plan.expense)
            told.created = True
            await asyncio.sleep(plan.pause)
            await asyncio.gather(*(self._decide(plan.expense, *one) for one in plan.deciders))
            while await self.status(plan.expense) not in ("COMPLETED", "REJECTED"):
                await asyncio.sleep(0.5)
            while await self.result(plan.expense) in (RUNNING, NO_WORKFLOW):
                await asyncio.sleep(0.5)
            told.finished = True
        except Unexpected as error:
            self._record.write("unexpected", expense=plan.expense, answer=str(error))
            told.unexpected.append(str(error))

    async def status(self, expense: str) -> str:
        answer = await self.ask("GET", f"/status?id={expense}")
        return answer.text

    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        json: dict[str, str] | None = None,
        data: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Repeat the request until there is an answer below 500."""
        while True:
            try:
                answer = await self.site.request(method, url, headers=headers, json=json, data=data)
            except httpx.TransportError:
                pass
            else:
                if answer.status_code < 500:
                    return answer
            await asyncio.sleep(0.2)

    async def result(self, expense: str) -> str:
        """Return the result of the workflow, RUNNING, NO_WORKFLOW, or a failure in parentheses."""
        workflow = self._temporal.get_workflow_handle(
            contracts.expense_workflow_id(expense), result_type=str
        )
        while True:
            try:
                async with asyncio.timeout(5):
                    if (await workflow.describe()).status is WorkflowExecutionStatus.RUNNING:
                        return RUNNING
                    result: str = await workflow.result()
                    return result
            except WorkflowFailureError as error:
                return f"(failed: {error.cause} {error.cause.__cause__})"
            except (RPCError, RuntimeError, TimeoutError) as error:
                if isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND:
                    return NO_WORKFLOW
            await asyncio.sleep(0.2)

    async def rows(self, path: str) -> list[dict[str, Any]]:
        """Return the rows of all pages of a REST list."""
        rows: list[dict[str, Any]] = []
        url = f"{path}?page_size=1000"
        while url:
            page = (await self.ask("GET", url, headers=self._reader)).json()
            rows += page["results"]
            url = page["next"]
        return rows

    async def events(self, expense: str) -> list[str]:
        """The audit trail of an expense, oldest first."""
        trail = await self.rows(f"/api/v1/expenses/{expense}/audit/")
        return [entry["event"] for entry in trail]

    async def submit(self, expense: str) -> None:
        answer = await self.ask(
            "POST",
            "/api/v1/expenses/",
            json={"expense_id": expense, "amount": "12.50", "currency": "EUR"},
            headers=self._employee | {"Idempotency-Key": expense},
        )
        if answer.status_code not in (200, 201):
            raise Unexpected(f"submit: {answer.status_code} {answer.text[:200]}")
        self._record.write("created", expense=expense, route="rest", status=answer.status_code)

    async def _start(self, expense: str) -> None:
        """Start as `startexpense` does. Return when the workflow has created the expense."""
        while True:
            try:
                async with asyncio.timeout(5):
                    await self._temporal.start_workflow(
                        contracts.EXPENSE_WORKFLOW,
                        expense,
                        id=contracts.expense_workflow_id(expense),
                        task_queue=contracts.EXPENSE_QUEUE,
                        id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    )
                break
            except WorkflowAlreadyStartedError:  # by an unanswered attempt, and it has ended
                break
            except (RPCError, RuntimeError, TimeoutError):
                await asyncio.sleep(0.2)
        self._record.write("started", expense=expense)
        while (state := await self.status(expense)) == "ERROR:INVALID_ID":
            await asyncio.sleep(0.3)
        self._record.write("created", expense=expense, route="workflow", status=state)

    async def _decide(self, expense: str, verdict: str, route: str) -> None:
        decide: dict[str, Callable[[str, str], Awaitable[tuple[bool, int]]]] = {
            "protocol": self.by_protocol,
            "rest": self.by_rest,
            "admin": self._by_admin,
        }
        told = self.told[expense]
        told.unanswered.add(f"{verdict} by {route}")
        acknowledged, status = await decide[route](expense, verdict)
        told.unanswered.remove(f"{verdict} by {route}")
        (told.acknowledged if acknowledged else told.refused).add(verdict)
        self._record.write(
            "acknowledged" if acknowledged else "refused",
            expense=expense,
            verdict=verdict,
            route=route,
            status=status,
        )

    # Each of these returns whether the verdict was acknowledged, and the HTTP status.

    async def by_protocol(self, expense: str, verdict: str) -> tuple[bool, int]:
        url = f"/action?type={VERB[verdict]}&id={expense}&is_api_call=true"
        answer = await self.ask("GET", url)
        if answer.text not in PROTOCOL_ANSWERS:
            raise Unexpected(f"action: {answer.status_code} {answer.text[:200]}")
        return PROTOCOL_ANSWERS[answer.text], answer.status_code

    async def by_rest(self, expense: str, verdict: str) -> tuple[bool, int]:
        url = f"/api/v1/expenses/{expense}/{VERB[verdict]}/"
        answer = await self.ask("POST", url, json={"reason": "chaos"}, headers=self._approver)
        if answer.status_code not in REST_ANSWERS:
            raise Unexpected(f"decide: {answer.status_code} {answer.text[:200]}")
        return REST_ANSWERS[answer.status_code], answer.status_code

    async def _by_admin(self, expense: str, verdict: str) -> tuple[bool, int]:
        found = await self.ask("GET", f"/api/v1/expenses/{expense}/", headers=self._reader)
        url = f"{CHANGELIST}?q={expense}"
        form = {"action": VERB[verdict], "_selected_action": found.json()["id"], "reason": "chaos"}
        done = rf"{verdict.capitalize()}: {expense}\."
        skipped = rf"Skipped: {expense} was already (approved|rejected) by"
        # The result is shown on the next page. If that page is lost, the decision is repeated.
        for _ in range(100):
            answer = await self.ask("POST", url, data=form, headers=_with_cookies(self._session))
            if answer.status_code != 302:
                raise Unexpected(f"admin action: {answer.status_code}")
            cookies = self._session | dict(answer.cookies)
            page = await self.ask("GET", url, headers=_with_cookies(cookies))
            text = html.unescape(page.text)
            if re.search(done, text):
                return True, answer.status_code
            if final := re.search(skipped, text):
                return final[1].upper() == verdict, answer.status_code
        raise Unexpected("admin action: no message about it")


def _with_cookies(cookies: dict[str, str]) -> dict[str, str]:
    pairs = "; ".join(f"{name}={value}" for name, value in cookies.items())
    return {"Cookie": pairs, "X-CSRFToken": cookies["csrftoken"]}
