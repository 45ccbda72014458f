"""`manage.py runworker` as a process of its own."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from temporalio.api.enums.v1 import TimeoutType
from temporalio.client import Client, WorkflowHandle

from tests.servers import TemporalServer, free_port
from tests.worker import sites
from tests.worker.sites import eventually
from worker import contracts

MANAGE = str(Path(__file__).parents[2] / "manage.py")
TOKEN = "secret-token"
READY = f"Worker ready: queues {', '.join(contracts.QUEUES)}; "


class Process:
    """The command with settings of its own; what it says goes to a file."""

    def __init__(self, log: Path, *arguments: str, **settings: str) -> None:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TEMPORAL_", "EXPENSES_SITE_", "MAX_CONCURRENT_", "LOG_LEVEL"))
        }
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, MANAGE, "runworker", *arguments],
                env=inherited | {"DJANGO_SETTINGS_MODULE": "tests.settings"} | settings,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    async def until(self, text: str) -> None:
        await eventually(lambda: text in self.output or self._process.poll() is not None, 30)
        assert text in self.output, self.output

    async def ended(self, number: int | None = None) -> int:
        """The exit code, after a signal if one is given."""
        if number is not None:
            self._process.send_signal(number)
        await eventually(lambda: self._process.poll() is not None, 30)
        return int(self._process.returncode)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def runworker(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    with ExitStack() as ended:

        def start(*arguments: str, **settings: str) -> Process:
            process = Process(tmp_path / f"{time.monotonic_ns()}.log", *arguments, **settings)
            ended.callback(process.kill)
            return process

        yield start


async def start_expense(client: Client, expense_id: str) -> WorkflowHandle[Any, str]:
    return await client.start_workflow(
        contracts.EXPENSE_WORKFLOW,
        expense_id,
        id=contracts.expense_workflow_id(expense_id),
        task_queue=contracts.EXPENSE_QUEUE,
        result_type=str,
    )


async def test_decision_after_a_killed_worker(
    runworker: Callable[..., Process],
    temporal_address: str,
    client: Client,
    scripted: sites.ScriptedSite,
):
    """W7, O11, E10: a killed worker delays a decision by 2 s, not 10; no token is ever logged."""
    settings = {
        "TEMPORAL_ADDRESS": temporal_address,
        "EXPENSES_SITE_URL": scripted.url,
        "EXPENSES_SITE_TOKEN": f"{TOKEN}\n",
        "LOG_LEVEL": "DEBUG",
    }
    killed = runworker(**settings)
    await killed.until(READY)
    handle = await start_expense(client, "runworker-1")
    [request] = await eventually(lambda: scripted.requests_to("/registerCallback"))
    # The workflow is bound to the worker once that has begun to wait.
    await killed.until("waits for a decision")
    killed.kill()
    worker = runworker(**settings)
    await worker.until(READY)

    await client.get_async_activity_handle(task_token=request.task_token).complete("APPROVED")
    assert await handle.result() == "COMPLETED"
    # Offered to the killed worker first, a workflow task waits as long as that had asked for; by
    # the SDK's default 10 s.
    history = await handle.fetch_history()
    for event in history.events:
        timeout = event.workflow_task_timed_out_event_attributes
        if timeout.timeout_type == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START:
            offered = history.events[timeout.scheduled_event_id - 1]
            waited = event.event_time.ToDatetime() - offered.event_time.ToDatetime()
            assert waited < timedelta(seconds=10)
    assert {r.headers["authorization"] for r in scripted.requests} == {f"Bearer {TOKEN}"}

    # The SDK warns of a result that comes after its workflow was closed.
    scripted.script("/create", sites.hang)
    closed = await start_expense(client, "runworker-2")
    await eventually(lambda: scripted.requests_to("/create", "runworker-2"))
    await closed.terminate()
    scripted.released.set()
    await worker.until("'runworker-2' created")

    assert await worker.ended(signal.SIGTERM) == 0
    assert "Worker stopped" in worker.output
    assert "GET /action 200 in " in worker.output
    for output in (killed.output, worker.output):
        assert "token" not in output.lower()
        assert "Traceback" not in output


async def test_waits_for_temporal(runworker: Callable[..., Process], scripted: sites.ScriptedSite):
    """W7, O11: started before Temporal it waits, saying so; then it works within its slots, which
    each queue has for itself."""
    port = free_port()
    scripted.script("/create", sites.hang)
    scripted.script("/status", "ERROR:INVALID_ID")
    worker = runworker(
        # The other name of TEMPORAL_ADDRESS.
        TEMPORAL_HOST=f"127.0.0.1:{port}",
        EXPENSES_SITE_URL=scripted.url,
        MAX_CONCURRENT_ACTIVITIES="2",
        MAX_CONCURRENT_WORKFLOW_TASKS="2",
    )
    await worker.until(f"waiting for Temporal at 127.0.0.1:{port} …: it cannot be reached.")
    with TemporalServer(port=port) as server:
        await worker.until(READY)
        client = await Client.connect(server.address)
        for expense_id in ("1", "2", "3", "4"):
            await start_expense(client, expense_id)
        await eventually(lambda: len(scripted.requests_to("/create")) == 2)
        # Long enough for a third, had it a slot.
        await asyncio.sleep(0.5)
        assert len(scripted.requests_to("/create")) == 2
        job = contracts.Job("Temporal")
        result = await client.execute_workflow(
            contracts.JOB_WORKFLOW, job, id="job", task_queue=contracts.JOB_QUEUE
        )
        assert result == {"attempt": 1, "msg": "Hello Temporal"}
        scripted.released.set()
        await eventually(lambda: len(scripted.requests_to("/registerCallback")) == 4)
        assert await worker.ended(signal.SIGTERM) == 0
    assert "The site at" not in worker.output
    assert "Traceback" not in worker.output


async def test_stopped_while_it_waits(runworker: Callable[..., Process]):
    """O11: SIGTERM ends the wait for Temporal, with exit code 0."""
    address = f"127.0.0.1:{free_port()}"
    worker = runworker(TEMPORAL_ADDRESS=address)
    await worker.until(f"waiting for Temporal at {address} …")
    assert await worker.ended(signal.SIGTERM) == 0
    assert "Traceback" not in worker.output


async def test_interrupted_without_site_or_token(
    runworker: Callable[..., Process], temporal_address: str
):
    """E13, O11: no token and no site are said, and stop nothing; SIGINT ends it with code 0."""
    url = f"http://127.0.0.1:{free_port()}"
    worker = runworker(TEMPORAL_ADDRESS=temporal_address, EXPENSES_SITE_URL=url)
    await worker.until(READY)
    assert "WARNING" in worker.output
    assert "EXPENSES_SITE_TOKEN is not set" in worker.output
    assert f"The site at {url}: it cannot be reached (ConnectError)." in worker.output
    assert await worker.ended(signal.SIGINT) == 0
    assert "Traceback" not in worker.output


async def test_check(runworker: Callable[..., Process], temporal_address: str):
    """O11, W9: --check names what is wrong with each of the two, and how to mend it."""
    nowhere = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        frozen = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def site_that(answer: sites.Answer) -> str:
            site = stack.enter_context(sites.scripted_site())
            site.script("/status", answer)
            return site.url

        def check(address: str, url: str, **settings: str) -> Process:
            return runworker(
                "--check",
                TEMPORAL_ADDRESS=address,
                EXPENSES_SITE_URL=url,
                EXPENSES_SITE_TOKEN=TOKEN,
                **settings,
            )

        cases = [
            (check(temporal_address, site_that("ERROR:INVALID_ID")), "ok", "ok"),
            (
                check(nowhere, site_that(sites.status(401, "ERROR:FORBIDDEN"))),
                "it cannot be reached. Start it (`make up`), or set TEMPORAL_ADDRESS. (",
                "it refuses the token (401). Set EXPENSES_SITE_TOKEN to the token of a user in "
                "the group Worker.",
            ),
            (
                check(
                    temporal_address,
                    site_that(sites.status(403, "ERROR:FORBIDDEN")),
                    TEMPORAL_NAMESPACE="none-such",
                ),
                "it has no namespace 'none-such'. Set TEMPORAL_NAMESPACE, or create it with "
                "`temporal operator namespace create --namespace none-such`.",
                "it refuses the token (403).",
            ),
            (
                check(f"127.0.0.1:{frozen.getsockname()[1]}", site_that(sites.status(404))),
                "no answer within 5 s. Check the server and TEMPORAL_ADDRESS.",
                "it has no expense protocol (404). Set EXPENSES_PROTOCOL_ACCESS on the site to "
                "token, or correct EXPENSES_SITE_URL.",
            ),
            (
                check(temporal_address, site_that(sites.status(500))),
                "ok",
                "it answers 500. See the site's log, or correct EXPENSES_SITE_URL.",
            ),
            (
                check(temporal_address, site_that("<html>")),
                "ok",
                "what answers there is not the expense site. Correct EXPENSES_SITE_URL.",
            ),
            (
                check(temporal_address, f"http://{nowhere}"),
                "ok",
                "it cannot be reached (ConnectError). Start it (`make up`), or correct "
                "EXPENSES_SITE_URL.",
            ),
        ]
        for process, temporal, site in cases:
            code = await process.ended()
            said = [line for line in process.output.splitlines() if " at " in line]
            assert said[0].startswith("Temporal at 127.0.0.1:"), process.output
            assert said[0].partition(": ")[2].startswith(temporal)
            assert said[1].startswith("Site at http://127.0.0.1:")
            assert said[1].partition(": ")[2].startswith(site)
            assert len(said) == 2
            assert code == (0 if temporal == site == "ok" else 1)
            assert TOKEN not in process.output
            assert "Traceback" not in process.output


@pytest.mark.parametrize("arguments", [(), ("--check",)])
async def test_impossible_address(arguments: tuple[str], runworker: Callable[..., Process]):
    """O11: an address that can never be right is said at once, with exit code 1."""
    process = runworker(*arguments, TEMPORAL_ADDRESS="127.0.0.1:port")
    assert await process.ended() == 1
    assert "CommandError: TEMPORAL_ADDRESS is '127.0.0.1:port': " in process.output
    assert "Traceback" not in process.output


@pytest.mark.parametrize(
    ("name", "least"),
    [("MAX_CONCURRENT_ACTIVITIES", 1), ("MAX_CONCURRENT_WORKFLOW_TASKS", 2)],
)
@pytest.mark.parametrize("value", ["0", "-1", "ten", "1.5", "10001"])
def test_bad_number(name: str, least: int, value: str, monkeypatch: pytest.MonkeyPatch):
    """O11: a number of slots that cannot be is refused, naming the variable and the remedy."""
    monkeypatch.setenv(name, value)
    with pytest.raises(CommandError) as caught:
        call_command("runworker")
    assert str(caught.value) == (
        f"{name} is '{value}'. Set it to a whole number from {least} to 10000, or unset it for 100."
    )


def test_single_workflow_slot(monkeypatch: pytest.MonkeyPatch):
    """O11: one slot for workflow tasks is refused: the two queues would take turns at it."""
    monkeypatch.setenv("MAX_CONCURRENT_WORKFLOW_TASKS", "1")
    with pytest.raises(CommandError, match="from 2 to 10000"):
        call_command("runworker")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (
            "EXPENSES_SITE_URL",
            "127.0.0.1:8099",
            "EXPENSES_SITE_URL must begin with http:// or https:// and carry no user name",
        ),
        (
            "EXPENSES_SITE_TOKEN",
            "a\nb",
            "EXPENSES_SITE_TOKEN has characters that a header cannot carry",
        ),
    ],
)
def test_bad_site(name: str, value: str, text: str, monkeypatch: pytest.MonkeyPatch):
    """E13, W9: an address or a token that cannot work is refused at the start."""
    monkeypatch.setenv(name, value)
    with pytest.raises(CommandError) as caught:
        call_command("runworker")
    assert str(caught.value) == text
