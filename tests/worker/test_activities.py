"""The activities against a real HTTP server, and which of their errors Temporal retries."""

import asyncio
import base64
import dataclasses
import logging
import re
import socket
import threading
from collections.abc import Awaitable, Callable

import httpx
import pytest
from temporalio.activity import _CompleteAsyncError
from temporalio.api.failure.v1 import Failure
from temporalio.converter import DataConverter
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

import worker.site
from tests.servers import free_port
from tests.worker import sites
from worker import contracts
from worker.expenses.activities import ExpenseActivities
from worker.expenses.workflows import RETRIES
from worker.site import Site

TOKEN = b"\x00\xfftask token"
Run = Callable[..., Awaitable[object]]


@pytest.fixture
def run(site: Site) -> Run:
    """Runs the activity of a name as Temporal would."""
    return runner(site)


def runner(site: Site, workflow_id: str = "expense_7") -> Run:
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(
        environment.info,
        workflow_id=workflow_id,
        workflow_run_id="run-7",
        activity_id="2",
        task_token=TOKEN,
    )
    activities = ExpenseActivities(site)

    async def run(name: str, expense_id: str = "7") -> object:
        return await environment.run(getattr(activities, name), expense_id)

    return run


def is_retried(error: BaseException) -> bool:
    """Whether the server retries after `error`, under the workflow's policy."""
    failure = Failure()
    converter = DataConverter.default
    converter.failure_converter.to_failure(error, converter.payload_converter, failure)
    info = failure.application_failure_info
    return not info.non_retryable and info.type not in (RETRIES.non_retryable_error_types or ())


NAMES = [contracts.CREATE_EXPENSE, contracts.WAIT_FOR_DECISION, contracts.PAYMENT]
PATHS = {
    contracts.CREATE_EXPENSE: "/create",
    contracts.WAIT_FOR_DECISION: "/registerCallback",
    contracts.PAYMENT: "/action",
}
every_activity = pytest.mark.parametrize("name", NAMES)


async def failure_of(run: Run, name: str, expense_id: str = "7") -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (each test states the type)
        await run(name, expense_id)
    return caught.value


@every_activity
@pytest.mark.parametrize("expense_id", ["", " ", " \t\n", "\u3000"])
async def test_blank_id(name: str, expense_id: str, run: Run, scripted: sites.ScriptedSite):
    """W3: an empty or whitespace-only id is a ValueError, not retried, and nothing is sent."""
    error = await failure_of(run, name, expense_id)
    assert type(error) is ValueError
    assert str(error) == "expense id is empty"
    assert not is_retried(error)
    assert scripted.requests == []


@every_activity
@pytest.mark.parametrize(
    "body",
    ["ERROR:ID_ALREADY_EXISTS", "ERROR:INVALID_ID", "ERROR:INSUFFICIENT_FUNDS", "ERROR:FORBIDDEN"],
)
async def test_refusal(name: str, body: str, run: Run, scripted: sites.ScriptedSite):
    """W4, W5, W6: an ERROR body is the message of an application error that is not retried."""
    scripted.script(PATHS[name], body)
    error = await failure_of(run, name)
    prefix = "register callback failed status: " if name == contracts.WAIT_FOR_DECISION else ""
    assert isinstance(error, ApplicationError)
    assert (error.message, error.type) == (prefix + body, "SiteRefused")
    assert not is_retried(error)
    assert len(scripted.requests) == 1


@every_activity
@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<html>", "<html>"),
        ("succeed", "succeed"),
        ("SUCCEED\n", "SUCCEED\n"),
        ("", "(empty answer)"),
        ("x" * 5000, "x" * 1000),
    ],
)
async def test_unexpected_answer(
    name: str, body: str, text: str, run: Run, scripted: sites.ScriptedSite
):
    """W4, W5: a body that is none of the protocol's is raised with its text, cut at 1000."""
    scripted.script(PATHS[name], body)
    error = await failure_of(run, name)
    prefix = "register callback failed status: " if name == contracts.WAIT_FOR_DECISION else ""
    assert isinstance(error, ApplicationError)
    assert (error.message, error.type) == (prefix + text, "UnexpectedAnswer")
    assert not is_retried(error)


