"""The web server, the relay and the worker as processes in which a point may fail."""

import asyncio
import contextlib
import functools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import psycopg

from local.supervisor import die_with
from tests.faults.points import Action, Faults, Point
from tests.faults.proxy import ReplyDropper
from tests.servers import free_port

# A request may wait this long for SQLite's lock on a slow machine. Then the site cuts it.
REQUEST_SECONDS = 20
# No process needs longer to stop.
STOP_SECONDS = 40.0
_TARGETS = {
    "web": "web",
    "relay": "relay",
    "worker": "runworker",
}


class Database:
    """The database that tests and processes share: its address, and the tokens of its users."""

    def __init__(self, url: str, tokens: dict[str, str]) -> None:
        self.url = url
        self.tokens = tokens
        self._connection: Any = (
            sqlite3.connect(unquote(urlsplit(url).path[1:]), timeout=20, isolation_level=None)
            if url.startswith("sqlite")
            else psycopg.connect(url, autocommit=True)
        )

    def rows(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        """Run `sql`, with `?` for each value, without Django."""
        if isinstance(self._connection, psycopg.Connection):
            sql = sql.replace("?", "%s")
        rows: list[tuple[Any, ...]] = self._connection.execute(sql, values).fetchall()
        return rows

    def close(self) -> None:
        self._connection.close()


class Stack:
    """The processes, on one database and one Temporal server. Use as a context manager.

    The test calls :meth:`restart` repeatedly. The worker and all clients reach the site through a
    proxy that may drop one reply.
    """

    def __init__(
        self, folder: Path, database: Database, temporal_address: str, *, web_processes: int = 1
    ) -> None:
        self.database = database
        self.temporal_address = temporal_address
        self.faults = Faults(folder)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._folder = folder
        self.port = free_port()
        self._web_processes = web_processes
        self._dropper = ReplyDropper(self.port, self._drops)
        self._dropping = ""
        self._dropped = threading.Event()
        self._to_kill: Point | None = None
        self._stopped: set[str] = set()

    def __enter__(self) -> Self:
        self._dropper.__enter__()
        self.url = self._dropper.url
        for name in _TARGETS:
            self._start(name)
        return self

    def __exit__(self, *error: Any) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._dropper.__exit__(*error)

    @contextlib.contextmanager
    def armed(self, point: Point, action: Action, *, kill: bool = True) -> Iterator[None]:
        """Let the point fail once within the block; at its end a hanging call continues. With
        `kill`, :meth:`restart` kills a hanging process that nothing else frees."""
        self._dropped.clear()
        self._dropping = point.reply if action == "drop" else ""
        self._to_kill = point if kill and action == "hang" and point.frees == "kill" else None
        if not self._dropping:
            self.faults.arm(point, action)
        if point.process == "relay":
            self.faults.relay_alone.touch()
        try:
            yield
        finally:
            self._dropping, self._to_kill = "", None
            self.faults.disarm(point)
            self.faults.relay_alone.unlink(missing_ok=True)

    def has_fired(self, point: Point) -> bool:
        return self._dropped.is_set() or self.faults.fired_in(point) is not None

    def restart(self) -> None:
        """Kill a hanging process that nothing else frees; start each process that has ended."""
        if self._to_kill is not None and (pid := self.faults.fired_in(self._to_kill)):
            self._to_kill = None
            os.kill(pid, signal.SIGKILL)
        for name, process in self.processes.items():
            if name not in self._stopped and process.poll() is not None:
                self._start(name)

    @contextlib.asynccontextmanager
    async def stopping(self, name: str) -> AsyncIterator[subprocess.Popen[bytes]]:
        """Send SIGTERM, and require that the process ends with 0 within the block or soon after.
        :meth:`restart` starts the process again."""
        process = self.processes[name]
        self._stopped.add(name)
        process.terminate()
        try:
            yield process
            assert await asyncio.to_thread(process.wait, STOP_SECONDS) == 0
        finally:
            self._stopped.remove(name)

    def _start(self, name: str) -> None:
        command = [sys.executable, "-m", "tests.faults.launch", _TARGETS[name]]
        if name == "web":
            command += [
                f"--port={self.port}",
                f"--processes={self._web_processes}",
                f"--stop-seconds={REQUEST_SECONDS}",
            ]
        inherited = {
            variable: value
            for variable, value in os.environ.items()
            if not variable.startswith(("TEMPORAL_", "EXPENSES_SITE_"))
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=inherited
                | {
                    "DJANGO_SETTINGS_MODULE": "tests.settings",
                    "DATABASE_URL": self.database.url,
                    "EXPENSES_SITE_TOKEN": self.database.tokens["worker"],
                    "EXPENSES_SITE_URL": self.url,
                    "FAULTS_DIR": str(self._folder),
                    "TEMPORAL_ADDRESS": self.temporal_address,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=functools.partial(die_with, os.getpid()),
            )

    def _drops(self, request: str) -> bool:
        if not self._dropping or not request.startswith(self._dropping):
            return False
        self._dropping = ""
        self._dropped.set()
        return True
