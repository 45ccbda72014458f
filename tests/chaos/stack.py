"""The product as `manage.py up` runs it, on free ports and in a new data directory."""

import contextlib
import http.cookiejar
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx

from tests.faults.proxy import ReplyDropper
from tests.servers import eventually, free_port

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0
STOP_SECONDS = 60.0


class Stack:
    """`up` in `folder`. A proxy between worker and site loses the replies that `drops` chooses.

    `folder` needs room for two databases. Enter the stack in the main thread: `up` ends with the
    thread that started it.
    """

    def __init__(self, folder: Path, drops: Callable[[str], bool]) -> None:
        self.data = folder / "var"
        self.console = folder / "console.log"
        self._held = folder / "temporal-is-held-down"
        self._temporal_cli = folder / "temporal"
        port, temporal, ui = (free_port() for _ in range(3))
        self.url = f"http://127.0.0.1:{port}"
        self.temporal_address = f"127.0.0.1:{temporal}"
        self._proxy = ReplyDropper(port, drops)
        self._command = [
            *(sys.executable, str(ROOT / "manage.py"), "up", f"--data-dir={self.data}"),
            *(f"--port={port}", f"--temporal-port={temporal}", f"--temporal-ui-port={ui}"),
        ]

    def __enter__(self) -> Self:
        installed = Path(sys.executable).with_name("temporal")
        cli = installed if installed.exists() else shutil.which("temporal")
        # Temporal waits at its start, and at each restart, while it is held down.
        self._temporal_cli.write_text(
            f'#!/bin/sh\nwhile [ "$1" = server ] && [ -e "{self._held}" ]; do sleep 0.05; done\n'
            f'exec "{cli}" "$@"\n'
        )
        self._temporal_cli.chmod(0o700)
        # Of the caller's own settings only the database.
        passed = ("PATH", "HOME", "DATABASE_URL")
        environment = {name: os.environ[name] for name in passed if name in os.environ} | {
            "TEMPORAL_CLI_PATH": str(self._temporal_cli),
            # A single employee submits half of all expenses.
            "SUBMISSIONS_PER_HOUR": "1000000",
            # Under `make`, `up` stops when its parent is killed.
            "MAKELEVEL": "1",
        }
        self._proxy.__enter__()
        environment["EXPENSES_SITE_URL"] = self._proxy.url
        with self.console.open("w") as console:
            self._up = subprocess.Popen(
                self._command, env=environment, stdout=console, stderr=subprocess.STDOUT
            )
        try:
            eventually(lambda: self._is_ready() or not self.is_up(), START_SECONDS)
            assert self._is_ready(), self.console.read_text()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._held.unlink(missing_ok=True)
        self._up.terminate()
        try:
            self._up.wait(STOP_SECONDS)
        finally:
            self._up.kill()
            self._proxy.__exit__()

    def _is_ready(self) -> bool:
        return f"\nready {self.url}\n" in self.console.read_text()

    def is_up(self) -> bool:
        return self._up.poll() is None

    def client(self) -> httpx.AsyncClient:
        """Return a client without cookies, since its many users would share them."""
        none = http.cookiejar.DefaultCookiePolicy(allowed_domains=[])
        return httpx.AsyncClient(
            base_url=self.url,
            cookies=http.cookiejar.CookieJar(none),
            limits=httpx.Limits(max_connections=None),
            timeout=10,
            trust_env=False,
        )

    def credentials(self, role: str) -> dict[str, str]:
        found: dict[str, dict[str, str]] = json.loads((self.data / "credentials.json").read_text())
        return found[role]

    def bearer(self, role: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.credentials(role)['token']}"}

    def session(self, name: str) -> list[int]:
        """Return the living processes of a child, the main process first."""
        main = int(json.loads((self.data / "processes.json").read_text())[name])
        living = []
        for entry in Path("/proc").iterdir():
            # Skip what is no process or ends meanwhile.
            with contextlib.suppress(OSError, ValueError, IndexError):
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == main and state != "Z":
                    living.append(int(entry.name))
        return sorted(living, key=lambda pid: (pid != main, pid))

    def hold_temporal_down(self) -> None:
        """Kill Temporal. Its port refuses connections until `let_temporal_up`."""
        self._held.touch()
        os.kill(self.session("temporal")[0], signal.SIGKILL)

    def let_temporal_up(self) -> None:
        self._held.unlink()
