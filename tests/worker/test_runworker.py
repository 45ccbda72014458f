"""`manage.py runworker` and `python -m worker`, as processes of their own."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import TimeoutType
from temporalio.client import Client, WorkflowHandle

from tests.servers import TemporalServer, free_port
from tests.worker import sites
from tests.worker.sites import eventually
from worker import __main__ as worker_command
from worker import contracts

ROOT = Path(__file__).resolve().parents[2]
MANAGE = str(ROOT / "manage.py")
TOKEN = "secret-token"
READY = f"Worker ready: queues {', '.join(contracts.QUEUES)}; "


class Process:
    """The command with an environment of its own: Django's settings and the site's secrets are
    missing there. The output goes to a file."""

    def __init__(self, log: Path, *arguments: str, **settings: str) -> None:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, MANAGE, "runworker", *arguments],
                env=inherited
                | {"EXPENSES_DATA_DIR": str(log.parent), "DJANGO_SETTINGS_MODULE": "no.such"}
                | settings,
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


async def test_a_killed_worker_delays_a_decision_by_two_seconds_at_most(
    runworker: Callable[..., Process],
    temporal_address: str,
    client: Client,
    scripted: sites.ScriptedSite,
):
    """W7, O11, E10: another worker takes the workflow up after 2 s, not 10; no token is logged."""
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
    # The workflow is bound to the worker once the activity waits.
    await killed.until("waits for a decision")
    killed.kill()
    worker = runworker(**settings)
    await worker.until(READY)

    await client.get_async_activity_handle(task_token=request.task_token).complete("APPROVED")
    assert await handle.result() == "COMPLETED"
    # Temporal offers the workflow task to the killed worker first, for as long as that worker
    # asked for. The SDK's default is 10 s.
    history = await handle.fetch_history()
    for event in history.events:
        timeout = event.workflow_task_timed_out_event_attributes
        if timeout.timeout_type == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START:
            offered = history.events[timeout.scheduled_event_id - 1]
            waited = event.event_time.ToDatetime() - offered.event_time.ToDatetime()
            assert waited < timedelta(seconds=10)
    assert {r.headers["authorization"] for r in scripted.requests} == {f"Bearer {TOKEN}"}

    # The SDK logs a warning for a result that comes after its workflow was closed.
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


async def test_a_worker_started_before_temporal_waits_and_keeps_to_its_slots(
    runworker: Callable[..., Process], scripted: sites.ScriptedSite
):
    """W7, O11: the log says that the worker waits. Each queue has MAX_CONCURRENT_ACTIVITIES slots
    of its own."""
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


async def test_sigterm_ends_the_wait_for_temporal(runworker: Callable[..., Process]):
    """O11: SIGTERM ends the wait for Temporal, with exit code 0."""
    address = f"127.0.0.1:{free_port()}"
    worker = runworker(TEMPORAL_ADDRESS=address)
    await worker.until(f"waiting for Temporal at {address} …")
    assert await worker.ended(signal.SIGTERM) == 0
    assert "Traceback" not in worker.output


async def test_a_missing_site_and_token_are_named_and_stop_nothing(
    runworker: Callable[..., Process], temporal_address: str
):
    """E13, O11: the worker polls all the same; SIGINT ends it with code 0."""
    url = f"http://127.0.0.1:{free_port()}"
    worker = runworker(TEMPORAL_ADDRESS=temporal_address, EXPENSES_SITE_URL=url)
    await worker.until(READY)
    assert "WARNING" in worker.output
    assert "EXPENSES_SITE_TOKEN is not set" in worker.output
    assert f"The site at {url}: it cannot be reached (ConnectError)." in worker.output
    assert await worker.ended(signal.SIGINT) == 0
    assert "Traceback" not in worker.output


async def test_check_names_each_fault_and_its_remedy(
    runworker: Callable[..., Process], temporal_address: str
):
    """O11, W9: of Temporal and of the site, without a token in the output."""
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
                "the answer there is not the expense site's. Correct EXPENSES_SITE_URL.",
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
async def test_an_impossible_temporal_address_ends_the_command(
    arguments: tuple[str], runworker: Callable[..., Process]
):
    """O11: with a sentence and exit code 1; waiting cannot make the address right."""
    process = runworker(*arguments, TEMPORAL_ADDRESS="127.0.0.1:port")
    assert await process.ended() == 1
    assert "TEMPORAL_ADDRESS is '127.0.0.1:port': " in process.output
    assert "Traceback" not in process.output


@pytest.mark.parametrize(
    ("name", "least"),
    [("MAX_CONCURRENT_ACTIVITIES", 1), ("MAX_CONCURRENT_WORKFLOW_TASKS", 2)],
)
@pytest.mark.parametrize("value", ["0", "-1", "ten", "1.5", "10001"])
def test_an_impossible_number_of_slots_is_refused(
    name: str, least: int, value: str, monkeypatch: pytest.MonkeyPatch
):
    """O11: the sentence names the variable and the remedy."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        worker_command.run([])
    assert caught.value.code == (
        f"{name} is '{value}'. Set it to a whole number from {least} to 10000, or unset it for 100."
    )


