"""Records the histories that test_replay replays: `python -m tests.worker.record_histories`.

Run it only to add the path of a new release, and keep the histories of the old ones: they stand
for the runs that were begun before and still wait.
"""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.worker import Worker

from tests.servers import TemporalServer
from tests.worker import sites
from worker import contracts
from worker.expenses.activities import ExpenseActivities
from worker.expenses.workflows import SampleExpenseWorkflow
from worker.jobs.activities import say_hello_activity
from worker.jobs.workflows import SayHelloWorkflow
from worker.site import Site

HISTORIES = Path(__file__).parent / "histories"


async def record(address: str, site: sites.ScriptedSite) -> None:
    # The default identity names the machine.
    client = await Client.connect(address, identity="recorder")
    await record_expenses(client, site)
    await record_jobs(client)


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
        site.script("/registerCallback", "ERROR:INVALID_STATE", expense_id="decided-before")
        site.script("/status", "APPROVED", expense_id="decided-before")
        site.script("/create", sites.drop, "SUCCEED", expense_id="retried")
        site.script("/action", sites.status(503), "SUCCEED", expense_id="retried")
        for name, decision in (
            ("approved", "APPROVED"),
            ("rejected", "REJECTED"),
            ("retried", "APPROVED"),
            ("decided-before", None),
        ):
            handle = await client.start_workflow(
                contracts.EXPENSE_WORKFLOW,
                name,
                id=contracts.expense_workflow_id(name),
                task_queue=contracts.EXPENSE_QUEUE,
            )
            if decision:
                [request] = await sites.eventually(
                    lambda name=name: site.requests_to("/registerCallback", name)
                )
                await client.get_async_activity_handle(task_token=request.task_token).complete(
                    decision
                )
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
            ("job-second-attempt", contracts.Job("Temporal", fail_first_attempt=True)),
            ("job-failed", contracts.Job("")),
        ):
            handle = await client.start_workflow(
                contracts.JOB_WORKFLOW, job, id=name, task_queue=contracts.JOB_QUEUE
            )
            await write(name, handle)


async def write(name: str, handle: WorkflowHandle[Any, Any]) -> None:
    """Write the run's history, once it has ended."""
    with contextlib.suppress(WorkflowFailureError):
        await handle.result()
    # Stack traces name the machine's files.
    history = json.loads(
        (await handle.fetch_history()).to_json(),
        object_hook=lambda fields: {
            key: value for key, value in fields.items() if key != "stackTrace"
        },
    )
    (HISTORIES / f"{name}.json").write_text(json.dumps(history, indent=1) + "\n")


if __name__ == "__main__":
    with TemporalServer() as server, sites.scripted_site() as site:
        asyncio.run(record(server.address, site))
