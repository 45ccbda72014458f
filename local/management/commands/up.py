"""`manage.py up`: the whole product on this machine, from nothing to ready (design, Processes)."""

import http.client
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection, transaction
from django.utils import timezone
from knox.crypto import create_token_string, hash_token
from knox.settings import CONSTANTS, knox_settings

from access import groups
from access.models import Token, password_fingerprint
from expensesite import server
from local import installation, temporal_ui
from local.supervisor import Supervisor
from orders.services import stock_examples
from worker.contracts import QUEUES

LOOPBACK: Final = "127.0.0.1"
# How long Temporal keeps a workflow after its end.
RETENTION: Final = "30d"
# One idle expense takes 25 ms with them and 200 ms without (design, Speed).
POLL_RATES: Final = {
    "history.transferProcessorMaxPollRPS": 2000,
    "history.timerProcessorMaxPollRPS": 2000,
    "history.transferProcessorMaxPollHostRPS": 4000,
}
# What Temporal gets of this process's environment.
SYSTEM_VARIABLES: Final = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR")
# Who is in credentials.json, and their group; None: a superuser.
GROUPS: Final = {
    "admin": None,
    "employee": groups.EMPLOYEE,
    "approver": groups.APPROVER,
    "finance": groups.FINANCE,
    "auditor": groups.AUDITOR,
    "operator": groups.OPERATOR,
    "worker": groups.WORKER,
}


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
            default=LOOPBACK,
            help="address that the site listens on (%(default)s); requests from other machines "
            "need a token, and the names they use go into ALLOWED_HOSTS",
        )
        for option, default, what in (
            ("--port", 8099, "the site"),
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
        temporal = _temporal_cli()
        address = server.free_address(host, port, "--port")
        server.free_address(LOOPBACK, temporal_port, "--temporal-port")
        server.free_address(LOOPBACK, temporal_ui_port, "--temporal-ui-port")
        if len({port, temporal_port, temporal_ui_port}) < 3:
            raise CommandError("--port, --temporal-port and --temporal-ui-port must differ.")

        name = _client_name(host)
        url = f"http://{name}:{port}"
        ui = f"http://{LOOPBACK}:{temporal_ui_port}"
        addresses = {
            "TEMPORAL_ADDRESS": f"{LOOPBACK}:{temporal_port}",
            "TEMPORAL_NAMESPACE": "default",
            # Whoever uses Temporal Cloud has a profile that would apply to this server as well.
            "TEMPORAL_CONFIG_FILE": os.devnull,
            "TEMPORAL_UI_URL": ui,
            "EXPENSES_SITE_URL": os.environ["EXPENSES_SITE_URL"] or url,
            "DATABASE_URL": os.environ["DATABASE_URL"],
            # Orders from another terminal are under the same rule.
            **{
                name: os.environ[name]
                for name in (
                    "ORDERS_APPROVAL_THRESHOLD",
                    "ORDERS_APPROVAL_SECONDS",
                    "ORDERS_SIGNAL_DECISIONS",
                    "ORDERS_SIGNAL_LIMIT",
                )
            },
        }
        installation.record(directory, addresses)
        os.environ.update(addresses)
        os.environ.setdefault("ALLOWED_HOSTS", f"localhost,127.0.0.1,[::1],{name}")

        processes = directory / "processes.json"
        processes.unlink(missing_ok=True)  # of a start that was killed

        self._say(f"Preparing the installation in {directory}")
        credentials = _set_up(directory)
        # The relay says at INFO that it is ready.
        log_level = "DEBUG" if os.environ.get("LOG_LEVEL") == "DEBUG" else "INFO"

        manage = [sys.executable, str(installation.BASE_DIR / "manage.py")]
        logs = directory / "logs"
        with Supervisor(
            logs=logs,
            signals=installation.stop_signals(),
            say=self._say,
            changed=lambda pids: installation.write_private(processes, json.dumps(pids)),
        ) as supervisor:
            self._say("Starting Temporal, the site, the relay and the worker")
            # They are stopped in the opposite order.
            supervisor.start(
                "temporal",
                _temporal_server(temporal, temporal_port, temporal_ui_port, directory),
                environment=_environment_of_others(),
                directory=installation.BASE_DIR,
            )
            site = _environment_without("EXPENSES_SITE_TOKEN")
            supervisor.start(
                "web",
                [*manage, "web", f"--host={address}", f"--port={port}"],
                environment=site,
            )
            relay = supervisor.start(
                "relay", [*manage, "relay"], environment=site | {"LOG_LEVEL": log_level}
            )
            supervisor.start(
                "worker",
                [*manage, "runworker"],
                # All that it needs is in its environment: it does not open settings.env, which
                # holds the secrets.
                environment=_environment_without(*installation.SECRETS, "DATABASE_URL")
                | {"EXPENSES_SITE_TOKEN": credentials["worker"]["token"]}
                | {"EXPENSES_DATA_DIR": os.devnull},
            )
            answering = {
                "temporal": lambda: _set_retention(temporal),
                "web": lambda: _is_ready(address, port),
                "relay": lambda: "Relay ready" in relay.output(),
                "worker": lambda: _is_polled(temporal),
            }
            if all(
                supervisor.wait(answers, what=f"{child}; its log is {logs / child}.log")
                for child, answers in answering.items()
            ):
                self._welcome(directory, url, ui, credentials["admin"]["username"])
                if seed:
                    self._seed(supervisor, [*manage, "startexpense", "--count", str(seed)])
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

    def _seed(self, supervisor: Supervisor, command: list[str]) -> None:
        started, output = supervisor.run("seed", command)
        self._say(output.strip() if started else f"The examples were not started: {output.strip()}")

    def _say(self, text: str) -> None:
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except OSError:  # the console is gone, and the children must still be stopped
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _temporal_cli() -> str:
    """The `temporal` of TEMPORAL_CLI_PATH, else the one beside this Python, else on the PATH."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    wanted = os.environ.get("TEMPORAL_CLI_PATH") or "temporal"
    found = shutil.which(wanted, path=os.pathsep.join(places))
    if found is None:
        raise CommandError(
            f"The Temporal CLI ({wanted}) is not there. Run `make setup`, or install it "
            "(https://docs.temporal.io/cli) and put it on the PATH or into TEMPORAL_CLI_PATH."
        )
    return found


def _client_name(host: str) -> str:
    """What a client on this machine calls the host, as it stands in a URL."""
    name = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{name}]" if ":" in name else name


def _environment_without(*names: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names}


def _environment_of_others() -> dict[str, str]:
    """What a program gets that is not ours: nothing of the product's settings."""
    return {name: os.environ[name] for name in SYSTEM_VARIABLES if name in os.environ} | {
        "TEMPORAL_CONFIG_FILE": os.devnull
    }


def _temporal_server(temporal: str, port: int, ui_port: int, directory: Path) -> list[str]:
    # On Linux each address in 127.0.0.0/8 is the machine's own. No page finds one of 16 million.
    octets = [str(secrets.randbelow(254) + 1) for _ in range(3)]
    ui_host = ".".join(["127", *octets]) if sys.platform == "linux" else LOOPBACK
    with socket.create_server((ui_host, 0)) as probe:
        hidden = (ui_host, probe.getsockname()[1])
    # Its HTTP API answers under this name only, so a page cannot ask it either.
    api_host = f"{secrets.token_hex(16)}.invalid"
    server = [
        temporal,
        "server",
        "start-dev",
        "--log-level=error",
        f"--ip={LOOPBACK}",
        f"--port={port}",
        f"--ui-ip={hidden[0]}",
        f"--ui-port={hidden[1]}",
        f'--dynamic-config-value=frontend.httpAllowedHosts=["{api_host}"]',
        # It takes a file name as part of a URL: `#` and `?` in a path lose the data.
        "--db-filename=temporal.db",
        "--sqlite-pragma=journal_mode=WAL",
        *(f"--dynamic-config-value={key}={rate}" for key, rate in POLL_RATES.items()),
    ]
    return temporal_ui.command(ui_port, hidden, str(directory), server)


def _set_up(directory: Path) -> dict[str, dict[str, str]]:
    """Migrate the database, stock the example products and make the users; their credentials, by
    role."""
    # A pool has threads, and would try for half a minute to reach a server that is not there.
    connection.settings_dict["OPTIONS"].pop("pool", None)
    try:
        call_command("migrate", verbosity=0, interactive=False)
        stock_examples()
        return _make_users(directory / "credentials.json")
    except DatabaseError as error:
        raise CommandError(f"The database cannot be used: {error}") from error
    finally:
        connection.close()


def _make_users(path: Path) -> dict[str, dict[str, str]]:
    """Make the users and tokens of the credentials file that the database lacks.

    The file is completed where it lacks a user, or a valid token of the worker, and not changed
    otherwise; its content is returned. Raises CommandError where it cannot be read.
    """
    made = {role: _new_credentials(role) for role in GROUPS}
    try:
        stored = json.loads(path.read_text()) if path.exists() else {}
        credentials = made | stored
        sound = all(credentials[role].keys() == made[role].keys() for role in GROUPS)
    except (ValueError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise CommandError(f"{path} cannot be read. Restore it, or delete it to have new users.")
    if _has_ended(credentials["worker"]["token"]):
        credentials["worker"] = made["worker"]
    if credentials != stored:
        installation.write_private(path, json.dumps(credentials, indent=2) + "\n")
    with transaction.atomic():
        for role, group in GROUPS.items():
            _restore_user(group, **credentials[role])
    return credentials


def _new_credentials(role: str) -> dict[str, str]:
    token = {"token": create_token_string()}
    if role == "worker":
        return token
    # A user of that name whom this installation did not make keeps their password.
    taken = User.objects.filter(username=role).exists()
    username = f"{role}-{secrets.token_hex(2)}" if taken else role
    return {"username": username, "password": secrets.token_urlsafe(12)} | token


def _restore_user(
    group: str | None, *, token: str, username: str = "worker", password: str | None = None
) -> None:
    """Make the user and the token if the user is missing; otherwise prolong the token.

    A person's token that somebody revoked, or that a password change ended, stays so.
    """
    user = User.objects.filter(username=username).first()
    if missing := user is None:
        user = User.objects.create_user(
            username, password=password, is_staff=password is not None, is_superuser=group is None
        )
        if group is not None:
            user.groups.add(Group.objects.get_or_create(name=group)[0])
    expiry = None if group == groups.WORKER else timezone.now() + knox_settings.TOKEN_TTL
    prolonged = Token.objects.filter(digest=hash_token(token)).update(expiry=expiry)
    if not prolonged and (missing or group == groups.WORKER):
        # As knox stores a token that it makes itself.
        Token(
            digest=hash_token(token),
            token_key=token[: CONSTANTS.TOKEN_KEY_LENGTH],
            user=user,
            expiry=expiry,
            password_fingerprint=password_fingerprint(user),
            made_for_service=group == groups.WORKER,
        ).save()


def _has_ended(token: str) -> bool:
    """Whether somebody revoked or replaced this token of the worker."""
    valid = Token.objects.filter(digest=hash_token(token), expiry=None)
    return User.objects.filter(username="worker").exists() and not valid.exists()


def _set_retention(temporal: str) -> bool:
    """Whether Temporal answers; it then keeps closed workflows for :data:`RETENTION`.

    `start-dev` makes its namespace with one day and has no option for it.
    """
    return _ask(temporal, "operator", "namespace", "update", "--retention", RETENTION) is not None


def _is_polled(temporal: str) -> bool:
    """Whether a worker asks Temporal for workflow tasks and for activities, on each queue.

    Temporal knows the pollers of this run of the server only.
    """
    return all(_polled_for(temporal, queue) >= {"workflow", "activity"} for queue in QUEUES)


def _polled_for(temporal: str, queue: str) -> set[str]:
    answer = _ask(temporal, "task-queue", "describe", "--task-queue", queue, "-o", "json")
    pollers = json.loads(answer)["pollers"] if answer else None
    return {poller["taskQueueType"] for poller in pollers or ()}


def _ask(temporal: str, *command: str) -> str | None:
    """The CLI's answer from this start's server; None where it failed."""
    answer = subprocess.run(
        [temporal, *command, "--command-timeout", "3s"],
        env=_environment_of_others()
        | {name: os.environ[name] for name in ("TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE")},
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout if answer.returncode == 0 else None


def _is_ready(address: str, port: int) -> bool:
    site = http.client.HTTPConnection(address, port, timeout=3)
    try:
        site.request("GET", "/readyz")
        return site.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        site.close()
