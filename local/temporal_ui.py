"""Run Temporal's dev server with its Web UI behind a proxy that refuses other web pages.

The UI answers under any Host and gives out its CSRF cookie there: a page whose name is rebound to
127.0.0.1 could approve an order by a signal. So the UI listens on an address that no page can
guess. The proxy passes on requests for the loopback names that a person types, if they come from no
other origin.

`python -m local.temporal_ui PORT UI_HOST UI_PORT DIRECTORY COMMAND…` starts the proxy as a child
process and then executes the command in the directory. The proxy dies with the command.
"""

import asyncio
import contextlib
import os
import re
import socket
import sys
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from expensesite.processes import die_with

LARGEST_HEAD: Final = 32_768
HEAD_SECONDS: Final = 10.0
# The UI keeps requests open while it waits for new events.
IDLE_SECONDS: Final = 120.0
MOST_CONNECTIONS: Final = 100
_REQUEST_LINE = re.compile(rb"[A-Z]+ /[^\s\x00-\x20]* HTTP/1\.[01]")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\x00]*?)[ \t]*")
# The proxy passes one request over a connection, so it checks every request.
_OF_THE_CONNECTION: Final = {b"connection", b"keep-alive", b"upgrade", b"proxy-connection"}


class Refused(Exception):
    """The proxy does not pass the request on, and answers with `status`."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def checked(head: bytes, *, port: int) -> bytes:
    """Return the head of the request for the UI.

    Raises Refused if the request is for another Host, or from a page of another origin.
    """
    line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    fields = [_FIELD.fullmatch(field) for field in lines]
    if not _REQUEST_LINE.fullmatch(line) or not all(fields):
        raise Refused(HTTPStatus.BAD_REQUEST, "This is not a request.")
    pairs = [(match[1].lower(), match[2]) for match in fields if match]
    hosts = [value.lower() for name, value in pairs if name == b"host"]
    if hosts not in ([b"127.0.0.1:%d" % port], [b"localhost:%d" % port]):
        raise Refused(HTTPStatus.FORBIDDEN, f"Open http://127.0.0.1:{port} instead.")
    for name, value in pairs:
        if name == b"origin" and value.lower() != b"http://" + hosts[0]:
            raise Refused(HTTPStatus.FORBIDDEN, "Pages of other origins are refused.")
    kept = [b"%s: %s" % pair for pair in pairs if pair[0] not in _OF_THE_CONNECTION]
    return b"\r\n".join([line, *kept, b"connection: close", b"", b""])


class Proxy:
    """Answers on `port` of the loopback address for the UI at `upstream`."""

    def __init__(self, port: int, upstream: tuple[str, int]) -> None:
        self._port = port
        self._upstream = upstream
        self._open = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            await self._pass_on(reader, writer)
        except Refused as refused:
            body = f"{refused}\n".encode()
            head = (
                f"HTTP/1.1 {refused.status} {refused.status.phrase}\r\n"
                f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            pass  # the client or the UI has gone, or was silent for too long
        finally:
            self._open -= 1
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open > MOST_CONNECTIONS:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections; try again.")
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise Refused(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The header is too large."
            ) from None
        head = checked(head, port=self._port)
        try:
            ui_reader, ui_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            raise Refused(HTTPStatus.BAD_GATEWAY, "Temporal's Web UI does not answer.") from None
        try:
            ui_writer.write(head)
            await self._exchange(reader, writer, ui_reader, ui_writer)
        finally:
            ui_writer.close()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ui_reader: asyncio.StreamReader,
        ui_writer: asyncio.StreamWriter,
    ) -> None:
        """Copy both ways until the UI has answered, or nothing moves for IDLE_SECONDS."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(IDLE_SECONDS) as idle:

            async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
                    idle.reschedule(loop.time() + IDLE_SECONDS)

            async def send() -> None:
                with contextlib.suppress(OSError):  # the answer says why, or ends
                    await copy(reader, ui_writer)

            sending = asyncio.create_task(send())
            try:
                await copy(ui_reader, writer)
            finally:
                sending.cancel()


async def _serve(listening: socket.socket, upstream: tuple[str, int]) -> None:
    proxy = Proxy(listening.getsockname()[1], upstream)
    server = await asyncio.start_server(proxy.answer, sock=listening, limit=LARGEST_HEAD)
    await server.serve_forever()


def main(port: str, ui_host: str, ui_port: str, directory: str, *command: str) -> None:
    listening = socket.create_server(("127.0.0.1", int(port)))
    parent = os.getpid()
    if os.fork() == 0:
        die_with(parent)
        asyncio.run(_serve(listening, (ui_host, int(ui_port))))
    os.chdir(directory)
    os.execv(command[0], command)


def command(port: int, ui: tuple[str, int], directory: str, temporal: Sequence[str]) -> list[str]:
    """Return the command that runs `temporal` in the directory and its UI's proxy on `port`."""
    module = [sys.executable, "-m", "local.temporal_ui"]
    return [*module, str(port), ui[0], str(ui[1]), directory, *temporal]


if __name__ == "__main__":
    main(*sys.argv[1:])
