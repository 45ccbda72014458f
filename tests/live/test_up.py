"""`manage.py up` as a person runs it: a real subprocess and real servers (E13)."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from local.supervisor import Supervisor
from tests.servers import eventually, free_port
from worker import contracts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ROOT = Path(__file__).resolve().parents[2]
MANAGE = ROOT / "manage.py"
TEMPORAL = Path(sys.executable).parent / "temporal"
# `up` in which a child may take an hour to stop.
PATIENT = """
import runpy, sys
from local import supervisor
supervisor.STOP_GRACE = 3600.0
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
OPTIONS = ("--port", "--temporal-port", "--temporal-ui-port")
CHILDREN = ("temporal", "web", "worker", "relay")


def environment(**more: str) -> dict[str, str]:
    """A person's environment, without the suite's own settings."""
    return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | more


def processes_of(sessions: set[int]) -> dict[int, str]:
    """The command lines of the processes in these sessions that have not ended."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[3]) in sessions and after_name[0] != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError, IndexError):
            continue
    return found


@pytest.fixture
def browser() -> Iterator[Browser]:
    """Chromium, for which the name evil.example leads to this machine."""
    found = [path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))]
    if not found:
        missing = "no Chromium (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-background-networking",
        "--host-resolver-rules=MAP evil.example 127.0.0.1",
    ]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found[0], args=arguments)
        yield chromium
        chromium.close()


class Up:
    """One data directory and the `up` that runs on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = [free_port() for _ in range(3)]
        self.url = f"http://127.0.0.1:{self.ports[0]}"
        self.environment = environment(EXPENSES_DATA_DIR=str(directory))
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=5)
        self.console = directory.with_name(f"{directory.name}.console")

    def command(self, *options: str) -> list[str]:
        ports = [f"{name}={port}" for name, port in zip(OPTIONS, self.ports, strict=True)]
        data_dir = f"--data-dir={self.directory}"
        return [sys.executable, str(MANAGE), "up", *ports, data_dir, *options]

    def start(self, *options: str, under: Sequence[str] = (), **more: str) -> None:
        """Return when `up` has printed `ready <url>`; `under` is a command that runs it."""
        with self.console.open("w") as console:
            self.process = subprocess.Popen(
                [*under, *self.command(*options)],
                env=environment(**more),
                stdout=console,
                stderr=subprocess.STDOUT,
                cwd="/",
            )
        eventually(lambda: "\nready " in self.said() or self.process.poll() is not None, 60)
        assert f"\nready {self.url}\n" in self.said(), self.said()

    def said(self) -> str:
        return self.console.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop `up`, which must end in order and leave nothing behind."""
        sessions = set(self.pids().values())
        self.process.send_signal(number)
        assert self.process.wait(timeout=45) == 0, self.said()
        assert self.said().splitlines()[-1] == "Stopped"
        eventually(lambda: processes_of(sessions) == {})
        assert not (self.directory / "processes.json").exists()

    def pids(self) -> dict[str, int]:
        pids: dict[str, int] = json.loads((self.directory / "processes.json").read_text())
        return pids

    def credentials(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = json.loads(
            (self.directory / "credentials.json").read_text()
        )
        return found

    def log(self, name: str) -> str:
        return (self.directory / "logs" / f"{name}.log").read_text()

    def manage(self, *arguments: str) -> "subprocess.Popen[str]":
        """Run a command in another terminal, which knows the data directory and nothing else."""
        return subprocess.Popen(
            [sys.executable, str(MANAGE), *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A suite in the background ignores it, and its children would.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    def temporal(self, *arguments: str) -> Any:
        answer = subprocess.run(
            [TEMPORAL, *arguments, "--address", f"127.0.0.1:{self.ports[1]}", "-o", "json"],
            env=environment(),
            capture_output=True,
            check=False,
        )
        return json.loads(answer.stdout) if answer.returncode == 0 else None

    def get(self, path: str, **params: str) -> str:
        """The body, or the name of the exception if there is no answer."""
        try:
            return self.http.get(path, params=params).text
        except httpx.TransportError as error:
            return type(error).__name__


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("installation") / "a data#dir")
    try:
        running.start()
        yield running
    finally:
        running.process.terminate()
        running.process.wait()


def test_the_first_start_makes_the_files_of_an_installation(up: Up) -> None:
    """E13, X8: settings, credentials and process ids; only the owner can read secrets."""
    for name in ("settings.env", "credentials.json"):
        assert stat.S_IMODE((up.directory / name).stat().st_mode) == 0o600
    credentials = up.credentials()
    people = {"admin", "employee", "approver", "finance", "auditor", "operator"}
    assert credentials.keys() == people | {"worker"}
    assert credentials["worker"].keys() == {"token"}
    for role in people:
        assert credentials[role].keys() == {"username", "password", "token"}
        assert credentials[role]["username"] == role

    assert up.pids().keys() == set(CHILDREN)
    for pid in up.pids().values():
        assert os.getsid(pid) == pid
    settings = (up.directory / "settings.env").read_text()
    for name in ("SECRET_KEY", "EXPENSES_FERNET_KEYS"):
        assert re.search(rf"^{name}='.{{40,}}'$", settings, re.MULTILINE)
    # Commands in other terminals act as these users.
    for role in ("employee", "approver"):
        assert f"LOCAL_{role.upper()}='{role}'\n" in settings
    # Nobody chose them: commands in other terminals have the same defaults as the site.
    assert "ORDERS_" not in settings
    # A stray `runserver` or a deployment from this directory must not be open to its machine.
    assert "EXPENSES_PROTOCOL_ACCESS" not in settings


def test_console_says_where_everything_is(up: Up) -> None:
    """E13: addresses, the sign-in, one next step; no colours in a file."""
    assert f"{up.url}/list" in up.said()
    assert f"{up.url}/admin/" in up.said()
    assert f"http://127.0.0.1:{up.ports[2]}" in up.said()
    assert str(up.directory / "credentials.json") in up.said()
    assert "startexpense" in up.said()
    assert "\x1b" not in up.said()


def test_users_sign_in_with_password_and_token(up: Up) -> None:
    """X8: the file contains the passwords and tokens of the database."""
    for role, entry in up.credentials().items():
        if role != "worker":
            with httpx.Client(base_url=up.url, trust_env=False) as browser:
                browser.get("/admin/login/")
                signed_in = browser.post(
                    "/admin/login/",
                    data={k: entry[k] for k in ("username", "password")}
                    | {"csrfmiddlewaretoken": browser.cookies["csrftoken"]},
                )
                assert signed_in.status_code == 302, role
    rest = {"Authorization": f"Bearer {up.credentials()['approver']['token']}"}
    assert up.http.get("/api/v1/expenses/", headers=rest).status_code == 200
    assert up.http.get("/api/v1/expenses/").status_code == 401


def test_temporal_keeps_histories_for_30_days(up: Up) -> None:
    """W7: the dev server's default is one day."""
    namespace = up.temporal("operator", "namespace", "describe", "--namespace", "default")
    assert namespace["config"]["workflowExecutionRetentionTtl"] == "2592000s"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(
            ((f"{option}=PORT",), f"Port PORT is in use. Choose another with {option}.")
            for option in OPTIONS
        ),
        (("--port=0",), "--port takes a port from 1 to 65535."),
        (("--temporal-ui-port=65536",), "--temporal-ui-port takes a port from 1 to 65535."),
        (
            ("--port=2999", "--temporal-port=2999"),
            "--port, --temporal-port and --temporal-ui-port must differ.",
        ),
        (("--seed=-1",), "--seed takes a whole number from 0."),
        (("--host=host.invalid",), "--host host.invalid: "),
        (("--data-dir=/dev/null",), "The data directory /dev/null cannot be used: "),
    ],
)
def test_a_wrong_start_is_refused_in_one_sentence(
    options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    """E13: a port in use is named with its option. Nothing starts."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        refused = subprocess.run(
            Up(tmp_path).command(*(option.replace("PORT", port) for option in options)),
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert refused.returncode == 1
    assert refused.stderr.removeprefix("CommandError: ").startswith(said.replace("PORT", port))
    assert refused.stderr.count("\n") == 1
    assert refused.stdout == ""
    assert not (tmp_path / "processes.json").exists()


def test_a_second_up_on_a_data_directory_is_refused(up: Up) -> None:
    """E13: two would share a database file of Temporal."""
    ports = [
        f"{name}={port}"
        for name, port in zip(OPTIONS, [free_port() for _ in range(3)], strict=True)
    ]
    second = up.manage("up", *ports)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert said.startswith("CommandError: Another `manage.py up` runs on ")
    assert up.get("/status", id="x") == "ERROR:INVALID_ID"


def test_secrets_go_only_where_they_are_needed(up: Up) -> None:
    """X8: Temporal gets none of the product's settings. The worker alone gets its token, and
    neither the site's secrets nor its database."""
    secret = {"SECRET_KEY", "EXPENSES_FERNET_KEYS"}
    # Python sets LC_CTYPE where a shell sets no locale.
    system = {"PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"}
    system.add("TEMPORAL_CONFIG_FILE")
    names = {
        child: [
            {
                variable.partition("=")[0]
                for variable in Path(f"/proc/{pid}/environ").read_text().split("\0")
                if variable
            }
            for pid in processes_of({session})
        ]
        for child, session in up.pids().items()
    }
    assert {child: len(found) for child, found in names.items()} == {
        "temporal": 2,
        "web": 3,
        "relay": 1,
        "worker": 1,
    }
    assert set().union(*names["temporal"]) <= system
    for found in names["worker"]:
        assert "EXPENSES_SITE_TOKEN" in found
        assert not found & {*secret, "DATABASE_URL"}
    for found in names["web"] + names["relay"]:
        assert "EXPENSES_SITE_TOKEN" not in found
        assert found >= secret


def listening(session: int) -> set[tuple[str, int]]:
    """The IPv4 addresses that the processes of a session listen on."""
    sockets = {
        link.readlink().name
        for pid in processes_of({session})
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if link.is_symlink()
    }
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
            address, port = fields[1].split(":")
            host = socket.inet_ntoa(bytes.fromhex(address)[::-1])
            found.add((host, int(port, 16)))
    return found


def test_no_page_reaches_temporal(up: Up) -> None:
    """X8: a page that rebinds its name to 127.0.0.1 gets nothing from any port of Temporal's
    processes. Other pages reach only the UI, and only from the UI's own origin."""
    ui = up.ports[2]
    asked = "/api/v1/namespaces"
    found = listening(up.pids()["temporal"])
    assert {port for host, port in found if host == "127.0.0.1"} >= {up.ports[1], ui}
    [hidden] = [host for host, _ in found if host != "127.0.0.1"]
    assert hidden.startswith("127.")

    def status(port: int, **headers: str) -> int | None:
        with suppress(httpx.TransportError):
            url = f"http://127.0.0.1:{port}{asked}"
            return httpx.get(url, headers=headers, trust_env=False, timeout=5).status_code
        return None

    named = {port: status(port) for host, port in found if host == "127.0.0.1"}
    assert named.pop(ui) == 200
    # One is the HTTP API, one has metrics, the others speak gRPC alone.
    assert sorted(code for code in named.values() if code) == [403, 404]
    rebound = [status(port, Host=f"evil.example:{port}") for _, port in found if port]
    assert 200 not in rebound
    assert status(ui, Host=f"evil.example:{ui}") == 403
    assert status(ui, Origin="http://evil.example") == 403
    assert status(ui, Origin=up.url) == 403
    assert status(ui, Origin=f"http://127.0.0.1:{ui}") == 200
    for method in ("POST", "PUT", "DELETE"):
        signal_url = f"http://127.0.0.1:{ui}/api/v1/namespaces/default/workflows/x/signal/y"
        refused = httpx.request(method, signal_url, headers={"Origin": up.url}, trust_env=False)
        assert refused.status_code == 403


def test_only_pages_of_the_temporal_ui_reach_it(up: Up, browser: Browser) -> None:
    """X8: the UI lists a workflow; a page under a rebound name is refused and cannot post."""
    ui = f"http://127.0.0.1:{up.ports[2]}"
    assert up.manage("startexpense", "in-the-ui").wait(timeout=60) == 0
    page = browser.new_page()
    page.goto(f"{ui}/namespaces/default/workflows")
    expect(page.get_by_text("expense_in-the-ui").first).to_be_visible(timeout=30_000)
    rebound = page.goto(f"http://evil.example:{up.ports[2]}/")
    assert rebound is not None
    assert rebound.status == 403
    assert "_csrf" not in {cookie.get("name") for cookie in page.context.cookies(rebound.url)}
    with page.expect_response(f"{ui}/api/**") as answered:
        page.evaluate(
            "url => fetch(url, {method: 'POST', mode: 'no-cors', body: '{}'}).catch(() => 0)",
            f"{ui}/api/v1/namespaces/default/workflows/x/signal/y",
        )
    assert answered.value.status == 403
    page.close()


def test_an_endless_request_to_the_ui_is_refused(up: Up) -> None:
    """X11: and the UI still answers while many connections are idle."""
    with ExitStack() as idle:
        for _ in range(50):
            idle.enter_context(socket.create_connection(("127.0.0.1", up.ports[2])))
        endless = idle.enter_context(socket.create_connection(("127.0.0.1", up.ports[2])))
        endless.settimeout(10)
        endless.sendall(b"GET / HTTP/1.1\r\nX: " + 40_000 * b"x")
        assert endless.recv(100).startswith(b"HTTP/1.1 431 ")
        answer = httpx.get(f"http://127.0.0.1:{up.ports[2]}/", trust_env=False)
    assert answer.status_code == 200
    assert "<html" in answer.text


@pytest.mark.parametrize("name", CHILDREN)
def test_a_killed_child_is_started_again(up: Up, name: str) -> None:
    """X1: its whole process group is killed first, and the product works again."""
    before = up.pids()
    os.kill(before[name], signal.SIGKILL)
    eventually(lambda: up.pids()[name] != before[name])
    eventually(lambda: processes_of({before[name]}) == {})
    assert {k: v for k, v in up.pids().items() if k != name} == {
        k: v for k, v in before.items() if k != name
    }

    # The whole way through all four: a workflow reaches the site, and its decision reaches it.
    eventually(lambda: up.temporal("operator", "namespace", "describe", "--namespace", "default"))
    starting = up.manage("startexpense", f"after-{name}")
    said, _ = starting.communicate(timeout=60)
    assert starting.returncode == 0, said
    eventually(lambda: up.get("/status", id=f"after-{name}") == "CREATED")
    assert up.get("/action", type="approve", id=f"after-{name}", is_api_call="true") == "SUCCEED"
    eventually(lambda: up.get("/status", id=f"after-{name}") == "COMPLETED")


def test_a_plain_client_creates_and_decides(up: Up) -> None:
    """E3-E6: a local installation answers the clients of the sample without a token."""
    assert up.get("/create", id="plain-1", is_api_call="true") == "SUCCEED"
    assert up.get("/create", id="plain-1", is_api_call="true") == "ERROR:ID_ALREADY_EXISTS"
    assert up.get("/action", type="reject", id="plain-1", is_api_call="true") == "SUCCEED"
    assert up.get("/status", id="plain-1") == "REJECTED"


def test_the_next_step_that_up_prints_works(up: Up) -> None:
    """E13, W2: `startexpense --wait` in another terminal ends with COMPLETED once approved."""
    starting = up.manage("startexpense", "lunch-2", "--wait")
    eventually(lambda: up.get("/status", id="lunch-2") == "CREATED")
    assert up.get("/action", type="approve", id="lunch-2", is_api_call="true") == "SUCCEED"
    said, _ = starting.communicate(timeout=60)
    assert (starting.returncode, said.splitlines()[-1]) == (0, "COMPLETED"), said


def test_every_command_of_the_documents_works(up: Up) -> None:
    """E13: README and guides, unchanged and in their order."""
    commands = [
        line
        for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        for block in re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.M | re.S)
        for line in block.splitlines()
    ]
    # `make up` runs already, and this test is part of the others.
    makes = [command for command in commands if command.startswith("make ")]
    assert makes == ["make up", "make test", "make test-all"]
    others = [command for command in commands if command not in makes]
    assert len(others) >= 5

    def works(command: str) -> bool:
        program, *arguments = shlex.split(command.replace("http://127.0.0.1:8099", up.url))
        if program == "curl":
            return "ERROR" not in curl(arguments).raise_for_status().text
        assert program == "./manage.py"
        running = up.manage(*arguments)
        said, _ = running.communicate(timeout=60)
        assert running.returncode == 0, said
        return True

    for command in others:
        eventually(lambda command=command: works(command))
    eventually(lambda: up.get("/status", id="lunch-1") == "COMPLETED")


