"""The proxy that loses replies, in front of a scripted site."""

import asyncio
import gc
import socket
import struct
import threading
import time

import httpx
import pytest

from tests.faults.proxy import ReplyDropper
from tests.servers import eventually
from tests.worker import sites

# A timeout would be an error of its own.
SECONDS = 60


def test_lost_reply_leaves_the_work_done() -> None:
    """X1: the site got and answered the whole request, and the client gets no reply."""
    asked: list[str] = []

    def drops(line: str) -> bool:
        asked.append(line)
        return line == "POST /lost?id=1"

    with sites.scripted_site() as site, ReplyDropper(site.server_port, drops) as proxy:
        site.script("/kept", "ä" * 100_000)
        with httpx.Client(base_url=proxy.url, timeout=SECONDS, trust_env=False) as client:
            assert client.get("/kept").text == "ä" * 100_000
            with pytest.raises(httpx.RemoteProtocolError):
                client.post("/lost?id=1", data={"form": "x" * 100_000})
            assert client.post("/lost?id=2").text == "SUCCEED"
    assert asked == ["GET /kept", "POST /lost?id=1", "POST /lost?id=2"]
    assert site.requests_to("/lost", "1")[0].form == {"form": "x" * 100_000}


def test_connection_serves_several_requests() -> None:
    """The worker's pool of connections works as without the proxy."""
    with (
        sites.scripted_site() as site,
        ReplyDropper(site.server_port, lambda _: False) as proxy,
        socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2]))) as connection,
    ):
        for _ in range(2):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"SUCCEED"):
                answer += connection.recv(65_536)


def test_chunked_reply_arrives_whole() -> None:
    """The product's server sends chunked bodies."""

    def chunked(handler: sites.Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"3\r\nSUC\r\nB;x=y\r\nCEED\r\n0\r\n\r\n\r\n0\r\n\r\n")

    with sites.scripted_site() as site, ReplyDropper(site.server_port, lambda _: False) as proxy:
        site.script("/", chunked, "SUCCEED")
        with httpx.Client(base_url=proxy.url, timeout=SECONDS, trust_env=False) as client:
            assert client.get("/").text == "SUCCEED\r\n0\r\n\r\n"
            assert client.get("/").text == "SUCCEED"


def test_reply_that_ends_with_its_connection_arrives_whole() -> None:
    """Django's development server sends such bodies."""

    def unmeasured(handler: sites.Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"SUCCEED")
        handler.close_connection = True

    with sites.scripted_site() as site, ReplyDropper(site.server_port, lambda _: False) as proxy:
        site.script("/", unmeasured)
        with httpx.Client(base_url=proxy.url, timeout=SECONDS, trust_env=False) as client:
            assert [client.get("/").text for _ in range(2)] == ["SUCCEED"] * 2


def test_site_that_refuses_or_dies_breaks_the_connection() -> None:
    """When the site is killed, the client gets a transport error, not an answer or a wait."""
    with socket.socket() as site:
        site.bind(("127.0.0.1", 0))
        with ReplyDropper(site.getsockname()[1], lambda _: False) as proxy:
            with pytest.raises(httpx.RemoteProtocolError):
                httpx.get(proxy.url, timeout=SECONDS, trust_env=False)
            site.listen()
            failed = threading.Event()

            def ask() -> None:
                with pytest.raises(httpx.RemoteProtocolError):
                    httpx.get(proxy.url, timeout=SECONDS, trust_env=False)
                failed.set()

            threading.Thread(target=ask).start()
            connection, _ = site.accept()
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nSUC")
            time.sleep(0.1)
            assert not failed.is_set()
            connection.close()
            eventually(failed.is_set)


def test_request_of_a_client_that_left_is_answered() -> None:
    """A slow site still gets and answers the request of a client that gave up."""
    asked: list[str] = []

    def drops(line: str) -> bool:
        asked.append(line)
        return False

    with sites.scripted_site() as site, ReplyDropper(site.server_port, drops) as proxy:
        site.script("/", sites.hang)
        client = socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2])))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: site.requests)
        # Reset the connection, as the kernel does for a killed client.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        time.sleep(0.2)
        gc.collect()
        site.released.set()
        eventually(lambda: asked == ["GET /"])


async def test_hundreds_at_once_get_their_own_answers() -> None:
    """As many requests as a worker has activities: each gets its own answer or none."""

    def drops(line: str) -> bool:
        return line.endswith("0")

    with sites.scripted_site() as site, ReplyDropper(site.server_port, drops) as proxy:
        for number in range(300):
            site.script(f"/{number}", str(number))
        async with httpx.AsyncClient(
            base_url=proxy.url,
            limits=httpx.Limits(max_connections=None),
            timeout=SECONDS,
            trust_env=False,
        ) as client:
            answers = await asyncio.gather(
                *(client.get(f"/{number}") for number in range(300)),
                return_exceptions=True,
            )
    for number, answer in enumerate(answers):
        if number % 10 == 0:
            assert isinstance(answer, httpx.RemoteProtocolError)
        else:
            assert isinstance(answer, httpx.Response)
            assert answer.text == str(number)
