"""A real Temporal server for the tests, which they can kill, freeze and restart."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

# Without these an idle expense takes 200 ms instead of 25.
FAST = (
    "history.transferProcessorMaxPollRPS=2000",
    "history.timerProcessorMaxPollRPS=2000",
    "history.transferProcessorMaxPollHostRPS=4000",
)
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(ask: Callable[[], T], seconds: float = 40) -> T:
    """Return the first true answer. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)
    return answer


class Ended(AssertionError):
    """The server ended, and no test had killed it."""


class TemporalServer:
    """`temporal server start-dev`. With a folder, the server's data survives a kill.

    As a context manager it starts the server and finally kills it.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        port: int | None = None,
        config: Sequence[str] = FAST,
    ) -> None:
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._folder = folder
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when all services of the server answer.

        About one in a hundred starts ends in a panic of start-dev, so start again, as
        `manage.py up` does.
        """
        for last in (False, False, True):
            self._spawn()
            try:
                # In another thread, since the caller's thread may have a running loop.
                with ThreadPoolExecutor() as thread:
                    eventually(lambda: thread.submit(asyncio.run, self._answers()).result())
            except Ended as ended:
                if last:
                    raise
                print(ended, file=sys.stderr)
            else:
                return

    def _spawn(self) -> None:
        cli = Path(sys.executable).with_name("temporal")
        command = [
            str(cli) if cli.exists() else (shutil.which("temporal") or "temporal"),
            *("server", "start-dev", "--headless", "--log-level", "error"),
            *("--ip", "127.0.0.1", "--port", str(self.port)),
            *(part for value in self._config for part in ("--dynamic-config-value", value)),
        ]
        if self._folder:
            command += ["--db-filename", str(self._folder / "temporal.db")]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the server)
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    async def _answers(self) -> bool:
        self._lives()
        try:
            async with asyncio.timeout(5):
                client = await Client.connect(self.address)
                service = client.workflow_service
                await service.describe_namespace(DescribeNamespaceRequest(namespace="default"))
                queue = TaskQueue(name="none")
                await service.describe_task_queue(
                    DescribeTaskQueueRequest(namespace="default", task_queue=queue)
                )
        except (RuntimeError, RPCError, TimeoutError):
            return False
        try:
            async with asyncio.timeout(5):
                await client.get_workflow_handle("none").describe()
        except (RPCError, TimeoutError) as error:
            return isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND
        return True

    def _lives(self) -> "subprocess.Popen[bytes]":
        """Return the process. Raises `Ended`, with the beginning of the log, if it has ended."""
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            self._log.seek(0)
            raise Ended(f"Temporal ended with {code}: {self._log.read()[:2000]!r}")
        return self._process

    def signal(self, number: int) -> None:
        """Send a signal. After a SIGSTOP, return when all threads have stopped."""
        process = self._lives()
        process.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)

    def kill(self) -> None:
        """Kill the server. Raises `Ended` if the server has ended before."""
        if self._process is not None:
            process = self._lives()
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