def curl(arguments: list[str]) -> httpx.Response:
    """What `curl` does with the arguments that the documents give it."""
    parser = ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-X", default="GET")
    parser.add_argument("-H", type=lambda header: header.split(": ", 1), action="append")
    parser.add_argument("-d")
    given = parser.parse_args(arguments)
    with httpx.Client(trust_env=False) as http:
        return http.request(given.X, given.url, headers=given.H, content=given.d)


def test_decisions_made_while_temporal_is_down_reach_it(up: Up) -> None:
    """X1, E9: Temporal is killed between decisions; every workflow completes."""
    ids = [f"down-{number}" for number in range(1, 9)]
    assert up.manage("startexpense", "down", "--count", "8").wait(timeout=60) == 0
    eventually(lambda: all(up.get("/status", id=i) == "CREATED" for i in ids))
    for number, expense_id in enumerate(ids):
        if number == 4:
            os.kill(up.pids()["temporal"], signal.SIGKILL)
        assert up.get("/action", type="approve", id=expense_id, is_api_call="true") == "SUCCEED"
    eventually(lambda: all(up.get("/status", id=i) == "COMPLETED" for i in ids), seconds=60)


def test_second_start_keeps_everything(up: Up) -> None:
    """W7: a stop leaves no process; a start finds all as it was."""
    assert up.manage("startexpense", "kept").wait(timeout=60) == 0
    eventually(lambda: up.get("/status", id="kept") == "CREATED")
    names = ("credentials.json", "settings.env")
    before = [(up.directory / name).read_text() for name in names]

    up.stop(signal.SIGINT)
    up.start()
    assert [(up.directory / name).read_text() for name in names] == before
    assert up.get("/action", type="approve", id="kept", is_api_call="true") == "SUCCEED"
    eventually(lambda: up.get("/status", id="kept") == "COMPLETED")


