"""A proxy that loses replies of the site."""

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Self

# The backlog is larger than the number of simultaneous requests of any test.
LARGEST_HEAD = 65_536
BACKLOG = 2_048
_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*(\d+)[ \t]*\r$")
_CHUNKED = re.compile(rb"(?im)^transfer-encoding:[ \t]*chunked[ \t]*\r$")
_NO_BODY = re.compile(rb"HTTP/1\.1 (1\d\d|204|304) ")


class ReplyDropper:
    """An HTTP/1.1 proxy at `url`, in front of the site at 127.0.0.1:`port`.

    The proxy forwards each request over a new connection. When the whole reply has arrived, the
    proxy calls `drops("<METHOD> <target>")` in its own thread. If the result is true, it closes the
    client's connection without a byte of the reply: the work was done, and the client sees a
    transport error. The client sees the same error if the site refuses or breaks the connection.
    Otherwise the client's connection is kept for the next request.

    A body has a Content-Length or is chunked, without trailers. The body of a reply may also end
    with its connection. Use as a context manager.
    """

    def __init__(self, port: int, drops: Callable[[str], bool]) -> None:
        self.url = ""
        self._port = port
        self._drops = drops
        # A loop keeps only weak references to tasks; a client may leave before its answer.
        self._connections: set[asyncio.Task[None] | None] = set()
        self._listens = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="reply dropper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._listens.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(
            self._client, "127.0.0.1", 0, limit=LARGEST_HEAD, backlog=BACKLOG
        )
        self.url = "http://{}:{}".format(*server.sockets[0].getsockname())
        self._listens.set()
        await self._stop.wait()
        server.close()
        # The runner cancels the remaining connections.

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(task := asyncio.current_task())
        try:
            while reply := await self._reply_to(reader):
                writer.write(reply)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client or the site has left: close this connection
        finally:
            writer.close()
            self._connections.discard(task)

    async def _reply_to(self, client: asyncio.StreamReader) -> bytes | None:
        """Return the reply to the client's next request; None to close the connection."""
        request = await _message(client)
        method, target, _ = request.split(b" ", 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=LARGEST_HEAD)
        try:
            writer.write(request)
            await writer.drain()
            reply = await _message(reader, bodiless=method == b"HEAD", to_the_end=True)
        finally:
            writer.close()
        return None if self._drops(f"{method.decode()} {target.decode()}") else reply


async def _message(
    reader: asyncio.StreamReader, *, bodiless: bool = False, to_the_end: bool = False
) -> bytes:
    """Read a request or reply, head and body. Raises IncompleteReadError at its end."""
    message = await reader.readuntil(b"\r\n\r\n")
    if bodiless or _NO_BODY.match(message):
        return message
    if _CHUNKED.search(message):
        size = -1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            message += line + await reader.readexactly(size + 2)
        return message
    if length := _LENGTH.search(message):
        return message + await reader.readexactly(int(length[1]))
    if not to_the_end:
        return message
    body = await reader.read()
    return message[:-2] + b"Content-Length: %d\r\n\r\n" % len(body) + body
