"""A scripted site over real HTTP."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from worker import contracts

Result = TypeVar("Result")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: str
    headers: dict[str, str]
    """By lower-case name."""

    @cached_property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body, keep_blank_values=True))

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def task_token(self) -> bytes:
        return bytes.fromhex(self.form["task_token"])


class Handler(BaseHTTPRequestHandler):
    server: "ScriptedSite"
    protocol_version = "HTTP/1.1"
    # An answer is one packet: a second would wait 40 ms for a delayed acknowledgement.
    wbufsize = -1

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        url = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=url.path,
            query=dict(parse_qsl(url.query, keep_blank_values=True)),
            body=self.rfile.read(length).decode(),
            headers={name.lower(): value for name, value in self.headers.items()},
        )
        answer = self.server.take(request)
        if isinstance(answer, str):
            self.reply(answer)
        else:
            answer(self)

    def do_POST(self) -> None:
        self.do_GET()

    def reply(self, body: str, status: int = 200, **headers: str) -> None:
        payload = body.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: Any) -> None:
        pass


# The body of a 200 answer, or a function that handles the request.
Answer = str | Callable[[Handler], None]


def status(code: int, body: str = "", **headers: str) -> Answer:
    return lambda handler: handler.reply(body, code, **headers)


def drop(handler: Handler) -> None:
    """Close the connection without a reply."""
    handler.close_connection = True


def hang(handler: Handler) -> None:
    """Say nothing until the site is released."""
    handler.server.released.wait()
    handler.reply("SUCCEED")


def drip(handler: Handler) -> None:
    """Send a byte of a long body each 50 ms."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while not handler.server.released.wait(0.05):
            handler.wfile.write(b".")
            handler.wfile.flush()
    handler.close_connection = True


class ScriptedSite(ThreadingHTTPServer):
    """Answers each path by its script, whose last answer is repeated; SUCCEED without a script."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[Request] = []
        self.released = threading.Event()
        self._scripts: dict[tuple[str, str | None], list[Answer]] = {}
        self._lock = threading.Lock()

    def script(self, path: str, *answers: Answer, expense_id: str | None = None) -> None:
        """Set the answers of `path`, for one expense or for all without answers of their own."""
        self._scripts[path, expense_id] = list(answers)

    def take(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            answers = (
                self._scripts.get((request.path, request.query.get("id")))
                or self._scripts.get((request.path, None))
                or ["SUCCEED"]
            )
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def requests_to(self, path: str, expense_id: str | None = None) -> list[Request]:
        return [
            request
            for request in self.requests
            if request.path == path and expense_id in (None, request.query.get("id"))
        ]


@contextlib.contextmanager
def scripted_site() -> Iterator[ScriptedSite]:
    with ScriptedSite() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


async def eventually(condition: Callable[[], Result], seconds: float = 40) -> Result:
    """The first true result of `condition`."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)
    return result


def standing(state: str, verdict: str = "", reason: str = "", **more: Any) -> str:
    """The site's answer about the state of an order. `reason` is the reason of the verdict, if any,
    and of the end. The workflow asks again about a pending order in 5 minutes."""
    approval_reason = reason if verdict else ""
    return json.dumps(
        {"state": state, "verdict": verdict, "approval_reason": approval_reason, "reason": reason}
        | ({"seconds_left": 300} if state == contracts.PENDING else {})
        | more
    )


SENT = json.dumps(
    {"message": "sent", "tracking_number": "TRACK-1", "estimated_delivery": "2026-01-05"}
)


def script_order(site: ScriptedSite, order: str, answers: Mapping[str, Sequence[Answer]]) -> None:
    """Script a site that carries out each step of an order, except for these answers."""
    steps: dict[str, Sequence[Answer]] = {
        contracts.AWAIT_APPROVAL: [standing("pending")],
        contracts.SETTLE_APPROVAL: [standing("running", "APPROVED", "good customer")],
        contracts.CHECK_INVENTORY: ['{"message": "checked"}'],
        contracts.RESERVE_INVENTORY: ['{"message": "reserved", "reservation_id": "RES-1"}'],
        contracts.PROCESS_PAYMENT: ['{"message": "paid", "charge_id": "TXN-1"}'],
        contracts.UPDATE_WAREHOUSE: [SENT],
        contracts.COMPLETE_ORDER: [standing("completed")],
        contracts.SEND_CONFIRMATION: ['{"message": "confirmed"}'],
        contracts.BEGIN_COMPENSATION: [standing("compensating", reason="No.", begun=[])],
        contracts.REVERT_WAREHOUSE: ['{"message": "called off"}'],
        contracts.REFUND_PAYMENT: ['{"message": "refunded"}'],
        contracts.RELEASE_INVENTORY: ['{"message": "released"}'],
        contracts.CLOSE_ORDER: [standing("failed", reason="No.")],
        **answers,
    }
    for step, said in steps.items():
        site.script(f"/orders/{order}/steps/{step}", *said)