def test_another_database_and_site_address_are_used(up: Up) -> None:
    """E13: DATABASE_URL and EXPENSES_SITE_URL pass through. Later starts do not change the
    credentials file; its users are made in the other database."""
    before = up.credentials()
    site = f"http://localhost:{up.ports[0]}"
    database = quote(str(up.directory / "another.sqlite3"))
    up.stop()
    up.start("--seed=2", DATABASE_URL=f"sqlite:///{database}", EXPENSES_SITE_URL=site)
    assert up.credentials() == before
    queues = ", ".join(contracts.QUEUES)
    assert f"Worker ready: queues {queues}; site {site}\n" in up.log("worker")
    rest = {"Authorization": f"Bearer {before['admin']['token']}"}

    def expenses() -> list[Any]:
        page = up.http.get("/api/v1/expenses/", headers=rest)
        assert page.status_code == 200
        found: list[Any] = page.json()["results"]
        return found

    eventually(lambda: len(expenses()) == 2)
    # Another terminal sees the database in use, with no variables set.
    said, _ = up.manage("createtoken", "approver").communicate(timeout=60)
    rest = {"Authorization": f"Bearer {said.strip()}"}
    assert len(expenses()) == 2


def test_children_die_with_a_killed_up(up: Up) -> None:
    """E13: the web processes and the proxy of the UI too."""
    sessions = set(up.pids().values())
    assert len(processes_of(sessions)) == 7
    up.process.kill()
    up.process.wait()
    eventually(lambda: processes_of(sessions) == {})


