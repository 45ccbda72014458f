"""`manage.py web` with clients that send half a request, too much, or something odd (X11)."""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.servers import eventually, free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="epoll")

ROOT = Path(__file__).resolve().parents[2]
# The same command with shorter times and fewer connections.
HURRIED = """
import sys
from expensesite import server
server.REQUEST_SECONDS, server.MOST_CONNECTIONS = 1.0, 10
sys.argv[0] = "manage.py"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
LONG_ANSWERS = """
import sys
from expensesite import server
def answer(environ, start_response):
    start_response("200 OK", [])
    return [20_000_000 * b"x"]
port = int(sys.argv[2].removeprefix("--port="))
server.serve(answer, host="127.0.0.1", port=port, processes=1, threads=2, stop=20)
"""
KEEP_ALIVE = b"Connection: keep-alive\r\n"
MEGABYTE = 1_000_000
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
CSS = b"/static/unfold/css/styles.css"
OK = b'{"status": "ok"}'


class Site:
    def __init__(self, port: int, process: "subprocess.Popen[bytes]") -> None:
        self.port = port
        self.process = process
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def seconds(self, path: str, expected: str) -> float:
        """Return the median time of an answer, each over a new connection."""
        taken = []
        for _ in range(5):
            began = time.monotonic()
            answer = httpx.get(f"{self.http.base_url}{path}", trust_env=False, timeout=20)
            taken.append(time.monotonic() - began)
            assert expected in answer.text
        return statistics.median(taken)

    def is_up(self) -> bool:
        with suppress(httpx.TransportError):
            return self.http.get("/health").status_code == 200
        return False


@contextmanager
def serving(folder: Path, command: Sequence[str], *options: str) -> Iterator[Site]:
    port = free_port()
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {
        "SECRET_KEY": "x" * 50,
        "EXPENSES_FERNET_KEYS": os.environ["EXPENSES_FERNET_KEYS"],
        "DJANGO_SETTINGS_MODULE": "expensesite.settings",
        "EXPENSES_DATA_DIR": str(folder),
        "EXPENSES_PROTOCOL_ACCESS": "open",
        # Nothing listens at this port.
        "TEMPORAL_ADDRESS": "127.0.0.1:1",
        "WEB_THREADS": "4",
    }
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "-v0"], env=environment, cwd=ROOT, check=True
    )
    process = subprocess.Popen(
        [sys.executable, *command, "web", f"--port={port}", *options], env=environment, cwd=ROOT
    )
    site = Site(port, process)
    try:
        eventually(site.is_up)
        yield site
    finally:
        site.http.close()
        process.terminate()
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(tmp_path_factory.mktemp("site"), ["manage.py"]) as running:
        yield running


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("hurried")
    with serving(folder, ["-c", HURRIED], "--processes=1") as running:
        yield running


def received(client: socket.socket, until: bytes = b"") -> bytes:
    """Read until `until` has arrived, or until the site closes the connection."""
    answer = b""
    with suppress(ConnectionResetError):
        while not (until and until in answer) and (data := client.recv(65_536)):
            answer += data
    return answer


@pytest.mark.parametrize(
    "half",
    [
        b"GET /health HTTP/1.1\r\nHost: local",
        b"POST /admin/login/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        + 500 * b"x",
        b"POST /api/v1/expenses/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3e8\r\n" + 500 * b"x",
    ],
    ids=["header", "body", "chunk"],
)
def test_half_requests_cost_no_thread(site: Site, half: bytes) -> None:
    """X11: beside 200 sockets with half a request, a probe and a decision take under 0.5 s."""
    with ExitStack() as open_sockets:
        for _ in range(200):
            open_sockets.enter_context(site.connect()).sendall(half)
        assert site.seconds("/health", "ok") < 0.5
        expense = f"beside-{len(half)}"
        assert site.seconds(f"/create?id={expense}&is_api_call=true", "") < 0.5
        approve = f"/action?type=approve&id={expense}&is_api_call=true"
        assert site.seconds(approve, "SUCCEED") < 0.5


def test_clients_that_do_not_read_cost_no_thread(site: Site) -> None:
    """X11: answers that a client does not read wait outside of the threads, and arrive whole."""
    size = len(site.http.get(CSS.decode(), headers={"Accept-Encoding": "identity"}).content)
    assert size > 100_000
    request = HEALTH.replace(b"/health", CSS)
    with ExitStack() as open_sockets:
        clients = []
        for _ in range(20):
            client = open_sockets.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 262_144)
            client.connect(("127.0.0.1", site.port))
            client.sendall(
                40 * request + request.replace(b"localhost", b"localhost\r\nConnection: close")
            )
            clients.append(client)
        assert site.seconds("/health", "ok") < 0.5
        answer = received(clients[0])
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 41
    assert len(answer) > 41 * size


LOGIN = b"POST /admin/login/ HTTP/1.1\r\nHost: localhost\r\n"
MULTIPART = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'


@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n"], ids=["", "expect"])
@pytest.mark.parametrize("kind", ["length", "chunked", "multipart"])
def test_large_body_is_refused_early(site: Site, kind: str, expects: bytes) -> None:
    """X11: of 200 MB the site reads a few and answers 413. The next request is served."""
    head, first, block = {
        "length": (b"Content-Length: 200000000\r\n", b"", MEGABYTE * b"x"),
        "multipart": (
            b"Content-Length: 200000000\r\nContent-Type: multipart/form-data; boundary=b\r\n",
            MULTIPART,
            MEGABYTE * b"x",
        ),
        "chunked": (
            b"Transfer-Encoding: chunked\r\n",
            b"",
            b"%x\r\n" % MEGABYTE + MEGABYTE * b"x" + b"\r\n",
        ),
    }[kind]
    taken = 0
    with site.connect() as client:
        client.sendall(LOGIN + expects + head + b"\r\n" + first)
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(200):
                client.sendall(block)
                taken += len(block)
        answer = received(client).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 Request Entity Too Large\r\n")
    assert taken < 32 * MEGABYTE
    assert site.http.get("/health").status_code == 200


def test_large_header_is_refused(site: Site) -> None:
    """X11: a header that does not end is refused with 431."""
    with site.connect() as client:
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(2000):
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + 10_000 * b"x")
        assert received(client).startswith(b"HTTP/1.0 431 ")


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
    ],
)
def test_malformed_request_is_refused(site: Site, text: bytes) -> None:
    """X11: the answer is 400, and the connection ends."""
    with site.connect() as client:
        client.sendall(text)
        assert received(client).split(b" ", 2)[1] == b"400"


@pytest.mark.parametrize("separately", [False, True])
@pytest.mark.parametrize(
    "lengths",
    [
        b"HTTP/1.1\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        b"HTTP/1.1\r\nTransfer-Encoding:\r\nContent-Length: 6\r\n",
        b"HTTP/1.1\r\nTransfer-Encoding:\r\n",
        b"HTTP/1.0\r\n%sTransfer-Encoding: chunked\r\nContent-Length: 3\r\n" % KEEP_ALIVE,
        b"HTTP/1.0\r\n%sTransfer-Encoding: chunked\r\n" % KEEP_ALIVE,
    ],
    ids=["both", "empty-both", "empty", "old-both", "old"],
)
def test_two_lengths_of_one_body_are_refused(site: Site, lengths: bytes, separately: bool) -> None:
    """X11: a proxy that uses the other length would see another next request."""
    head = b"POST /orders " + lengths + b"Host: localhost\r\n\r\n"
    with site.connect() as client:
        if separately:
            client.sendall(head)
            client.sendall(b"0\r\n\r\n" + HEALTH)
        else:
            client.sendall(head + b"0\r\n\r\n" + HEALTH)
        answer = received(client)
    assert answer.split(b" ", 2)[1] == b"400"
    assert answer.count(b"\r\nContent-Length: ") == 1


def test_client_that_sends_all_before_it_reads_sees_the_refusal(site: Site) -> None:
    """X11: the site reads a body slightly over the limit, so that no reset hides the 413."""
    answer = site.http.post("/admin/login/", content=5 * MEGABYTE * b"x")
    assert answer.status_code == 413


def test_body_that_nobody_reads_is_not_the_next_request(site: Site) -> None:
    """X11: the body of a request to an unknown page is not taken for a request."""
    smuggled = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for framing in (
        b"Content-Length: %d\r\n\r\n%s" % (len(smuggled), smuggled),
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(smuggled), smuggled),
    ):
        with site.connect() as client:
            client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\n" + framing)
            client.sendall(HEALTH.replace(b"localhost", b"localhost\r\nConnection: close"))
            answer = received(client)
        assert answer.count(b"HTTP/1.1 ") == 2
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert answer.count(OK) == 1


def test_answer_to_head_has_no_body(site: Site) -> None:
    """X6: the answer states the length, and the next answer on the connection is whole."""
    heads = b"".join(HEALTH.replace(b"GET /health", b"HEAD " + path) for path in (b"/health", CSS))
    with site.connect() as client:
        client.sendall(heads + HEALTH)
        answer = received(client, until=OK)
    first, second, third, body = answer.split(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(OK) in first
    assert all(part.startswith(b"HTTP/1.1 200 OK\r\n") for part in (first, second, third))
    assert body == OK


def test_requests_in_one_packet_are_answered_in_order(site: Site) -> None:
    """E11: pipelined requests get their answers in order."""
    status = b"GET /status?id=none HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with site.connect() as client:
        client.sendall(HEALTH + status + HEALTH[:20])
        answer = received(client, until=b"ERROR:INVALID_ID")
        client.sendall(HEALTH[20:])
        answer += received(client, until=OK)
    assert answer.index(OK) < answer.index(b"ERROR:INVALID_ID") < answer.rindex(OK)


def test_body_is_sent_after_100_continue(site: Site) -> None:
    """E7: curl waits for 100 before it sends a larger body. Single bytes arrive as well."""
    site.http.get("/create", params={"id": "expects", "is_api_call": "true"})
    with site.connect() as client:
        client.sendall(
            b"POST /registerCallback?id=expects HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert received(client, until=b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        for byte in b"f\r\ntask_token=c0de\r\n0\r\n\r\n":
            client.sendall(bytes([byte]))
        assert received(client, until=b"SUCCEED").startswith(b"HTTP/1.1 200 ")
        # A request without a body is answered at once, even if it expects 100.
        client.sendall(HEALTH.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert OK in received(client, until=OK)


def test_forwarded_request_is_refused_in_open_access(site: Site) -> None:
    """X8: open access goes by the peer's address, and is refused to forwarded requests."""
    query = {"id": "forwarded", "is_api_call": "true"}
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"):
        answer = site.http.get("/create", params=query, headers={header: "for=10.0.0.1"})
        assert answer.status_code == 401
    assert site.http.get("/status", params=query).text == "ERROR:INVALID_ID"
    assert site.http.get("/create", params=query).text == "SUCCEED"


