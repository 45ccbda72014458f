"""Records the histories that test_replay replays: `python -m tests.worker.record_histories`.

Run it only to add a path of a new release. Keep the histories of earlier releases: they represent
the runs that those releases began and that still wait.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.worker import Worker

from tests.servers import TemporalServer
from tests.worker import sites
from worker import contracts
from worker.expenses.activities import ExpenseActivities
from worker.expenses.workflows import SampleExpenseWorkflow
from worker.jobs.activities import say_hello_activity
from worker.jobs.workflows import SayHelloWorkflow
from worker.orders.activities import OrderActivities
from worker.orders.workflows import OrderWorkflow
from worker.site import Site

Answers = Mapping[str, Sequence[sites.Answer]]
Act = Callable[[WorkflowHandle[Any, Any]], Awaitable[None]]

HISTORIES = Path(__file__).parent / "histories"


async def record(address: str, site: sites.ScriptedSite) -> None:
    # The default identity names the machine.
    client = await Client.connect(address, identity="recorder")
    await record_expenses(client, site)
    await record_jobs(client)
    await record_orders(client, site)


async def record_expenses(client: Client, site: sites.ScriptedSite) -> None:
    async with (
        Site(site.url) as client_of_site,
        Worker(
            client,
            task_queue=contracts.EXPENSE_QUEUE,
            workflows=[SampleExpenseWorkflow],
            activities=ExpenseActivities(client_of_site).all(),
        ),
    ):
        for name in ("approved", "rejected"):
            handle = await client.start_workflow(
                contracts.EXPENSE_WORKFLOW,
                name,
                id=contracts.expense_workflow_id(name),
                task_queue=contracts.EXPENSE_QUEUE,
            )
            [request] = await sites.eventually(
                lambda name=name: site.requests_to("/registerCallback", name)
            )
            waiting = client.get_async_activity_handle(task_token=request.task_token)
            await waiting.complete(name.upper())
            await write(name, handle)


async def record_jobs(client: Client) -> None:
    async with Worker(
        client,
        task_queue=contracts.JOB_QUEUE,
        workflows=[SayHelloWorkflow],
        activities=[say_hello_activity],
    ):
        for name, job in (
            ("job", contracts.Job("Temporal")),
            ("job-failed", contracts.Job("")),
        ):
            handle = await client.start_workflow(
                contracts.JOB_WORKFLOW, job, id=name, task_queue=contracts.JOB_QUEUE
            )
            await write(name, handle)


async def record_orders(client: Client, site: sites.ScriptedSite) -> None:
    async with (
        Site(site.url) as client_of_site,
        Worker(
            client,
            task_queue=contracts.ORDER_QUEUE,
            workflows=[OrderWorkflow],
            activities=OrderActivities(client_of_site).all(),
        ),
    ):
        for name, (answers, do) in ORDERS.items():
            sites.script_order(site, name, answers)
            order = contracts.Order(
                order=name,
                order_id=name,
                attempt=1,
                needs_approval=contracts.AWAIT_APPROVAL in answers,
                steps=_STEPS[:3] if name == "order-of-fewer-steps" else _STEPS,
            )
            handle = await client.start_workflow(
                contracts.ORDER_WORKFLOW, order, id=name, task_queue=contracts.ORDER_QUEUE
            )
            if do is not None:
                awaited, act = do
                path = f"/orders/{name}/steps/{awaited}"
                await sites.eventually(lambda path=path: site.requests_to(path))
                if awaited == contracts.AWAIT_APPROVAL:
                    await waits(handle)
                await act(handle)
            await write(name, handle)


async def waits(handle: WorkflowHandle[Any, Any]) -> None:
    """Return once the workflow waits for a decision."""
    while not any(
        event.HasField("timer_started_event_attributes")
        for event in (await handle.fetch_history()).events
    ):
        await asyncio.sleep(0.05)


def _refused(step: str, begun: Sequence[str]) -> Answers:
    """The answers that make an order fail in a step."""
    return {
        step: [sites.status(409, '{"detail": "No."}')],
        contracts.BEGIN_COMPENSATION: [
            sites.standing("compensating", reason="No.", begun=list(begun))
        ],
    }


def _cancelled(begun: Sequence[str]) -> Answers:
    """The answers to an order whose run is cancelled in Temporal."""
    state = "compensating" if begun else "cancelled"
    reason = "cancelled in Temporal"
    return {
        contracts.BEGIN_COMPENSATION: [sites.standing(state, reason=reason, begun=list(begun))],
        contracts.CLOSE_ORDER: [sites.standing("cancelled", reason=reason)],
    }


_PENDING: Final[Answers] = {contracts.AWAIT_APPROVAL: [sites.standing("pending")]}
_STEPS: Final = contracts.saga_step_names()
_CANCEL: Final[Act] = lambda handle: handle.cancel()  # noqa: E731
# For each order: the site's unusual answers; then a step, and the act that follows its request.
ORDERS: Final[dict[str, tuple[Answers, tuple[str, Act] | None]]] = {
    "order-completed": ({}, None),
    # It began before the product had the last step.
    "order-of-fewer-steps": ({}, None),
    "order-approved": (
        _PENDING,
        (contracts.AWAIT_APPROVAL, lambda handle: handle.signal("approve_order", "good customer")),
    ),
    "order-rejected": (
        {
            **_PENDING,
            contracts.SETTLE_APPROVAL: [sites.standing("cancelled", "REJECTED", "bad customer")],
        },
        (contracts.AWAIT_APPROVAL, lambda handle: handle.signal("reject_order", "bad customer")),
    ),
    "order-expired": (
        {
            contracts.AWAIT_APPROVAL: [sites.standing("pending", seconds_left=1)],
            contracts.SETTLE_APPROVAL: [
                sites.standing("cancelled", "EXPIRED", "approval timed out")
            ],
        },
        None,
    ),
    "order-signal-refused": (
        {
            **_PENDING,
            contracts.SETTLE_APPROVAL: [
                sites.standing("pending", seconds_left=1),
                sites.standing("running", "APPROVED", "good customer"),
            ],
        },
        (contracts.AWAIT_APPROVAL, lambda handle: handle.signal("approve_order", "mine")),
    ),
    "order-decided-before": (
        {contracts.AWAIT_APPROVAL: [sites.standing("running", "APPROVED", "good customer")]},
        None,
    ),
    **{
        f"order-failed-{step.replace('_', '-')}": (_refused(step, _STEPS[: place + 1]), None)
        for place, step in enumerate(_STEPS)
    },
    "order-cancelled-waiting": (
        {**_PENDING, **_cancelled([])},
        (contracts.AWAIT_APPROVAL, _CANCEL),
    ),
    "order-cancelled-in-a-step": (
        {contracts.PROCESS_PAYMENT: [sites.hang], **_cancelled(_STEPS[:3])},
        (contracts.PROCESS_PAYMENT, _CANCEL),
    ),
    "order-cancelled-at-the-pivot": (
        {
            contracts.COMPLETE_ORDER: [sites.standing("compensating", reason="cancelled by anna")],
            **_cancelled(_STEPS),
        },
        None,
    ),
    "order-confirmation-refused": (
        {contracts.SEND_CONFIRMATION: [sites.status(409, '{"detail": "No."}')]},
        None,
    ),
}


async def write(name: str, handle: WorkflowHandle[Any, Any]) -> None:
    """Write the history of the run once the run has ended."""
    with contextlib.suppress(WorkflowFailureError):
        await handle.result()
    # Stack traces name files of this machine.
    history = json.loads(
        (await handle.fetch_history()).to_json(),
        object_hook=lambda fields: {
            key: value for key, value in fields.items() if key != "stackTrace"
        },
    )
    (HISTORIES / f"{name}.json").write_text(json.dumps(history, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    with TemporalServer() as server, sites.scripted_site() as site:
        asyncio.run(record(server.address, site))
