"""Temporal's dev server on this machine, through the `temporal` command line."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from django.core.management.base import CommandError

from local import temporal_ui
from worker.contracts import QUEUES

LOOPBACK: Final = "127.0.0.1"
# How long Temporal keeps a workflow after its end.
RETENTION: Final = "30d"
# An expense on an idle machine takes 25 ms with these rates and 200 ms with the defaults.
POLL_RATES: Final = {
    "history.transferProcessorMaxPollRPS": 2000,
    "history.timerProcessorMaxPollRPS": 2000,
    "history.transferProcessorMaxPollHostRPS": 4000,
}
# Temporal gets none of the product's settings, only these variables.
SYSTEM_VARIABLES: Final = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR")


class DevServer:
    """A server on two ports of the loopback address: gRPC and the Web UI.

    The `temporal` program is TEMPORAL_CLI_PATH, else the one beside this Python, else the one on
    the PATH. Raises CommandError if there is none.
    """

    def __init__(self, port: int, ui_port: int) -> None:
        wanted = os.environ.get("TEMPORAL_CLI_PATH") or "temporal"
        places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        program = shutil.which(wanted, path=os.pathsep.join(places))
        if program is None:
            raise CommandError(
                f"The Temporal CLI ({wanted}) is not there. Run `make setup`, or install it "
                "(https://docs.temporal.io/cli) and put it on the PATH or into TEMPORAL_CLI_PATH."
            )
        self._program = program
        self._port = port
        self._ui_port = ui_port
        self.ui_url = f"http://{LOOPBACK}:{ui_port}"
        self.environment = {
            name: os.environ[name] for name in SYSTEM_VARIABLES if name in os.environ
        } | {"TEMPORAL_CONFIG_FILE": os.devnull}

    def settings(self) -> dict[str, str]:
        """Return the environment of the server's clients."""
        return {
            "TEMPORAL_ADDRESS": f"{LOOPBACK}:{self._port}",
            "TEMPORAL_NAMESPACE": "default",
            # A person who uses Temporal Cloud has a profile that would apply here as well.
            "TEMPORAL_CONFIG_FILE": os.devnull,
            "TEMPORAL_UI_URL": self.ui_url,
        }

    def command(self, directory: Path) -> list[str]:
        """Return the command that runs the server, with its database in the directory."""
        # On Linux every address in 127.0.0.0/8 belongs to this machine: a page cannot guess one of
        # 16 million.
        octets = [str(secrets.randbelow(254) + 1) for _ in range(3)]
        ui_host = ".".join(["127", *octets]) if sys.platform == "linux" else LOOPBACK
        with socket.create_server((ui_host, 0)) as probe:
            hidden = (ui_host, probe.getsockname()[1])
        # Temporal's HTTP API answers under this name only, so a page cannot use it either.
        api_host = f"{secrets.token_hex(16)}.invalid"
        server = [
            self._program,
            "server",
            "start-dev",
            "--log-level=error",
            f"--ip={LOOPBACK}",
            f"--port={self._port}",
            f"--ui-ip={hidden[0]}",
            f"--ui-port={hidden[1]}",
            f'--dynamic-config-value=frontend.httpAllowedHosts=["{api_host}"]',
            # Relative: Temporal puts the name into a URL, and a `#` in a path would lose the data.
            "--db-filename=temporal.db",
            "--sqlite-pragma=journal_mode=WAL",
            *(f"--dynamic-config-value={key}={rate}" for key, rate in POLL_RATES.items()),
        ]
        return temporal_ui.command(self._ui_port, hidden, str(directory), server)

    def set_retention(self) -> bool:
        """Make the server keep closed workflows for :data:`RETENTION`; False if it does not answer.

        `start-dev` makes its namespace with one day and has no option for it.
        """
        command = "operator", "namespace", "update", "--retention", RETENTION
        return self._call(*command) is not None

    def is_polled(self) -> bool:
        """Return whether a worker polls each queue for workflow tasks and activities.

        The server forgets its pollers when it stops.
        """
        return all(self._pollers(queue) >= {"workflow", "activity"} for queue in QUEUES)

    def _pollers(self, queue: str) -> set[str]:
        answer = self._call("task-queue", "describe", "--task-queue", queue, "-o", "json")
        pollers = json.loads(answer)["pollers"] if answer else None
        return {poller["taskQueueType"] for poller in pollers or ()}

    def _call(self, *command: str) -> str | None:
        """Return the output of the command line for this server; None if the call fails."""
        answer = subprocess.run(
            [self._program, *command, "--command-timeout", "3s"],
            env=self.environment | self.settings(),
            capture_output=True,
            text=True,
            check=False,
        )
        return answer.stdout if answer.returncode == 0 else None
