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
    """Run the named activity as Temporal would."""
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
async def test_a_blank_id_is_not_retried_and_sends_nothing(
    name: str, expense_id: str, run: Run, scripted: sites.ScriptedSite
):
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
async def test_an_error_body_is_not_retried(
    name: str, body: str, run: Run, scripted: sites.ScriptedSite
):
    """W4, W5, W6: the body is the message of the application error."""
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
async def test_a_body_outside_the_protocol_is_not_retried(
    name: str, body: str, text: str, run: Run, scripted: sites.ScriptedSite
):
    """W4, W5: the message of the error is the body, cut at 1000 characters."""
    scripted.script(PATHS[name], body)
    error = await failure_of(run, name)
    prefix = "register callback failed status: " if name == contracts.WAIT_FOR_DECISION else ""
    assert isinstance(error, ApplicationError)
    assert (error.message, error.type) == (prefix + text, "UnexpectedAnswer")
    assert not is_retried(error)


@every_activity
@pytest.mark.parametrize("code", [301, 302, 304, 400, 405, 409, 422])
async def test_a_lasting_status_is_not_retried(
    name: str, code: int, run: Run, scripted: sites.ScriptedSite
):
    """W6: another attempt would get the same status. The error keeps the text."""
    scripted.script(PATHS[name], sites.status(code, Location="/list"))
    error = await failure_of(run, name)
    assert isinstance(error, ApplicationError)
    assert error.type == "HTTPStatusError"
    assert re.search(rf"'{code} .*' for url '{scripted.url}{PATHS[name]}\?id=7", error.message)
    assert not is_retried(error)
    assert len(scripted.requests) == 1


@every_activity
@pytest.mark.parametrize("code", [401, 403, 404, 408, 425, 429, 500, 502, 503, 504])
async def test_a_passing_status_is_retried(
    name: str, code: int, run: Run, scripted: sites.ScriptedSite
):
    """W6: as httpx.HTTPStatusError. 401, 403 and 404 say that the worker's token is being replaced
    or the address is wrong, and nothing of the expense; the body does not matter."""
    scripted.script(PATHS[name], sites.status(code, "ERROR:FORBIDDEN"))
    error = await failure_of(run, name)
    assert type(error) is httpx.HTTPStatusError
    assert error.response.status_code == code
    assert is_retried(error)


@every_activity
async def test_a_site_that_is_down_is_retried(name: str):
    """W6: as a network error."""
    async with Site(f"http://127.0.0.1:{free_port()}") as site:
        error = await failure_of(runner(site), name)
    assert type(error) is httpx.ConnectError
    assert is_retried(error)


async def test_an_unknown_host_is_retried():
    """W6: as a network error."""
    async with Site("http://no-such-host.invalid") as site:
        error = await failure_of(runner(site), contracts.CREATE_EXPENSE)
    assert type(error) is httpx.ConnectError
    assert is_retried(error)


@every_activity
async def test_a_lost_reply_is_retried(name: str, run: Run, scripted: sites.ScriptedSite):
    """W6: as a network error."""
    scripted.script(PATHS[name], sites.drop)
    error = await failure_of(run, name)
    assert type(error) is httpx.RemoteProtocolError
    assert is_retried(error)


async def test_a_failure_of_status_retries_the_wait(run: Run, scripted: sites.ScriptedSite):
    """W5, W6: /status fails after the site refused the registration."""
    scripted.script("/registerCallback", "ERROR:INVALID_STATE")
    scripted.script("/status", sites.status(503))
    error = await failure_of(run, contracts.WAIT_FOR_DECISION)
    assert type(error) is httpx.HTTPStatusError
    assert is_retried(error)


@every_activity
async def test_a_silent_site_is_retried(
    name: str, scripted: sites.ScriptedSite, monkeypatch: pytest.MonkeyPatch
):
    """W6: after the time limit of a read."""
    monkeypatch.setattr(worker.site, "READ_SECONDS", 0.2)
    scripted.script(PATHS[name], sites.hang)
    async with Site(scripted.url) as site:
        error = await failure_of(runner(site), name)
    assert type(error) is httpx.ReadTimeout
    assert is_retried(error)


async def test_an_endless_answer_is_cut_off_and_retried(
    scripted: sites.ScriptedSite, monkeypatch: pytest.MonkeyPatch
):
    """W6: by the time limit of the whole request."""
    monkeypatch.setattr(worker.site, "TOTAL_SECONDS", 0.5)
    scripted.script("/create", sites.drip)
    async with Site(scripted.url) as site:
        error = await failure_of(runner(site), contracts.CREATE_EXPENSE)
    assert type(error) is httpx.ReadTimeout
    assert str(error) == "no answer within 0.5 s"
    assert is_retried(error)


