"""The site's HTTP server: no thread waits for the rest of a request (requirements X11).

Waitress parses requests and speaks WSGI. Its own loop hands each request from one thread to
another, which costs a third of the throughput under the interpreter's lock (docs/adr/0009). Here
all threads wait on the same epoll: the thread that receives the last byte of a request answers it.
A connection with an incomplete request is an object in a dictionary and costs no thread.
"""

import contextlib
import errno
import gc
import logging
import math
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import waitress
from django.core.management.base import CommandError
from waitress.adjustments import Adjustments
from waitress.buffers import ReadOnlyFileBasedBuffer
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import InternalServerError

from expensesite.processes import die_with

if sys.platform == "linux":
    import resource

log = logging.getLogger(__name__)

Application = Callable[..., Iterable[bytes]]

# The site takes no uploads. More than DATA_UPLOAD_MAX_MEMORY_SIZE, so that Django's own refusal,
# which explains itself, comes first.
LARGEST_BODY: Final = 3_000_000
LARGEST_HEADER: Final = 32_768
# A larger body is collected in a temporary file.
LARGEST_BODY_IN_MEMORY: Final = 65_536
# A connection is closed when its request is not complete this long after the first byte, when it
# sends no request for this long, or when its client takes no byte of the answer for this long.
REQUEST_SECONDS: Final = 30.0
# In each process. One more connection closes the one with the earliest deadline.
MOST_CONNECTIONS: Final = 1000
# After a refusal the server reads and drops this much, since a client that still sends would
# otherwise lose the answer.
DRAIN_SECONDS: Final = 2.0
LARGEST_DRAIN: Final = 4_000_000
RECEIVE_BYTES: Final = 65_536

_LIMITS: Final[dict[str, Any]] = {
    "max_request_body_size": LARGEST_BODY,
    "max_request_header_size": LARGEST_HEADER,
    "inbuf_overflow": LARGEST_BODY_IN_MEMORY,
    "ident": None,
    "log_socket_errors": False,
    # Keep the headers of proxies: open access refuses requests that have them.
    "clear_untrusted_proxy_headers": False,
}
_TRANSFER_ENCODING: Final = re.compile(rb"^transfer-encoding:", re.I | re.M)
_STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})


class _Request(HTTPRequestParser):  # type: ignore[misc]
    """A request whose length every proxy reads alike (RFC 9112, 6.1).

    Waitress ignores Transfer-Encoding in some versions and with some values. A proxy that obeys it
    would take other bytes for the next request.
    """

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        if not _TRANSFER_ENCODING.search(header_plus):
            return
        if "CONTENT_LENGTH" in self.headers:
            raise ParsingError("Send Content-Length or Transfer-Encoding, not both.")
        if self.version != "1.1" or not self.chunked:
            raise ParsingError("Send Transfer-Encoding: chunked in HTTP/1.1, or leave it out.")


