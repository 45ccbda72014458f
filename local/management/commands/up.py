"""`manage.py up`: the whole product on this machine, from nothing to ready."""

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection

from expensesite import server
from local import credentials, installation
from local.dev_server import LOOPBACK, DevServer
from local.supervisor import Child, Supervisor
from orders.examples import stock_examples
from worker import contracts

MANAGE = (sys.executable, str(installation.BASE_DIR / "manage.py"))


class Command(BaseCommand):
    help = (
        "Run the product on this machine: a Temporal dev server, the site, the worker and the "
        "relay. The first start makes the database, the secrets and the users; a later one keeps "
        "everything. Prints `ready <url>` when all of them answer. Ctrl-C stops them, a second "
        "Ctrl-C kills them."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--host",
            default=contracts.SITE_HOST,
            help="address that the site listens on (%(default)s); requests from other machines "
            "need a token, and ALLOWED_HOSTS must list the names they use",
        )
        for option, default, what in (
            ("--port", contracts.SITE_PORT, "the site"),
            ("--temporal-port", 7233, "the Temporal server"),
            ("--temporal-ui-port", 8233, "the Temporal Web UI"),
        ):
            parser.add_argument(
                option, type=int, default=default, metavar="N", help=f"port of {what} ({default})"
            )
        installation.add_data_dir(parser)
        parser.add_argument(
            "--seed", type=int, default=0, metavar="N", help="start N example expenses when ready"
        )

    def handle(
        self,
        *,
        host: str,
        port: int,
        temporal_port: int,
        temporal_ui_port: int,
        seed: int,
        **options: Any,
    ) -> None:
        directory: Path = settings.DATA_DIR
        if not installation.is_locked():
            raise CommandError(
                f"Another `manage.py up` runs on {directory}. Stop it, or name another directory "
                "with --data-dir."
            )
        if seed < 0:
            raise CommandError("--seed takes a whole number from 0.")
        temporal = DevServer(temporal_port, temporal_ui_port)
        address = _check_ports(host, port, temporal_port, temporal_ui_port)

        processes = directory / "processes.json"
        processes.unlink(missing_ok=True)  # left by an `up` that was killed
        self._say(f"Preparing the installation in {directory}")
        people = _set_up(directory)
        url = _publish_settings(temporal, host, port, people)
        with Supervisor(
            logs=directory / "logs",
            signals=installation.stop_signals(),
            say=self._say,
            changed=lambda pids: installation.write_private(processes, json.dumps(pids)),
        ) as supervisor:
            self._say("Starting Temporal, the site, the relay and the worker")
            token = people["worker"]["token"]
            relay = _start_children(supervisor, temporal, directory, address, port, token)
            answering: dict[str, Callable[[], bool]] = {
                "temporal": temporal.set_retention,
                "web": lambda: _is_ready(url),
                "relay": lambda: "Relay ready" in relay.output(),
                "worker": temporal.is_polled,
            }
            if all(
                supervisor.wait(answers, what=f"{child}; its log is {directory}/logs/{child}.log")
                for child, answers in answering.items()
            ):
                self._welcome(directory, url, temporal.ui_url, people["admin"]["username"])
                if seed:
                    self._seed(supervisor, seed)
                supervisor.wait()
            self._say("\nStopping the worker, the relay, the site and Temporal")
        processes.unlink(missing_ok=True)
        self._say("Stopped")

    def _welcome(self, directory: Path, url: str, ui: str, username: str) -> None:
        manage = "./manage.py"
        if directory != installation.BASE_DIR / "var":
            manage = f"EXPENSES_DATA_DIR={shlex.quote(str(directory))} {manage}"
        self._say(
            f"""
  Site         {url}/list
  Admin        {url}/admin/
  Temporal UI  {ui}
  Sign in      as {username}; the password is in {directory / "credentials.json"}
  Next         {manage} startexpense lunch-1 --wait
               and approve it at {url}/admin/expenses/expense/
"""
        )
        self._say(self.style.SUCCESS(f"ready {url}"))

    def _seed(self, supervisor: Supervisor, count: int) -> None:
        command = [*MANAGE, "startexpense", "--count", str(count)]
        started, output = supervisor.run("seed", command)
        self._say(output.strip() if started else f"The examples were not started: {output.strip()}")

    def _say(self, text: str) -> None:
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except OSError:  # the console is gone, and the children must still be stopped
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_ports(host: str, port: int, temporal_port: int, temporal_ui_port: int) -> str:
    """Return the numeric address of the host. Raises CommandError if a port cannot be used."""
    address = server.free_address(host, port, "--port")
    server.free_address(LOOPBACK, temporal_port, "--temporal-port")
    server.free_address(LOOPBACK, temporal_ui_port, "--temporal-ui-port")
    if len({port, temporal_port, temporal_ui_port}) < 3:
        raise CommandError("--port, --temporal-port and --temporal-ui-port must differ.")
    return address