@every_activity
@pytest.mark.parametrize("code", [301, 302, 304, 400, 401, 403, 404, 405, 409, 422])
async def test_lasting_status(name: str, code: int, run: Run, scripted: sites.ScriptedSite):
    """W6: a status that another attempt would meet again is not retried, and keeps its text."""
    scripted.script(PATHS[name], sites.status(code, Location="/list"))
    error = await failure_of(run, name)
    assert isinstance(error, ApplicationError)
    assert error.type == "HTTPStatusError"
    assert re.search(rf"'{code} .*' for url '{scripted.url}{PATHS[name]}\?id=7", error.message)
    assert not is_retried(error)
    assert len(scripted.requests) == 1


@every_activity
@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
async def test_passing_status(name: str, code: int, run: Run, scripted: sites.ScriptedSite):
    """W6: a status that passes propagates as httpx.HTTPStatusError and is retried."""
    scripted.script(PATHS[name], sites.status(code))
    error = await failure_of(run, name)
    assert type(error) is httpx.HTTPStatusError
    assert error.response.status_code == code
    assert is_retried(error)


@every_activity
async def test_connection_refused(name: str):
    """W6: a site that is down is a network error, which is retried."""
    async with Site(f"http://127.0.0.1:{free_port()}") as site:
        error = await failure_of(runner(site), name)
    assert type(error) is httpx.ConnectError
    assert is_retried(error)


async def test_unknown_host():
    """W6: a name that does not resolve is a network error, which is retried."""
    async with Site("http://no-such-host.invalid") as site:
        error = await failure_of(runner(site), contracts.CREATE_EXPENSE)
    assert type(error) is httpx.ConnectError
    assert is_retried(error)


@every_activity
async def test_lost_reply(name: str, run: Run, scripted: sites.ScriptedSite):
    """W6: a connection that ends without a reply is a network error, which is retried."""
    scripted.script(PATHS[name], sites.drop)
    error = await failure_of(run, name)
    assert type(error) is httpx.RemoteProtocolError
    assert is_retried(error)


async def test_status_fails_after_refused_registration(run: Run, scripted: sites.ScriptedSite):
    """W5, W6: when /status cannot answer, the whole attempt is retried."""
    scripted.script("/registerCallback", "ERROR:INVALID_STATE")
    scripted.script("/status", sites.status(503))
    error = await failure_of(run, contracts.WAIT_FOR_DECISION)
    assert type(error) is httpx.HTTPStatusError
    assert is_retried(error)


@every_activity
async def test_read_timeout(
    name: str, scripted: sites.ScriptedSite, monkeypatch: pytest.MonkeyPatch
):
    """W6: a site that does not answer is a network error, which is retried."""
    monkeypatch.setattr(worker.site, "READ_SECONDS", 0.2)
    scripted.script(PATHS[name], sites.hang)
    async with Site(scripted.url) as site:
        error = await failure_of(runner(site), name)
    assert type(error) is httpx.ReadTimeout
    assert is_retried(error)


async def test_dripping_answer(scripted: sites.ScriptedSite, monkeypatch: pytest.MonkeyPatch):
    """W6: bytes that never end are cut off by the bound of the whole request, and retried."""
    monkeypatch.setattr(worker.site, "TOTAL_SECONDS", 0.5)
    scripted.script("/create", sites.drip)
    async with Site(scripted.url) as site:
        error = await failure_of(runner(site), contracts.CREATE_EXPENSE)
    assert type(error) is httpx.ReadTimeout
    assert str(error) == "no answer within 0.5 s"
    assert is_retried(error)


