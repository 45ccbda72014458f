"""`manage.py runworker`: executes the workflows and their activities. Needs no database."""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import httpx
from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import PollerBehaviorAutoscaling, Worker

from temporal.base_command import TemporalCommand
from temporal.client import connect_options
from worker import contracts
from worker.expenses.activities import ExpenseActivities
from worker.expenses.workflows import SampleExpenseWorkflow
from worker.jobs.activities import say_hello_activity
from worker.jobs.workflows import SayHelloWorkflow
from worker.orders.activities import OrderActivities
from worker.orders.workflows import OrderWorkflow
from worker.site import Site

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5
MOST_SLOTS = 10_000


class Work(NamedTuple):
    """What is executed on a queue. An activity runs on the queue of its workflow."""

    workflows: Sequence[type]
    activities: Sequence[Callable[..., Any]]


def _work_of_queues(site: Site, fail_at: str) -> dict[str, Work]:
    return {
        contracts.EXPENSE_QUEUE: Work([SampleExpenseWorkflow], ExpenseActivities(site).all()),
        contracts.ORDER_QUEUE: Work([OrderWorkflow], OrderActivities(site, fail_at=fail_at).all()),
        contracts.JOB_QUEUE: Work([SayHelloWorkflow], [say_hello_activity]),
    }


class Command(TemporalCommand):
    help = (
        "Runs the Temporal worker of all queues until SIGTERM or SIGINT. On each queue it executes "
        "up to MAX_CONCURRENT_ACTIVITIES activities and MAX_CONCURRENT_WORKFLOW_TASKS workflow "
        "tasks at a time (100): what floods one leaves the others their slots."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--check",
            action="store_true",
            help="ask Temporal and the site once, say what is wrong, and exit with 0 or 1",
        )

    def handle(self, *args: Any, check: bool, **options: Any) -> None:
        activities = _slots("MAX_CONCURRENT_ACTIVITIES", least=1)
        # One slot would be held by the sticky and the common queue in turn: a task of the other
        # waited 6 s for it.
        workflow_tasks = _slots("MAX_CONCURRENT_WORKFLOW_TASKS", least=2)
        token = os.environ.get("EXPENSES_SITE_TOKEN", "").strip()
        try:
            temporal = connect_options()
            site = Site(os.environ.get("EXPENSES_SITE_URL") or "http://127.0.0.1:8099", token)
        except ValueError as error:
            raise CommandError(str(error)) from error
        queues = _work_of_queues(site, _fail_at())
        temporal |= {"namespace": temporal.get("namespace", "default"), "runtime": _runtime()}
        if check:
            faults = asyncio.run(_faults(temporal, site))
            for subject, fault in faults.items():
                self.stdout.write(f"{subject}: {fault or 'ok'}")
            if any(faults.values()):
                raise SystemExit(1)
            return
        if not token:
            logger.warning("EXPENSES_SITE_TOKEN is not set; only a site in open mode will answer")
        try:
            asyncio.run(_work(temporal, site, queues, activities, workflow_tasks))
        except RuntimeError as error:
            raise CommandError(f"The worker stopped: {error}") from error


def _fail_at() -> str:
    """Where each order fails (requirements O6): in the local mode alone."""
    point = os.environ.get("FAIL_AT", "")
    if point and point not in contracts.FAIL_AT:
        raise CommandError(
            f"FAIL_AT is {point!r}. Set it to one of {', '.join(contracts.FAIL_AT)}, or unset it."
        )
    if point and settings.EXPENSES_PROTOCOL_ACCESS != "open":
        raise CommandError("FAIL_AT is for a local installation (`make up`) only. Unset it.")
    if point:
        logger.warning("FAIL_AT=%s: every order fails there", point)
    return point


def _slots(name: str, *, least: int) -> int:
    text = os.environ.get(name) or "100"
    if not (text.isdecimal() and least <= int(text) <= MOST_SLOTS):
        raise CommandError(
            f"{name} is {text!r}. Set it to a whole number from {least} to {MOST_SLOTS}, or unset "
            "it for 100."
        )
    return int(text)


def _runtime() -> Runtime:
    """The SDK's runtime, kept from logging task tokens (requirements E10)."""
    # At DEBUG its Python half logs the token of each activity.
    sdk = logging.getLogger("temporalio")
    sdk.setLevel(max(sdk.getEffectiveLevel(), logging.INFO))
    # Its Rust half quotes the token of an activity whose workflow was closed meanwhile, at WARN.
    default = TelemetryFilter(core_level="WARN", other_level="ERROR").formatted()
    log_filter = f"{default},temporalio_sdk_core::worker::activities=OFF"
    return Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(filter=log_filter)))