async def test_a_host_that_does_not_accept_is_retried(monkeypatch: pytest.MonkeyPatch):
    """W6: after the time limit of connecting."""
    monkeypatch.setattr(worker.site, "CONNECT_SECONDS", 0.2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        # One connection fills the backlog; the kernel answers no further one.
        with socket.create_connection(listener.getsockname()):
            async with Site(f"http://127.0.0.1:{listener.getsockname()[1]}") as site:
                error = await failure_of(runner(site), contracts.CREATE_EXPENSE)
    assert type(error) is httpx.ConnectTimeout
    assert is_retried(error)


def test_a_request_ends_before_its_attempt():
    """W1, W6: the time limits of a request are within the 10 s of an attempt."""
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
async def test_create_and_payment_are_one_get_with_token_and_key(
    name: str, path: str, query: dict[str, str], run: Run, scripted: sites.ScriptedSite
):
    """W4: the idempotency key is the workflow id."""
    assert await run(name) is None
    [request] = scripted.requests
    assert (request.method, request.path, request.query) == ("GET", path, query)
    assert request.form == {}
    assert request.headers["authorization"] == "Bearer secret-token"
    assert request.headers["idempotency-key"] == "expense_7"


async def test_the_wait_registers_its_token_and_ids_and_stays_open(
    run: Run, scripted: sites.ScriptedSite
):
    """W5, E7: the token in hexadecimal, and all three ids."""
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
async def test_a_decision_before_the_registration_is_returned(
    state: str, decision: str, run: Run, scripted: sites.ScriptedSite
):
    """W5: read from /status, without a further registration."""
    scripted.script("/registerCallback", "ERROR:INVALID_STATE")
    scripted.script("/status", state)
    assert await run(contracts.WAIT_FOR_DECISION) == decision
    asked = scripted.requests[1]
    assert (asked.method, asked.path, asked.query) == ("GET", "/status", {"id": "7"})
    assert asked.headers["authorization"] == "Bearer secret-token"
    assert len(scripted.requests) == 2


@pytest.mark.parametrize("state", ["CREATED", "ERROR:INVALID_ID", "approved", "SUCCEED", ""])
async def test_an_undecided_expense_of_another_workflow_is_refused(
    state: str, run: Run, scripted: sites.ScriptedSite
):
    """W5, X7: with an error that is not retried, and without a decision."""
    scripted.script("/registerCallback", "ERROR:INVALID_STATE")
    scripted.script("/status", state)
    error = await failure_of(run, contracts.WAIT_FOR_DECISION)
    assert isinstance(error, ApplicationError)
    assert error.message == "register callback failed status: ERROR:INVALID_STATE"
    assert error.type == "SiteRefused"
    assert not is_retried(error)


async def test_ids_travel_unchanged(site: Site, scripted: sites.ScriptedSite):
    """W4: the site gets any id as it is, and the workflow id of the key in ASCII."""
    expense_id = "a b&c=1/../ü€%41+?#\U0001f600"
    await runner(site, "expense_ü €")(contracts.CREATE_EXPENSE, expense_id)
    [request] = scripted.requests
    assert request.query["id"] == expense_id
    assert request.headers["idempotency-key"] == "expense_%C3%BC%20%E2%82%AC"


async def test_without_a_token_no_authorization_is_sent(scripted: sites.ScriptedSite):
    """E13: for a site in open mode."""
    async with Site(scripted.url) as site:
        await runner(site)(contracts.CREATE_EXPENSE)
    [request] = scripted.requests
    assert "authorization" not in request.headers


async def test_a_proxy_of_the_environment_is_not_used(
    scripted: sites.ScriptedSite, monkeypatch: pytest.MonkeyPatch
):
    """W9, X8: only the site gets the token."""
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
def test_an_unusable_address_or_token_is_refused_unquoted(url: str, token: str):
    """W9, E10: the error never quotes a password or a token."""
    with pytest.raises(ValueError, match=r"^EXPENSES_SITE_(URL|TOKEN) ") as caught:
        Site(url, token)
    assert "cret" not in str(caught.value)


async def test_a_hundred_requests_are_in_flight_together(run: Run, scripted: sites.ScriptedSite):
    """O11: the connection pool delays no activity."""
    together = threading.Barrier(100)

    def answer(handler: sites.Handler) -> None:
        together.wait(5)
        handler.reply("SUCCEED")

    scripted.script("/create", answer)
    await asyncio.gather(*(run(contracts.CREATE_EXPENSE) for _ in range(100)))
    assert len(scripted.requests) == 100


@pytest.mark.parametrize("expense_id", ["7", "50%d off", "two\nlines"])
async def test_each_activity_logs_one_line(
    expense_id: str, site: Site, scripted: sites.ScriptedSite, caplog: pytest.LogCaptureFixture
):
    """W8, E10: the line names the step and the expense."""
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


async def test_each_request_is_logged_without_secrets(
    scripted: sites.ScriptedSite, caplog: pytest.LogCaptureFixture
):
    """W9, E10: by method, path, status and time."""
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