async def test_connect_timeout(monkeypatch: pytest.MonkeyPatch):
    """W6: a host that does not accept is a network error, which is retried."""
    monkeypatch.setattr(worker.site, "CONNECT_SECONDS", 0.2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        # The backlog is full with one; the kernel answers no further connection.
        with socket.create_connection(listener.getsockname()):
            async with Site(f"http://127.0.0.1:{listener.getsockname()[1]}") as site:
                error = await failure_of(runner(site), contracts.CREATE_EXPENSE)
    assert type(error) is httpx.ConnectTimeout
    assert is_retried(error)


def test_request_ends_before_its_attempt():
    """W1, W6: the bounds of a request lie within the 10 s of an attempt."""
    assert worker.site.CONNECT_SECONDS + worker.site.READ_SECONDS < worker.site.TOTAL_SECONDS < 9


@pytest.mark.parametrize(
    ("name", "path", "query"),
    [
        (contracts.CREATE_EXPENSE, "/create", {"id": "7", "is_api_call": "true"}),
        (
            contracts.PAYMENT,
            "/action",
            {"id": "7", "type": "payment", "is_api_call": "true"},
        ),
    ],
)
async def test_create_and_pay(
    name: str, path: str, query: dict[str, str], run: Run, scripted: sites.ScriptedSite
):
    """W4: one GET, with the worker's token and the workflow id as idempotency key."""
    assert await run(name) is None
    [request] = scripted.requests
    assert (request.method, request.path, request.query) == ("GET", path, query)
    assert request.form == {}
    assert request.headers["authorization"] == "Bearer secret-token"
    assert request.headers["idempotency-key"] == "expense_7"


async def test_registration(run: Run, scripted: sites.ScriptedSite):
    """W5, E7: the hex token and all three ids are registered, then the attempt stays open."""
    with pytest.raises(_CompleteAsyncError):
        await run(contracts.WAIT_FOR_DECISION)
    [request] = scripted.requests
    assert (request.method, request.path, request.query) == (
        "POST",
        "/registerCallback",
        {"id": "7"},
    )
    assert request.form == {
        "task_token": "00ff7461736b20746f6b656e",
        "workflow_id": "expense_7",
        "run_id": "run-7",
        "activity_id": "2",
    }
    assert request.headers["authorization"] == "Bearer secret-token"
    assert request.headers["idempotency-key"] == "expense_7"


@pytest.mark.parametrize(
    ("state", "decision"),
    [
        ("APPROVED", "APPROVED"),
        ("COMPLETED", "APPROVED"),
        ("REJECTED", "REJECTED"),
        ("WITHDRAWN", "CANCELLED"),
    ],
)
async def test_decided_before_registration(
    state: str, decision: str, run: Run, scripted: sites.ScriptedSite
):
    """W5: a decision made before the registration is returned."""
    scripted.script("/registerCallback", "ERROR:INVALID_STATE")
    scripted.script("/status", state)
    assert await run(contracts.WAIT_FOR_DECISION) == decision
    asked = scripted.requests[1]
    assert (asked.method, asked.path, asked.query) == ("GET", "/status", {"id": "7"})
    assert asked.headers["authorization"] == "Bearer secret-token"
    assert len(scripted.requests) == 2


@pytest.mark.parametrize("state", ["CREATED", "ERROR:INVALID_ID", "approved", "SUCCEED", ""])
async def test_registration_of_another_workflow(state: str, run: Run, scripted: sites.ScriptedSite):
    """W5, X7: refused although undecided: an error, not retried, and no decision."""
    scripted.script("/registerCallback", "ERROR:INVALID_STATE")
    scripted.script("/status", state)
    error = await failure_of(run, contracts.WAIT_FOR_DECISION)
    assert isinstance(error, ApplicationError)
    assert error.message == "register callback failed status: ERROR:INVALID_STATE"
    assert error.type == "SiteRefused"
    assert not is_retried(error)


async def test_ids_travel_unchanged(site: Site, scripted: sites.ScriptedSite):
    """W4: an opaque id arrives as it is, and the key carries the workflow id in ASCII."""
    expense_id = "a b&c=1/../ü€%41+?#\U0001f600"
    await runner(site, "expense_ü €")(contracts.CREATE_EXPENSE, expense_id)
    [request] = scripted.requests
    assert request.query["id"] == expense_id
    assert request.headers["idempotency-key"] == "expense_%C3%BC%20%E2%82%AC"


async def test_no_token(scripted: sites.ScriptedSite):
    """E13: without a token there is no Authorization header."""
    async with Site(scripted.url) as site:
        await runner(site)(contracts.CREATE_EXPENSE)
    [request] = scripted.requests
    assert "authorization" not in request.headers


async def test_no_proxy(scripted: sites.ScriptedSite, monkeypatch: pytest.MonkeyPatch):
    """W9, X8: the token goes to the site alone, whatever proxy the environment names."""
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    async with Site(scripted.url, "secret-token") as site:
        await runner(site)(contracts.CREATE_EXPENSE)
    assert len(scripted.requests) == 1


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("127.0.0.1:8099", ""),
        ("ftp://site", ""),
        ("http://", ""),
        ("http://user:secret@site", ""),
        ("http://site:port", ""),
        ("http://site", "secret\nX-Other: 1"),
        ("http://site", "sécret"),
    ],
)
def test_unusable_settings(url: str, token: str):
    """W9, E10: an address or a token that cannot work is refused, and never quoted if secret."""
    with pytest.raises(ValueError, match=r"^EXPENSES_SITE_(URL|TOKEN) ") as caught:
        Site(url, token)
    assert "cret" not in str(caught.value)