class Connection:
    """A client's connection. One thread at a time works on it: the thread that epoll wakes.

    It serves Waitress's tasks as their channel, with `adj`, `addr`, `server`, `write_soon` and
    `check_client_disconnected`.
    """

    def __init__(self, server: "Server", connected: socket.socket, addr: tuple[Any, ...]) -> None:
        self.server = server
        self.adj = server.adj
        self.addr = addr
        self.socket = connected
        # When the server closes the connection; infinite while a thread answers a request. The
        # server's lock guards a change to infinity.
        self.deadline = time.monotonic() + REQUEST_SECONDS
        self.is_ended = False
        self._request: _Request | None = None
        self._input = b""
        self._output = bytearray()
        self._is_last = False
        self._is_refused = False
        # How many bytes may still be read and dropped; None before the refusal is sent.
        self._drain: int | None = None

    @property
    def has_output(self) -> bool:
        return bool(self._output)

    def write_soon(self, data: Any) -> int:
        if isinstance(data, ReadOnlyFileBasedBuffer):
            file, data = data, data.get()
            file.close()
        self._output += data
        return len(data)

    def check_client_disconnected(self) -> bool:
        return False

    def proceed(self) -> int:
        """Do all that needs no waiting; return the events to wait for, or 0 to close."""
        try:
            if not self._output:
                data = self.socket.recv(RECEIVE_BYTES)
                if not data:
                    return 0
                if self._drain is not None:
                    self._drain -= len(data)
                    return select.EPOLLIN if self._drain > 0 else 0
                self._input += data
            while True:
                if self._output:
                    if not self._send():
                        return select.EPOLLOUT
                    if self._is_refused:
                        return self._begin_drain()
                if self._is_last:
                    return 0
                request = self._parse()
                if request is not None:
                    if not self.server.may_answer(self):
                        return 0
                    self._answer(request)
                elif not self._output:
                    return select.EPOLLIN
        except BlockingIOError:
            return select.EPOLLIN
        except OSError:  # the client has gone
            return 0

    def _parse(self) -> _Request | None:
        """Return the next request if it is complete or refused."""
        while self._input:
            if self._request is None:
                self._request = _Request(self.adj)
                self.deadline = time.monotonic() + REQUEST_SECONDS
            request = self._request
            self._input = self._input[request.received(self._input) :]
            if request.completed:
                self._request = None
                if not request.empty:
                    return request
            elif request.headers_finished and request.expect_continue:
                request.expect_continue = False
                if not self._input:
                    self._output += b"HTTP/1.1 100 Continue\r\n\r\n"
        return None

    def _answer(self, request: _Request) -> None:
        self._is_refused = bool(request.error)
        if self._is_refused:
            request.headers["CONNECTION"] = "close"  # waitress says both to HTTP/1.0 otherwise
        task = (ErrorTask if request.error else WSGITask)(self, request)
        try:
            task.service()
        except Exception:
            log.exception("The application failed")
            self._output.clear()
            request.error = InternalServerError("The site failed; see its log.")
            task = ErrorTask(self, request)
            task.service()
        finally:
            request.close()
        # Waitress sends the body even for HEAD. An unreadable request has no command.
        if getattr(request, "command", "") == "HEAD":
            del self._output[self._output.index(b"\r\n\r\n") + 4 :]
        self._is_last = task.close_on_finish or self.server.is_stopping
        self.deadline = time.monotonic() + REQUEST_SECONDS

    def _send(self) -> bool:
        """Send what the client takes; return whether that is all of the output."""
        try:
            while self._output:
                del self._output[: self.socket.send(self._output)]
                self.deadline = time.monotonic() + REQUEST_SECONDS
        except BlockingIOError:
            return False
        return True

    def _begin_drain(self) -> int:
        self.socket.shutdown(socket.SHUT_WR)
        self._input = b""
        self._drain = LARGEST_DRAIN
        self.deadline = time.monotonic() + DRAIN_SECONDS
        return select.EPOLLIN


