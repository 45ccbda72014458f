"""A web process that asks a Temporal server, and workers that come and go."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from worker import contracts
from worker.jobs.activities import say_hello_activity
from worker.jobs.workflows import SayHelloWorkflow

Working = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def temporal(asking: None, temporal_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the server that this process asks."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    return temporal_address


@activity.defn(name=contracts.SAY_HELLO)
async def hanging(_: contracts.Job) -> None:
    await asyncio.Event().wait()


@activity.defn(name=contracts.SAY_HELLO)
async def failing(_: contracts.Job) -> None:
    raise RuntimeError("no hello")


@pytest.fixture
def working(temporal_address: str) -> Working:
    """`with working():` there is a worker for jobs; `with working(hanging):` one whose activity
    is another."""

    @contextmanager
    def work(say_hello: Any = say_hello_activity) -> Iterator[None]:
        ready, stop = threading.Event(), asyncio.Event()

        async def run() -> None:
            client = await Client.connect(temporal_address)
            async with Worker(
                client,
                task_queue=contracts.JOB_QUEUE,
                workflows=[SayHelloWorkflow],
                activities=[say_hello],
                max_cached_workflows=0,
            ):
                ready.set()
                await stop.wait()

        with ThreadPoolExecutor(1) as thread:
            loop = asyncio.new_event_loop()
            worked = thread.submit(loop.run_until_complete, run())
            try:
                assert ready.wait(20)
                yield
            finally:
                loop.call_soon_threadsafe(stop.set)
                worked.result()
                loop.close()

    return work
