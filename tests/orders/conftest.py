"""Orders on real parts: the site over HTTP, a worker and a relay, a Temporal server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections
from django.db.models import QuerySet
from pytest_django.live_server_helper import LiveServer
from temporalio import workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.service import RPCError
from temporalio.worker import Worker

from orders import services
from orders.models import FINAL, Order, StockItem
from outbox.models import Message
from outbox.relay import Relay
from temporal import client, inspection, loop
from tests import factories
from tests.faults.points import with_shorter_intervals
from tests.orders import invariants
from tests.orders.integrations import FAULTS, Call, Hang, When
from tests.worker.sites import eventually
from worker import contracts
from worker.orders.activities import OrderActivities
from worker.orders.workflows import OrderWorkflow
from worker.site import Site


class Shop:
    """The site of a local installation, whose orders are carried out while :meth:`worked`."""

    def __init__(self, url: str, client: Client, stocked: dict[str, int]) -> None:
        self.url = url
        self.client = client
        self.http = httpx.AsyncClient(base_url=url, trust_env=False, timeout=30)
        self._stocked = stocked

    @contextlib.asynccontextmanager
    async def worked(
        self, *, fail_at: str = "", relay: bool = True, site_url: str = ""
    ) -> AsyncIterator[None]:
        """Run a worker and a relay. `site_url` is the site's address for the worker."""
        async with contextlib.AsyncExitStack() as running:
            site = await running.enter_async_context(Site(site_url or self.url))
            await running.enter_async_context(
                Worker(
                    self.client,
                    task_queue=contracts.ORDER_QUEUE,
                    workflows=[OrderWorkflow],
                    activities=OrderActivities(site, fail_at=fail_at).all(),
                    max_cached_workflows=0,
                )
            )
            if relay:
                await running.enter_async_context(self.relayed())
            yield

    @contextlib.asynccontextmanager
    async def relayed(self) -> AsyncIterator[None]:
        relay = Relay()
        task = asyncio.create_task(relay.run())
        try:
            yield
        finally:
            relay.stop()
            await task

    async def order(self, product_id: str = "SKU-001", quantity: int = 1, **more: Any) -> str:
        """Submit an order; its workflow id."""
        body = {
            "product_id": product_id,
            "quantity": quantity,
            "customer_id": "cust-42",
            "payment_method": "tok_visa",
            **more,
        }
        response = await self.http.post("/orders", json=body)
        assert response.status_code == 201, response.text
        workflow_id: str = response.json()["workflow_id"]
        return workflow_id

    async def post(self, workflow_id: str, verb: str, reason: str = "") -> int:
        """Ask for the decision, the cancellation or the retry of an order; the HTTP status."""
        response = await self.http.post(f"/orders/{workflow_id}/{verb}", json={"reason": reason})
        return response.status_code

    async def status(self, workflow_id: str) -> dict[str, Any]:
        response = await self.http.get(f"/orders/{workflow_id}/status")
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def until(
        self, workflow_id: str, *statuses: str, then: Callable[[dict[str, Any]], bool] = bool
    ) -> dict[str, Any]:
        """Its status, once it is one of these."""
        async with asyncio.timeout(60):
            while (status := await self.status(workflow_id))["status"] not in statuses or not then(
                status
            ):
                await asyncio.sleep(0.05)
        return status

    async def started(self, workflow_id: str) -> None:
        """Returns when the relay has started its workflow."""
        key = services.KIND.key("start", (await self.record(workflow_id)).order_id)
        await gone(Message.objects.filter(key=key, settled_at=None))

    async def record(self, workflow_id: str) -> Order:
        return await services.with_approval().aget(workflow_id=workflow_id)

    async def answered_all(self) -> None:
        """Returns when no call of an integration is under way."""
        await eventually(lambda: not FAULTS.under_way)

    async def waiting(self, workflow_id: str) -> WorkflowHandle[Any, Any]:
        """The workflow, once it waits for the decision of the order."""
        await gone(Order.objects.filter(workflow_id=workflow_id, approval__expires_at__isnull=True))
        return self.workflow(workflow_id)

    async def ended(self, workflow_id: str) -> dict[str, Any]:
        """Wait until the order has ended and return its status. Check that the workflow's answers
        and end agree with it (O3)."""
        await gone(Order.objects.filter(workflow_id=workflow_id).exclude(state__in=FINAL))
        # Before, its workflow is that of the attempt before.
        await self.started(workflow_id)
        handle = self.workflow(workflow_id)
        result, error = None, None
        async with asyncio.timeout(60):
            try:
                result = await handle.result()
            except WorkflowFailureError as failure:
                error = failure.cause
        # The confirmation comes after the end.
        status = await self.status(workflow_id)
        if result is not None:
            assert result.status == status["status"] in ("completed", "cancelled")
            assert result.message == (status["failure_reason"] or "Order processed successfully")
        elif isinstance(error, CancelledError):
            assert status["status"] == "cancelled"
        else:
            assert isinstance(error, ApplicationError)
            assert (error.message, "failed") == (status["failure_reason"], status["status"])
        told = await handle.query("get_status", result_type=contracts.OrderStatus)
        assert {
            "status": told.status,
            "current_step": told.current_step,
            "compensation_triggered": told.compensation_triggered,
            "failure_reason": told.failure_reason,
            "approval_status": await handle.query("get_approval_status"),
            "approval_reason": await handle.query("get_approval_reason"),
        } == {
            name: status[name]
            for name in (
                "status",
                "current_step",
                "compensation_triggered",
                "failure_reason",
                "approval_status",
                "approval_reason",
            )
        }
        return status

    async def at_rest(self) -> None:
        """Checks the invariants, when all is delivered."""
        await gone(Message.objects.filter(settled_at=None))
        await sync_to_async(invariants.check_records)(self._stocked)
        await invariants.check_temporal(self.client)
        assert FAULTS.all_struck()

    async def key(self, workflow_id: str, attempt: int = 1) -> str:
        """The idempotency key of an attempt of the order."""
        return (await Order.objects.aget(workflow_id=workflow_id)).idempotency_key(attempt)

    async def hanging(self, call: Call, workflow_id: str, when: When) -> Hang:
        """Make this call of the integration hang in the order's first attempt."""
        return FAULTS.hang(call, await self.key(workflow_id), when)

    def workflow(self, workflow_id: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(workflow_id, result_type=contracts.OrderResult)


class History:
    """Stands in for Temporal in tests of the site alone. It holds the signals to the run of `memo`,
    or to any run where `memo` is None."""

    def __init__(self) -> None:
        self.run_id = "run-1"
        self.memo: dict[str, Any] | None = None
        self.complete = True
        self.answers = True
        self.reads = 0
        self.asked_within_a_transaction = False
        self._received: list[inspection.Signal] = []

    def receive(
        self, name: str = contracts.APPROVE_ORDER, reason: str = "", sender: str = "1234@host"
    ) -> None:
        event_id = 5 + 10 * len(self._received)
        self._received.append(inspection.Signal(event_id, name, reason, sender))

    def ask(self, question: Callable[[Any], Any], *, seconds: float) -> inspection.Signals:
        assert seconds <= 2
        self.reads += 1
        self.asked_within_a_transaction |= connection.in_atomic_block
        if not self.answers:
            raise client.Unreachable("Temporal does not answer.")
        answer: inspection.Signals = asyncio.run(question(self))
        return answer

    async def signals_of(
        self, workflow_id: str, *, memo: dict[str, Any], names: Any, after: tuple[str, int]
    ) -> inspection.Signals:
        if self.memo not in (None, memo):
            return inspection.Signals()
        judged = after[1] if after[0] == self.run_id else 0
        found = [one for one in self._received if one.event_id > judged and one.name in names]
        return inspection.Signals(self.run_id, tuple(found), self.complete)


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch, settings: Any) -> History:
    """The signals that Temporal reports for an order's run; signals decide, as in the open mode."""
    settings.ORDERS_SIGNAL_DECISIONS = True
    made = History()
    monkeypatch.setattr(loop, "ask", made.ask)
    monkeypatch.setattr(inspection, "signals_of", History.signals_of)
    return made