def test_request_must_be_whole_in_time(hurried: Site) -> None:
    """X11: the site closes half a request in time, even if a byte arrives now and then. It also
    closes a connection without a request, and a client that goes on sending after a refusal."""
    for first in (b"", HEALTH[:20], LOGIN + b"Content-Length: 99\r\n\r\n", HEALTH):
        with hurried.connect() as client:
            client.settimeout(0.1)
            client.sendall(first)
            began = time.monotonic()
            with suppress(ConnectionResetError, BrokenPipeError):
                while time.monotonic() - began < 10:
                    with suppress(TimeoutError):
                        if not client.recv(65_536):
                            break
                    if first not in (b"", HEALTH):
                        client.sendall(b"x")
        assert 0.9 < time.monotonic() - began < 5


def test_more_connections_push_out_those_that_wait(hurried: Site) -> None:
    """X11: idle connections do not keep out others, and their number is bounded."""
    with ExitStack() as open_sockets:
        clients = [open_sockets.enter_context(hurried.connect()) for _ in range(60)]
        assert hurried.seconds("/health", "ok") < 0.5
        clients[0].settimeout(5)
        assert received(clients[0]) == b""


def test_killed_web_process_is_replaced(site: Site) -> None:
    """X1: the other web processes answer meanwhile, and the killed one is started again."""
    children = Path(f"/proc/{site.process.pid}/task/{site.process.pid}/children")
    before = children.read_text().split()
    assert len(before) == 2
    os.kill(int(before[0]), signal.SIGKILL)
    eventually(lambda: len(set(children.read_text().split()) - {before[0]}) == 2)
    for _ in range(3):
        assert site.seconds("/health", "ok") < 5
    assert json.loads(site.http.get("/health").text) == {"status": "ok"}


def test_stopping_server_sends_the_rest_of_an_answer(tmp_path: Path) -> None:
    """X1: after SIGTERM a client that reads slowly gets the rest of an answer that is larger than
    the buffers of its connection."""
    with serving(tmp_path, ["-c", LONG_ANSWERS]) as stopping, stopping.connect() as slow:
        slow.sendall(HEALTH)
        answer = received(slow, until=b"\r\n\r\n")
        stopping.process.terminate()
        eventually(lambda: not stopping.is_up())
        answer += received(slow)
    assert len(answer.partition(b"\r\n\r\n")[2]) == 20 * MEGABYTE