def test_a_single_slot_for_workflow_tasks_is_refused(monkeypatch: pytest.MonkeyPatch):
    """O11: the worker's two queues for workflow tasks would take turns at the slot."""
    monkeypatch.setenv("MAX_CONCURRENT_WORKFLOW_TASKS", "1")
    with pytest.raises(SystemExit, match="from 2 to 10000"):
        worker_command.run([])


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
def test_an_unusable_site_address_or_token_is_refused(
    name: str, value: str, text: str, monkeypatch: pytest.MonkeyPatch
):
    """E13, W9: at the start, with a sentence."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        worker_command.run([])
    assert caught.value.code == text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"FAIL_AT": "lunch", "EXPENSES_PROTOCOL_ACCESS": "open"},
            "FAIL_AT is 'lunch'. Set it to one of inventory-check, inventory, payment, warehouse, "
            "or unset it.",
        ),
        (
            {"FAIL_AT": "payment", "EXPENSES_PROTOCOL_ACCESS": "token"},
            "FAIL_AT is for a local installation (`make up`) only. Unset it.",
        ),
        ({"FAIL_AT": "payment"}, "FAIL_AT is for a local installation (`make up`) only. Unset it."),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL is 'LOUD'; use DEBUG, INFO, WARNING or ERROR."),
    ],
    ids=str,
)
def test_a_wrong_setting_is_one_sentence(
    settings: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
):
    """O6, O11: nobody starts a worker that injects failures into other people's orders."""
    monkeypatch.setattr(os, "environ", settings)
    with pytest.raises(SystemExit) as caught:
        worker_command.run([])
    assert caught.value.code == text


def test_a_local_installation_gives_the_worker_its_addresses_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """X8, E13: `settings.env` holds the site's secrets as well; the environment wins."""
    (tmp_path / "settings.env").write_text(
        "SECRET_KEY='s'\nEXPENSES_FERNET_KEYS='f'\nDATABASE_URL='d'\nTEMPORAL_ADDRESS='t:1'\n"
        "TEMPORAL_NAMESPACE='n'\nEXPENSES_SITE_URL='no url'\n"
    )
    environment = {"EXPENSES_DATA_DIR": str(tmp_path), "TEMPORAL_HOST": "mine:1"}
    taken = environment | {
        "TEMPORAL_ADDRESS": "mine:1",
        "TEMPORAL_NAMESPACE": "n",
        "EXPENSES_SITE_URL": "no url",
    }
    monkeypatch.setattr(os, "environ", environment)
    with pytest.raises(SystemExit, match="EXPENSES_SITE_URL must begin with"):
        worker_command.run([])
    assert environment == taken


