"""`python -m worker`, or `manage.py runworker`: execute the workflows and their activities.

The worker needs neither Django nor a database, and none of the site's secrets.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import dotenv
from temporalio.client import Client
from temporalio.worker import PollerBehaviorAutoscaling, Worker

from worker import connection, contracts
from worker.expenses.activities import ExpenseActivities
from worker.expenses.workflows import SampleExpenseWorkflow
from worker.jobs.activities import say_hello_activity
from worker.jobs.workflows import SayHelloWorkflow
from worker.orders.activities import OrderActivities
from worker.orders.workflows import OrderWorkflow
from worker.site import Site

logger = logging.getLogger("worker")

DESCRIPTION: Final = (
    "Run the Temporal worker of all queues until SIGTERM or SIGINT. On each queue it executes up "
    "to MAX_CONCURRENT_ACTIVITIES activities and MAX_CONCURRENT_WORKFLOW_TASKS workflow tasks at a "
    "time (100 each), so a flood on one queue leaves the others their slots."
)
MOST_SLOTS: Final = 10_000
DEFAULT_DATA_DIR: Final = Path(__file__).resolve().parent.parent / "var"
# The worker's own settings. The settings of a local installation hold the site's secrets as well.
SETTINGS: Final = (
    "EXPENSES_PROTOCOL_ACCESS",
    "EXPENSES_SITE_",
    "FAIL_AT",
    "LOG_LEVEL",
    "MAX_CONCURRENT_",
    "TEMPORAL_",
)


class Work(NamedTuple):
    """What the worker executes on a queue. An activity runs on the queue of its workflow."""

    workflows: Sequence[type]
    activities: Sequence[Callable[..., Any]]


def main(arguments: Sequence[str]) -> NoReturn:
    """Run the command and end the process without finalizing the interpreter.

    The SDK's threads ask for the GIL during finalization, which aborts the process: of short
    commands that were done, 2 to 5 in a hundred ended with SIGABRT (temporalio/sdk-python issue
    300).
    """
    code: Any = 0
    try:
        run(arguments)
    except SystemExit as end:
        code = end.code
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def run(arguments: Sequence[str]) -> None:
    """Run the worker until it is stopped. Exits with a sentence where a setting is wrong."""
    parser = ArgumentParser(prog="manage.py runworker", description=DESCRIPTION)
    parser.add_argument(
        "--check",
        action="store_true",
        help="ask Temporal and the site once, say what is wrong, and exit with 0 or 1",
    )
    check = parser.parse_args(arguments).check
    _load_settings()
    _configure_logging()
    slots = {
        "max_concurrent_activities": _read_slots("MAX_CONCURRENT_ACTIVITIES", least=1),
        # The sticky and the common queue would take turns at a single slot: a task of the other
        # queue waited 6 s for it.
        "max_concurrent_workflow_tasks": _read_slots("MAX_CONCURRENT_WORKFLOW_TASKS", least=2),
    }
    token = os.environ.get("EXPENSES_SITE_TOKEN", "").strip()
    try:
        temporal = connection.read_options()
        site = Site(os.environ.get("EXPENSES_SITE_URL") or contracts.SITE_URL, token)
    except ValueError as error:
        sys.exit(str(error))
    fail_at = _read_fail_at()
    try:
        if check:
            asyncio.run(_check(temporal, site))
            return
        if not token:
            logger.warning("EXPENSES_SITE_TOKEN is not set; only a site in open mode will answer")
        asyncio.run(_work(temporal, site, fail_at, slots))
    except connection.WrongAddress as error:
        sys.exit(str(error))
    except RuntimeError as error:
        sys.exit(f"The worker stopped: {error}")


def _load_settings() -> None:
    """Add the settings of the local installation, if there is one, below the real environment."""
    # Another name of the address (requirements O11).
    if host := os.environ.get("TEMPORAL_HOST"):
        os.environ.setdefault("TEMPORAL_ADDRESS", host)
    path = Path(os.environ.get("EXPENSES_DATA_DIR") or DEFAULT_DATA_DIR, "settings.env")
    for name, value in dotenv.dotenv_values(path, interpolate=False).items():
        if name.startswith(SETTINGS) and value is not None:
            os.environ.setdefault(name, value)


def _configure_logging() -> None:
    level = os.environ.get("LOG_LEVEL", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        sys.exit(f"LOG_LEVEL is {level!r}; use DEBUG, INFO, WARNING or ERROR.")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=level)
    # httpx logs the URL of each request at INFO.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _read_slots(name: str, *, least: int) -> int:
    text = os.environ.get(name) or "100"
    if not (text.isdecimal() and least <= int(text) <= MOST_SLOTS):
        sys.exit(
            f"{name} is {text!r}. Set it to a whole number from {least} to {MOST_SLOTS}, or unset "
            "it for 100."
        )
    return int(text)


def _read_fail_at() -> str:
    """The step after which each order fails (requirements O6): on a local installation only."""
    point = os.environ.get("FAIL_AT", "")
    if point and point not in contracts.FAIL_AT:
        sys.exit(
            f"FAIL_AT is {point!r}. Set it to one of {', '.join(contracts.FAIL_AT)}, or unset it."
        )
    if point and os.environ.get("EXPENSES_PROTOCOL_ACCESS") != "open":
        sys.exit("FAIL_AT is for a local installation (`make up`) only. Unset it.")
    if point:
        logger.warning("FAIL_AT=%s: every order fails there", point)
    return point


async def _check(temporal: dict[str, Any], site: Site) -> None:
    """Print what is wrong with Temporal and with the site; exit with 1 if anything is."""
    unreachable = None
    try:
        await connection.connect(temporal)
    except ConnectionError as error:
        unreachable = str(error)
    async with site:
        faults = {
            f"Temporal at {temporal['target_host']}": unreachable,
            f"Site at {site.url}": await site.find_fault(),
        }
    for subject, fault in faults.items():
        sys.stdout.write(f"{subject}: {fault or 'ok'}\n")
    if any(faults.values()):
        sys.exit(1)


async def _work(
    temporal: dict[str, Any], site: Site, fail_at: str, slots: Mapping[str, int]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    client = await connection.connect_patiently(temporal, stop)
    if client is None:
        return
    async with site:
        if fault := await site.find_fault():
            logger.warning("The site at %s: %s", site.url, fault)
        workers = make_workers(client, work_by_queue(site, fail_at), slots)
        async with contextlib.AsyncExitStack() as running:
            for worker in workers:
                await running.enter_async_context(worker)
            while not all(worker.is_running for worker in workers):  # noqa: ASYNC110 (no event for it)
                await asyncio.sleep(0.02)
            logger.info("Worker ready: queues %s; site %s", ", ".join(contracts.QUEUES), site.url)
            await stop.wait()
            # All at once: each may take its graceful time.
            await asyncio.gather(*(worker.shutdown() for worker in workers))
    logger.info("Worker stopped")


def work_by_queue(site: Site, fail_at: str) -> dict[str, Work]:
    return {
        contracts.EXPENSE_QUEUE: Work([SampleExpenseWorkflow], ExpenseActivities(site).all()),
        contracts.ORDER_QUEUE: Work([OrderWorkflow], OrderActivities(site, fail_at=fail_at).all()),
        contracts.JOB_QUEUE: Work([SayHelloWorkflow], [say_hello_activity]),
    }


def make_workers(
    client: Client, queues: Mapping[str, Work], slots: Mapping[str, int]
) -> list[Worker]:
    """Make a worker for each queue; `slots` are the `max_concurrent_…` arguments of each."""
    return [
        Worker(
            client,
            task_queue=queue,
            workflows=work.workflows,
            activities=work.activities,
            workflow_task_poller_behavior=PollerBehaviorAutoscaling(),
            activity_task_poller_behavior=PollerBehaviorAutoscaling(),
            # A waiting workflow is bound to the worker that caches it. When that worker is killed,
            # a decision waits this long before another worker takes the workflow up.
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
            graceful_shutdown_timeout=timedelta(seconds=5),
            **slots,  # type: ignore[arg-type]
        )
        for queue, work in queues.items()
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