class Server:
    """Serve one listening socket in this process until SIGTERM or SIGINT.

    The process must block both signals before it makes a server.
    """

    server_name = "waitress.invalid"  # Waitress's default, for a request without a Host

    def __init__(self, application: Application, listening: socket.socket, *, threads: int) -> None:
        self.application = _in_one_piece(application)
        self.adj = Adjustments(sockets=[listening], **_LIMITS)
        self.effective_port = listening.getsockname()[1]
        self.is_stopping = False
        self._listening = listening
        self._epoll = select.epoll()
        self._epoll.register(listening, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._most_connections = min(MOST_CONNECTIONS, _open_files(4 * MOST_CONNECTIONS) // 4)
        self._lock = threading.Lock()
        self._threads = threads

    def run(self, *, stop_seconds: float) -> None:
        """Serve until a stop signal, then answer complete requests for `stop_seconds` at most."""
        for number in range(self._threads):
            threading.Thread(target=self._work, name=f"web-{number}", daemon=True).start()
        while signal.sigtimedwait(_STOP_SIGNALS, 1) is None:
            self._end(before=time.monotonic())
        with self._lock:
            self.is_stopping = True
        self._epoll.unregister(self._listening)
        self._listening.close()
        last = time.monotonic() + stop_seconds
        while self._connections and time.monotonic() < last:
            self._end(before=math.inf, idle=True)
            time.sleep(0.02)
        if self._connections:
            log.warning("%d requests are cut off: they took too long", len(self._connections))

    def may_answer(self, connection: Connection) -> bool:
        """Return whether to answer the connection's request; if so, nothing closes it meanwhile."""
        with self._lock:
            if connection.is_ended:
                return False
            connection.deadline = math.inf
            return True

    def _end(self, *, before: float, idle: bool = False) -> None:
        """Close the connections whose deadline is before this; with `idle`, only those that have
        nothing left to send."""
        with self._lock:
            for connection in list(self._connections.values()):
                if connection.deadline < before and not (idle and connection.has_output):
                    self._end_one(connection)

    def _end_one(self, connection: Connection) -> None:
        connection.is_ended = True
        with contextlib.suppress(OSError):  # the client has gone
            # This makes epoll wake a thread, which closes the connection.
            connection.socket.shutdown(socket.SHUT_RDWR)

    def _work(self) -> None:
        listening = self._listening.fileno()
        while True:
            for number, _ in self._epoll.poll(maxevents=1):
                if number == listening:
                    self._accept()
                    continue
                connection = self._connections[number]
                try:
                    events = connection.proceed()
                except Exception:
                    log.exception("A connection failed")
                    events = 0
                if events:
                    self._epoll.modify(number, events | select.EPOLLONESHOT)
                else:
                    del self._connections[number]
                    connection.socket.close()

    def _accept(self) -> None:
        try:
            connected, addr = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another thread took it, or it has gone
            return
        except OSError:  # no descriptor is left, or the server stops
            self._make_room()
            return
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[connected.fileno()] = Connection(self, connected, addr)
        self._epoll.register(connected, select.EPOLLIN | select.EPOLLONESHOT)
        if len(self._connections) > self._most_connections:
            self._make_room()

    def _make_room(self) -> None:
        with self._lock:
            open_ones = [c for c in list(self._connections.values()) if not c.is_ended]
            first = min(open_ones, key=lambda connection: connection.deadline, default=None)
            if first is not None and first.deadline < math.inf:
                self._end_one(first)


def serve(
    application: Application, *, host: str, port: int, processes: int, threads: int, stop: float
) -> None:
    """Serve the application until SIGTERM or SIGINT; replace a process that dies.

    Each process has a listening socket of its own on the port. The kernel spreads connections
    evenly over these sockets, but not over processes that share one.
    """
    if sys.platform != "linux":  # one process, and waitress's own loop
        waitress.serve(application, host=host, port=port, threads=threads, **_LIMITS)
        return
    signals = _STOP_SIGNALS | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    listening = [_listen(host, port) for _ in range(processes)]
    # The collector skips everything that is loaded now, so the processes go on sharing its pages.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    parent = os.getpid()

    def start(number: int) -> int:
        if pid := os.fork():
            return pid
        try:
            die_with(parent)
            for other in listening[:number] + listening[number + 1 :]:
                other.close()
            Server(application, listening[number], threads=threads).run(stop_seconds=stop)
        except BaseException:
            log.exception("A web process failed")
            os._exit(1)
        os._exit(0)  # a request that took too long may still run

    running = {start(number): number for number in range(processes)}
    log.info("Serving http://%s:%d in %d processes of %d threads", host, port, processes, threads)
    while signal.sigwait(signals) == signal.SIGCHLD:
        for pid in list(running):
            if os.waitpid(pid, os.WNOHANG)[0]:
                log.error("Web process %d ended; it is replaced", pid)
                time.sleep(0.5)  # the next process may end at once, too
                number = running.pop(pid)
                running[start(number)] = number
    for open_socket in listening:
        open_socket.close()
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    for pid in running:
        os.waitpid(pid, 0)


def _in_one_piece(application: Application) -> Application:
    """Return an application that gives each answer as one string.

    Waitress states the length and keeps the connection open only then.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        parts: Any = application(environ, start_response)
        if isinstance(parts, ReadOnlyFileBasedBuffer):
            return parts
        try:
            return [b"".join(parts)]
        finally:
            if hasattr(parts, "close"):
                parts.close()

    return answer


def free_address(host: str, port: int, option: str) -> str:
    """Return the numeric address of the host.

    Raises CommandError if no server can listen on the port.
    """
    if not 1 <= port <= 65535:
        raise CommandError(f"{option} takes a port from 1 to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
    except OSError as error:
        raise CommandError(f"--host {host}: {error.strerror}.") from error
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # otherwise a connection of an ended server keeps the port in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise CommandError(f"--host {host} is not an address of this machine.") from error
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"fails: {error.strerror}"
            raise CommandError(f"Port {port} {reason}. Choose another with {option}.") from error
    return str(address[0])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind((host, port))
    listening.listen(1024)
    listening.setblocking(False)
    return listening


def _open_files(wanted: int) -> int:
    """Raise this process's limit of open files to `wanted` if possible; return the limit."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now < wanted:
        now = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (now, most))
    return now