async def test_hundred_at_once(run: Run, scripted: sites.ScriptedSite):
    """O11: 100 activities have their requests in flight together; the pool holds none back."""
    together = threading.Barrier(100)

    def answer(handler: sites.Handler) -> None:
        together.wait(5)
        handler.reply("SUCCEED")

    scripted.script("/create", answer)
    await asyncio.gather(*(run(contracts.CREATE_EXPENSE) for _ in range(100)))
    assert len(scripted.requests) == 100


@pytest.mark.parametrize("expense_id", ["7", "50%d off", "two\nlines"])
async def test_activity_log(
    expense_id: str, site: Site, scripted: sites.ScriptedSite, caplog: pytest.LogCaptureFixture
):
    """W8, E10: each step says what happened to which expense, on one line."""
    caplog.set_level(logging.INFO, "temporalio.activity")
    run = runner(site, f"expense_{expense_id}")
    await run(contracts.CREATE_EXPENSE, expense_id)
    with pytest.raises(_CompleteAsyncError):
        await run(contracts.WAIT_FOR_DECISION, expense_id)
    scripted.script("/registerCallback", "ERROR:INVALID_STATE")
    scripted.script("/status", "REJECTED")
    await run(contracts.WAIT_FOR_DECISION, expense_id)
    await run(contracts.PAYMENT, expense_id)
    said = [r.getMessage().split(" ({")[0] for r in caplog.records if "activity" in r.name]
    assert said == [
        f"Expense {expense_id!r} created",
        f"Expense {expense_id!r} waits for a decision",
        f"Expense {expense_id!r} was decided before: REJECTED",
        f"Expense {expense_id!r} paid",
    ]


async def test_http_log(scripted: sites.ScriptedSite, caplog: pytest.LogCaptureFixture):
    """W9, E10: each request is logged by method, path, status and time; no secret is."""
    caplog.set_level(logging.DEBUG)
    scripted.script("/action", sites.status(503))
    scripted.script("/create", sites.drop)
    async with Site(scripted.url, "secret-token") as site:
        run = runner(site)
        with pytest.raises(_CompleteAsyncError):
            await run(contracts.WAIT_FOR_DECISION)
        await failure_of(run, contracts.PAYMENT)
        await failure_of(run, contracts.CREATE_EXPENSE)
    lines = [r.getMessage() for r in caplog.records if r.name == "worker.site"]
    assert [re.sub(r"\d+ ms", "N ms", line) for line in lines] == [
        "POST /registerCallback 200 in N ms",
        "GET /action 503 in N ms",
        "GET /create failed after N ms: RemoteProtocolError",
    ]
    for secret in ("secret-token", TOKEN.hex(), repr(TOKEN), base64.b64encode(TOKEN).decode()):
        assert secret not in caplog.text