def test_up_stops_with_a_killed_make(up: Up) -> None:
    """E13: `make` passes no SIGKILL on, and `up` would go on unseen."""
    up.start(under=["sh", "-c", 'MAKELEVEL=1 "$@" & wait', "make"])
    sessions = set(up.pids().values())
    up.process.kill()
    up.process.wait()
    eventually(lambda: not (up.directory / "processes.json").exists())
    eventually(lambda: processes_of(sessions) == {})


def test_ctrl_c_stops_an_early_up_and_twice_kills(tmp_path: Path) -> None:
    """E13: Ctrl-C works before `up` is ready, and a second one waits for no child."""
    early = Up(tmp_path)
    python, *command = early.command()
    process = subprocess.Popen(
        [python, "-c", PATIENT, *command],
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: (tmp_path / "processes.json").exists() and len(early.pids()) == 4)
        sessions = set(early.pids().values())
        # It would be waited for.
        os.kill(early.pids()["temporal"], signal.SIGSTOP)
        worker = early.pids()["worker"]
        process.send_signal(signal.SIGINT)
        # The worker is the first to be stopped.
        eventually(lambda: processes_of({worker}) == {})
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=40) == 0
    finally:
        process.kill()
    eventually(lambda: processes_of(sessions) == {})


def test_child_that_keeps_dying_is_given_time(tmp_path: Path) -> None:
    """E13: the console shows the end of its log; its process group is killed first."""
    said: list[str] = []
    pids: list[int] = []
    with Supervisor(
        logs=tmp_path,
        signals=[],
        say=said.append,
        changed=lambda by_name: pids.append(by_name["broken"]),
    ) as supervisor:
        supervisor.start("broken", ["sh", "-c", "sleep 60 & echo no such table; exit 3"])
        assert supervisor.wait(lambda: len(said) == 2)
    assert said == [
        f"broken ended with exit code 3; it is started again in {pause} s. Its log ends:\n"
        "    no such table"
        for pause in ("0.5", "1")
    ]
    assert len(pids) == 2
    eventually(lambda: processes_of(set(pids)) == {})
