"""Replies that get lost on their way from the site."""

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Self

# The longest head, and more waiting connections than hundreds of requests at once make.
LARGEST_HEAD = 65_536
BACKLOG = 2_048
_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*(\d+)[ \t]*\r$")
_CHUNKED = re.compile(rb"(?im)^transfer-encoding:[ \t]*chunked[ \t]*\r$")
_NO_BODY = re.compile(rb"HTTP/1\.1 (1\d\d|204|304) ")


class ReplyDropper:
    """An HTTP/1.1 proxy at `url`, in front of the site at 127.0.0.1:`port`.

    Each request is forwarded over a connection of its own. Once its reply has come completely,
    `drops` is asked, with "<METHOD> <target>" and in the proxy's thread: where it is true, the
    client's connection is closed without a byte of the reply. So the work was done and the client
    sees a transport error. The same error, without a question, where the site refuses the
    connection or breaks it. Otherwise the client's connection is kept for its next request.

    Bodies have a Content-Length or are chunked, without trailers; that of a reply may end with its
    connection. Use as a context manager.
    """

    def __init__(self, port: int, drops: Callable[[str], bool]) -> None:
        self.url = ""
        self._port = port
        self._drops = drops
        # The loop alone does not keep the task of a client that left before the answer.
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
        # The runner cancels the connections that are left.

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(task := asyncio.current_task())
        try:
            while reply := await self._reply_to(reader):
                writer.write(reply)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # one of the two went away: so does this connection
        finally:
            writer.close()
            self._connections.discard(task)

    async def _reply_to(self, client: asyncio.StreamReader) -> bytes | None:
        """The reply to the client's next request; None to close its connection."""
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
    """One request or reply, head and body. Raises IncompleteReadError at the connection's end."""
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