def _publish_settings(
    temporal: DevServer, host: str, port: int, people: dict[str, dict[str, str]]
) -> str:
    """Give the addresses of this start, and the users as whom commands act, to the children and to
    commands in other terminals.

    Returns the address by which a client on this machine reaches the site.
    """
    name = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104
    if ":" in name:
        name = f"[{name}]"
    url = f"http://{name}:{port}"
    os.environ.setdefault("EXPENSES_SITE_URL", url)
    os.environ.setdefault("ALLOWED_HOSTS", f"localhost,127.0.0.1,[::1],{name}")
    # Not the access mode itself, which would open a deployment from this directory.
    os.environ["FAULT_INJECTION"] = str(settings.EXPENSES_PROTOCOL_ACCESS == "open")
    for role in ("employee", "approver"):
        os.environ[f"LOCAL_{role.upper()}"] = people[role]["username"]
    os.environ |= temporal.settings()
    installation.record(settings.DATA_DIR)
    return url


def _set_up(directory: Path) -> dict[str, dict[str, str]]:
    """Migrate the database, stock the example products and make the users.

    Returns their credentials by role.
    """
    # A pool has threads, and would try for half a minute to reach a server that is not there.
    connection.settings_dict["OPTIONS"].pop("pool", None)
    try:
        call_command("migrate", verbosity=0, interactive=False)
        stock_examples()
        return credentials.restore(directory / "credentials.json")
    except DatabaseError as error:
        raise CommandError(f"The database cannot be used: {error}") from error
    finally:
        connection.close()


def _start_children(
    supervisor: Supervisor,
    temporal: DevServer,
    directory: Path,
    address: str,
    port: int,
    worker_token: str,
) -> Child:
    """Start Temporal, the site, the relay and the worker; return the relay.

    The supervisor stops them in the opposite order.
    """
    supervisor.start(
        "temporal",
        temporal.command(directory),
        environment=temporal.environment,
        directory=installation.BASE_DIR,
    )
    site = _environment_without("EXPENSES_SITE_TOKEN")
    web = [*MANAGE, "web", f"--host={address}", f"--port={port}"]
    supervisor.start("web", web, environment=site)
    # The relay logs at INFO that it is ready.
    level = "DEBUG" if os.environ.get("LOG_LEVEL") == "DEBUG" else "INFO"
    relay = supervisor.start("relay", [*MANAGE, "relay"], environment=site | {"LOG_LEVEL": level})
    supervisor.start(
        "worker",
        [*MANAGE, "runworker"],
        # The worker's environment is complete: it need not open settings.env, which holds secrets.
        environment=_environment_without(*installation.SECRETS, "DATABASE_URL")
        | {"EXPENSES_SITE_TOKEN": worker_token, "EXPENSES_DATA_DIR": os.devnull},
    )
    return relay


def _environment_without(*names: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names}


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=3, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