def called(*command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *command],
        env={"PATH": os.environ["PATH"], **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_manage_lists_and_explains_the_worker():
    """O11: `manage.py help` names the command; its own help is `python -m worker`'s."""
    secrets = {"SECRET_KEY": "s", "EXPENSES_FERNET_KEYS": os.environ["EXPENSES_FERNET_KEYS"]}
    listed = called(MANAGE, "help", **secrets)
    assert "    runworker\n" in listed.stdout
    assert "`manage.py runworker --help`" in called(MANAGE, "help", "runworker", **secrets).stdout
    explained = called(MANAGE, "runworker", "--help")
    assert "--check" in explained.stdout
    assert "MAX_CONCURRENT_ACTIVITIES" in explained.stdout
    module = called("-m", "worker", "--help")
    assert (module.returncode, module.stdout) == (explained.returncode, explained.stdout)


def test_a_wrong_option_is_named():
    """O11: as by every other command."""
    refused = called(MANAGE, "runworker", "--chek")
    assert refused.returncode == 2
    assert refused.stderr.endswith("manage.py runworker: error: unrecognized arguments: --chek\n")


def test_the_worker_loads_no_django():
    """X8: no settings of the site, so no secret of the site, reach the worker's process."""
    code = "import sys, worker.__main__; sys.exit('django' in sys.modules)"
    assert called("-c", code).returncode == 0


@pytest.mark.parametrize(
    ("settings", "activities", "workflow_tasks"),
    [
        ({}, 100, 100),
        ({"MAX_CONCURRENT_ACTIVITIES": "7", "MAX_CONCURRENT_WORKFLOW_TASKS": "8"}, 7, 8),
    ],
)
def test_a_queue_has_a_hundred_slots_by_default(
    settings: dict[str, str],
    activities: int,
    workflow_tasks: int,
    monkeypatch: pytest.MonkeyPatch,
):
    """O11: each setting gives its own slots."""
    worked_with: list[Any] = []

    async def work(*arguments: Any) -> None:
        worked_with.extend(arguments)

    monkeypatch.setattr(os, "environ", settings)
    monkeypatch.setattr(worker_command, "_work", work)
    worker_command.run([])
    assert worked_with[-1] == {
        "max_concurrent_activities": activities,
        "max_concurrent_workflow_tasks": workflow_tasks,
    }


async def test_a_stopping_worker_finishes_its_activities(
    runworker: Callable[..., Process],
    temporal_address: str,
    client: Client,
    scripted: sites.ScriptedSite,
):
    """O11, W7: an activity under way at SIGTERM completes, and is not done again."""
    scripted.script("/create", sites.hang)
    settings = {"TEMPORAL_ADDRESS": temporal_address, "EXPENSES_SITE_URL": scripted.url}
    stopping = runworker(**settings)
    await stopping.until(READY)
    await start_expense(client, "stopping-1")
    await eventually(lambda: scripted.requests_to("/create", "stopping-1"))
    ended = asyncio.create_task(stopping.ended(signal.SIGTERM))
    # Long enough for a worker that does not wait.
    await asyncio.sleep(1)
    scripted.released.set()
    assert await ended == 0
    await runworker(**settings).until(READY)
    await eventually(lambda: scripted.requests_to("/registerCallback", "stopping-1"))
    assert len(scripted.requests_to("/create", "stopping-1")) == 1


class Gauge:
    """How many tasks run at a time, and the most that did."""

    now = most = total = 0
    lock = threading.Lock()


@workflow.defn(sandboxed=False)
class Slow:
    """A workflow whose single task holds its slot for a while."""

    @workflow.run
    async def run(self) -> None:
        with Gauge.lock:
            Gauge.now += 1
            Gauge.total += 1
            Gauge.most = max(Gauge.most, Gauge.now)
        time.sleep(0.3)  # noqa: ASYNC251 (the slot is the subject)
        with Gauge.lock:
            Gauge.now -= 1


async def test_workflow_tasks_keep_to_their_slots(client: Client):
    """O11: of six workflow tasks that wait, the worker runs three at a time at most."""
    queue = str(uuid.uuid4())
    slots = {"max_concurrent_activities": 1, "max_concurrent_workflow_tasks": 3}
    [worker] = worker_command.make_workers(client, {queue: worker_command.Work([Slow], [])}, slots)
    runs = [
        await client.start_workflow(Slow.run, id=f"{queue}-{n}", task_queue=queue) for n in range(6)
    ]
    async with worker:
        await asyncio.gather(*(handle.result() for handle in runs))
    assert Gauge.total == 6
    assert Gauge.most <= 3