async def gone(rows: QuerySet[Any]) -> None:
    """Returns when there are no such rows any more."""
    async with asyncio.timeout(60):
        while await rows.aexists():
            await asyncio.sleep(0.05)


async def reached(hang: Hang) -> None:
    assert await asyncio.to_thread(hang.reached.wait, 60)


@pytest.fixture
async def shop(
    transactional_db: None,
    live_server: LiveServer,
    temporal_address: str,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Shop]:
    settings.EXPENSES_PROTOCOL_ACCESS = "open"
    settings.ORDERS_SIGNAL_DECISIONS = True
    for name in ("Inventory", "Payments", "Warehouse", "Mailer"):
        setattr(settings, f"ORDERS_{name.upper()}", f"tests.orders.integrations.{name}")
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    # Retries after 0.2 s instead of 1 s, a decision delivered after 0.05 s instead of 0.25 s.
    monkeypatch.setattr(
        workflow, "execute_activity", with_shorter_intervals(workflow.execute_activity)
    )
    monkeypatch.setattr("outbox.relay.POLL_SECONDS", 0.05)
    await sync_to_async(factories.stock)()
    stocked = {item.product_id: item.available async for item in StockItem.objects.all()}
    made = Shop(live_server.url, await Client.connect(temporal_address), stocked)
    yield made
    FAULTS.reset()
    await made.http.aclose()
    # What a test left open would ask a site that is gone.
    for workflow_id in [one async for one in Order.objects.values_list("workflow_id", flat=True)]:
        with contextlib.suppress(RPCError):
            await made.workflow(workflow_id).terminate()
    await sync_to_async(connections.close_all)()