async def _faults(temporal: dict[str, Any], site: Site) -> dict[str, str | None]:
    """What is wrong with Temporal and with the site, cause and remedy; None where nothing is."""
    fault = None
    try:
        await _connect(temporal)
    except ConnectionError as error:
        fault = str(error)
    async with site:
        return {
            f"Temporal at {temporal['target_host']}": fault,
            f"Site at {site.url}": await _site_fault(site),
        }


async def _work(
    temporal: dict[str, Any],
    site: Site,
    queues: dict[str, Work],
    activities: int,
    workflow_tasks: int,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    client = await _connect_patiently(temporal, stop)
    if client is None:
        return
    async with site:
        if fault := await _site_fault(site):
            logger.warning("The site at %s: %s", site.url, fault)
        workers = [
            Worker(
                client,
                task_queue=queue,
                workflows=work.workflows,
                activities=work.activities,
                max_concurrent_activities=activities,
                max_concurrent_workflow_tasks=workflow_tasks,
                workflow_task_poller_behavior=PollerBehaviorAutoscaling(),
                activity_task_poller_behavior=PollerBehaviorAutoscaling(),
                # A workflow that waits is bound to the worker that caches it. When that one is
                # killed, a decision waits this long before another worker takes the workflow up.
                sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
                graceful_shutdown_timeout=timedelta(seconds=5),
            )
            for queue, work in queues.items()
        ]
        async with contextlib.AsyncExitStack() as running:
            for worker in workers:
                await running.enter_async_context(worker)
            while not all(worker.is_running for worker in workers):  # noqa: ASYNC110 (no event for it)
                await asyncio.sleep(0.02)
            logger.info("Worker ready: queues %s; site %s", ", ".join(queues), site.url)
            await stop.wait()
            # All at once: each may take its graceful time.
            await asyncio.gather(*(worker.shutdown() for worker in workers))
    logger.info("Worker stopped")


async def _connect_patiently(temporal: dict[str, Any], stop: asyncio.Event) -> Client | None:
    """A client, however long Temporal takes; None if `stop` is set first."""
    for pause in itertools.chain(range(1, 5), itertools.repeat(5)):
        try:
            return await _connect(temporal)
        except ConnectionError as error:
            logger.warning("waiting for Temporal at %s …: %s", temporal["target_host"], error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)
            break
    return None


async def _connect(temporal: dict[str, Any]) -> Client:
    """A client of a server that answers and has the namespace.

    Raises ConnectionError, whose text says why not and what to do.
    """
    namespace = temporal["namespace"]
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            client = await Client.connect(**temporal)
            await client.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace=namespace)
            )
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise ConnectionError(
                f"it has no namespace {namespace!r}. Set TEMPORAL_NAMESPACE, or create it with "
                f"`temporal operator namespace create --namespace {namespace}`."
            ) from error
        raise ConnectionError(
            f"it answers {error.status.name} ({error.message}). Check TEMPORAL_API_KEY and "
            "TEMPORAL_TLS."
        ) from error
    except TimeoutError as error:
        raise ConnectionError(
            f"no answer within {CONNECT_SECONDS} s. Check the server and TEMPORAL_ADDRESS."
        ) from error
    except ValueError as error:
        raise CommandError(f"TEMPORAL_ADDRESS is {temporal['target_host']!r}: {error}") from error
    except RuntimeError as error:
        raise ConnectionError(
            f"it cannot be reached. Start it (`make up`), or set TEMPORAL_ADDRESS. ({error})"
        ) from error
    return client


async def _site_fault(site: Site) -> str | None:
    """What keeps the worker from using the site, cause and remedy; None if nothing does."""
    unknown = f"runworker-{uuid.uuid4()}"
    try:
        answer = await site.request("GET", "/status", workflow_id=unknown, params={"id": unknown})
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            return (
                f"it refuses the token ({status}). Set EXPENSES_SITE_TOKEN to the token of a user "
                "in the group Worker."
            )
        if status == 404:
            return (
                "it has no expense protocol (404). Set EXPENSES_PROTOCOL_ACCESS on the site to "
                "token, or correct EXPENSES_SITE_URL."
            )
        return f"it answers {status}. See the site's log, or correct EXPENSES_SITE_URL."
    except httpx.TransportError as error:
        return (
            f"it cannot be reached ({type(error).__name__}). Start it (`make up`), or correct "
            "EXPENSES_SITE_URL."
        )
    if answer != "ERROR:INVALID_ID":
        return "what answers there is not the expense site. Correct EXPENSES_SITE_URL."
    try:
        # A payment of nothing: access is answered before the missing id (422).
        await site.request(
            "GET", "/action", workflow_id=unknown, params={"type": "payment", "is_api_call": "true"}
        )
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (401, 403):
            return (
                "it refuses payments by this token. Set EXPENSES_SITE_TOKEN to the token of a "
                "user in the group Worker."
            )
    except httpx.TransportError as error:
        return f"it stopped answering ({type(error).__name__})."
    return None
