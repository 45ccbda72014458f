"""The activities of an order against a real HTTP server, and which of their errors Temporal
retries."""

import dataclasses
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, get_type_hints

import httpx
import pytest
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

import worker.site
from tests.servers import free_port
from tests.worker import sites
from tests.worker.test_activities import is_retried
from worker import contracts
from worker.contracts import StepKind
from worker.orders.activities import OrderActivities
from worker.site import Site

ORDER = "0b7fd3c4-6b0b-4d6c-9a0e-0d6f4e1b7a52"
Run = Callable[..., Awaitable[Any]]

REFUSALS = [400, 409, 422]
OTHERS = [301, 302, 304, 401, 403, 404, 405, 408, 425, 429, 500, 502, 503, 504]

UNTIL_IT_SUCCEEDS = [
    name
    for name, step in contracts.STEPS.items()
    if step.kind in (StepKind.UNDO, StepKind.TRANSITION)
]
STEPS = [name for name in contracts.STEPS if name not in UNTIL_IT_SUCCEEDS]
# What the site says to each step.
ANSWERS: dict[str, dict[str, Any]] = {
    **{
        name: json.loads(sites.standing("running"))
        for name, step in contracts.STEPS.items()
        if step.answer is contracts.OrderState
    },
    **{
        name: {"message": "Done: 50% off ü"}
        for name, step in contracts.STEPS.items()
        if step.answer is not contracts.OrderState
    },
}
ANSWERS[contracts.RESERVE_INVENTORY]["reservation_id"] = "RES-1"
ANSWERS[contracts.PROCESS_PAYMENT]["charge_id"] = "TXN-1"
ANSWERS[contracts.UPDATE_WAREHOUSE] |= {
    "tracking_number": "T-1",
    "estimated_delivery": "2026-01-05",
}
every_step = pytest.mark.parametrize("name", STEPS)
every_activity = pytest.mark.parametrize("name", [*STEPS, *UNTIL_IT_SUCCEEDS])


def path(name: str) -> str:
    return f"/orders/{ORDER}/steps/{name}"


def runner(site: Site, *, fail_at: str = "", order: str = ORDER) -> Run:
    """Run the named activity as Temporal would."""
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, workflow_id="order-ü €")
    activities = {
        activity._Definition.must_from_callable(one).name: one
        for one in OrderActivities(site, fail_at=fail_at).all()
    }

    async def run(name: str, *, fail_at: str = "", **details: Any) -> Any:
        asked = contracts.CompensationRequest if details else contracts.StepRequest
        return await environment.run(activities[name], asked(order, 2, fail_at, **details))

    return run


@pytest.fixture
def run(site: Site) -> Run:
    return runner(site)


async def failure_of(run: Run, name: str, **step: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (each test states the type)
        await run(name, **step)
    return caught.value


def problem(code: int, **fields: Any) -> sites.Answer:
    """A refusal as the site's API reports it."""
    body = json.dumps({"type": "about:blank", "status": code, **fields})
    return sites.status(code, body, **{"Content-Type": "application/problem+json"})


def test_each_step_has_an_activity():
    """O2, O5: under the site's own name of the step. Each takes one dataclass and returns the
    answer that the table of the steps names. An undo and the end of an order are retried until they
    succeed."""
    asked = {
        value
        for name, value in vars(contracts).items()
        if name.endswith(("_APPROVAL", "_INVENTORY", "_PAYMENT", "_WAREHOUSE", "_ORDER"))
        or name in ("SEND_CONFIRMATION", "BEGIN_COMPENSATION")
    } - {contracts.APPROVE_ORDER, contracts.REJECT_ORDER}
    assert set(contracts.STEPS) == asked
    for name, step in contracts.STEPS.items():
        method = getattr(OrderActivities, name)
        assert activity._Definition.must_from_callable(method).name == name == step.name
        types = get_type_hints(method)
        compensates = name == contracts.BEGIN_COMPENSATION
        request = contracts.CompensationRequest if compensates else contracts.StepRequest
        assert types == {"request": request, "return": step.answer}
    undoes = {step.undo for step in contracts.STEPS.values() if step.undo}
    ends = {contracts.COMPLETE_ORDER, contracts.BEGIN_COMPENSATION, contracts.CLOSE_ORDER}
    assert set(UNTIL_IT_SUCCEEDS) == undoes | ends


def test_the_table_of_steps_is_frozen():
    """O2: no part of the product changes it."""
    step = contracts.STEPS[contracts.CHECK_INVENTORY]
    with pytest.raises(TypeError):
        contracts.STEPS["more"] = step  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.undo = contracts.RELEASE_INVENTORY  # type: ignore[misc]


@every_activity
async def test_a_step_is_one_post_with_token_and_key(
    name: str, run: Run, scripted: sites.ScriptedSite
):
    """O2, X2: the POST contains the attempt, and for a compensation its reason; the key is the
    workflow id. The activity returns the site's answer, of which it ignores unknown fields."""
    compensates = name == contracts.BEGIN_COMPENSATION
    more = {"failed_step": "", "reason": "50% off ü", "cancelled": False} if compensates else {}
    answer = ANSWERS[name]
    scripted.script(path(name), json.dumps({**answer, "more": [1]}))
    assert await run(name, **more) == contracts.STEPS[name].answer(**answer)
    [request] = scripted.requests
    assert (request.method, request.path, request.query) == ("POST", path(name), {})
    assert request.json == {"attempt": 2, **more}
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == "Bearer secret-token"
    assert request.headers["idempotency-key"] == "order-%C3%BC%20%E2%82%AC"


@pytest.mark.parametrize(
    ("order", "segment"),
    [
        (
            "../../action?type=approve&id=e-1#",
            "%2E%2E%2F%2E%2E%2Faction%3Ftype%3Dapprove%26id%3De-1%23",
        ),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("a/b\\c", "a%2Fb%5Cc"),
        ("a\r\nHost: other\n", "a%0D%0AHost%3A%20other%0A"),
        ("%2e%2e%2f", "%252e%252e%252f"),
        ("//other.example/", "%2F%2Fother%2Eexample%2F"),
        ("http://other.example", "http%3A%2F%2Fother%2Eexample"),
        ("lone \ud83d", "lone%20%3F"),
        ("", ""),
    ],
)
async def test_an_order_is_one_segment_of_the_path(
    order: str, segment: str, scripted: sites.ScriptedSite, site: Site
):
    """X8: any client of Temporal can choose the reference; the worker sends its token to the path
    of the step alone."""
    wanted = f"/orders/{segment}/steps/check_inventory"
    scripted.script(wanted, '{"message": "checked"}')
    assert await runner(site, order=order)(contracts.CHECK_INVENTORY) == contracts.StepResult(
        "checked"
    )
    [request] = scripted.requests
    assert (request.path, request.query) == (wanted, {})
    assert request.headers["host"] == scripted.url.removeprefix("http://")


@every_step
async def test_a_refusal_fails_the_order_with_its_reason(
    name: str, run: Run, scripted: sites.ScriptedSite
):
    """O5: at the first attempt, with the words of the site."""
    scripted.script(path(name), problem(409, detail="Only 5 of SKU-001 are available."))
    error = await failure_of(run, name)
    assert isinstance(error, ApplicationError)
    assert (error.message, error.type) == ("Only 5 of SKU-001 are available.", "SiteRefused")
    assert not is_retried(error)
    assert len(scripted.requests) == 1


@pytest.mark.parametrize("body", ["", "<html>", "[]", "{}", '{"detail": ["a"]}', '{"detail": ""}'])
async def test_a_refusal_without_a_reason_is_named_by_its_status(
    body: str, run: Run, scripted: sites.ScriptedSite
):
    """O5: the order needs some reason."""
    scripted.script(path(contracts.PROCESS_PAYMENT), sites.status(409, body))
    error = await failure_of(run, contracts.PROCESS_PAYMENT)
    assert isinstance(error, ApplicationError)
    assert error.message.startswith("Client error '409 Conflict' for url ")
    assert not is_retried(error)


async def test_a_long_refusal_is_cut(run: Run, scripted: sites.ScriptedSite):
    """O5: at 1000 characters, since the history stores it."""
    scripted.script(path(contracts.PROCESS_PAYMENT), problem(409, detail="x" * 5000))
    error = await failure_of(run, contracts.PROCESS_PAYMENT)
    assert isinstance(error, ApplicationError)
    assert error.message == "x" * 1000


@every_step
async def test_a_refused_step_is_not_retried(name: str, run: Run, scripted: sites.ScriptedSite):
    """O2: another attempt would get the same refusal."""
    scripted.script(path(name), *(sites.status(code) for code in REFUSALS))
    for code in REFUSALS:
        error = await failure_of(run, name)
        assert isinstance(error, ApplicationError)
        assert (error.type, f"'{code} " in error.message) == ("SiteRefused", True)
        assert not is_retried(error)


@every_activity
async def test_every_other_status_is_retried(name: str, run: Run, scripted: sites.ScriptedSite):
    """O2, O5, W6: an undo and the end of an order are retried after a refusal as well."""
    codes = [*REFUSALS, *OTHERS] if name in UNTIL_IT_SUCCEEDS else OTHERS
    scripted.script(path(name), *(sites.status(code) for code in codes))
    for code in codes:
        error = await failure_of(run, name)
        assert isinstance(error, httpx.HTTPStatusError)
        assert error.response.status_code == code
        assert is_retried(error)


@every_activity
async def test_a_site_that_does_not_answer_is_retried(
    name: str, scripted: sites.ScriptedSite, monkeypatch: pytest.MonkeyPatch
):
    """O2, W6: the site is down, closes the connection, or says nothing."""
    monkeypatch.setattr(worker.site, "READ_SECONDS", 0.2)
    scripted.script(path(name), sites.drop, sites.hang)
    seen = []
    for url in (f"http://127.0.0.1:{free_port()}", scripted.url, scripted.url):
        async with Site(url) as site:
            seen.append(await failure_of(runner(site), name))
    assert [type(error) for error in seen] == [
        httpx.ConnectError,
        httpx.RemoteProtocolError,
        httpx.ReadTimeout,
    ]
    assert all(is_retried(error) for error in seen)


@every_activity
async def test_an_answer_of_another_site_is_retried(
    name: str, run: Run, scripted: sites.ScriptedSite
):
    """O2, O5: EXPENSES_SITE_URL may lead to another program; its answer must not reach the
    history."""
    half = {**json.loads(sites.standing("completed"))}
    del half["verdict"]
    bodies = ["", "SUCCEED", "<html>", '"message"', "[]", "null", "{}", json.dumps(half)]
    for field, value in ANSWERS[name].items():
        rest = {other: said for other, said in ANSWERS[name].items() if other != field}
        bodies += [json.dumps(rest), json.dumps({**rest, field: [value]})]
    if contracts.STEPS[name].answer is contracts.OrderState:
        # No timer can wait for these, or the workflow would ask again without a pause.
        waits = [None, "1", 1.5, 0, -1, contracts.LONGEST_APPROVAL_SECONDS + 1, 10**30]
        bodies += [sites.standing("pending", seconds_left=one) for one in waits]
    scripted.script(path(name), *bodies)
    for _ in bodies:
        error = await failure_of(run, name)
        assert isinstance(error, ApplicationError)
        assert error.type == "UnexpectedAnswer"
        assert error.message == "The answer is not the expense site's. Correct EXPENSES_SITE_URL."
        assert is_retried(error)


@pytest.mark.parametrize("of_the_worker", [True, False], ids=["worker", "order"])
@pytest.mark.parametrize("point", contracts.FAIL_AT)
async def test_an_injected_failure_comes_once_after_the_effect(
    point: str, of_the_worker: bool, site: Site, scripted: sites.ScriptedSite
):
    """O6: it is not retried, and every other step is done."""
    run = runner(site, fail_at=point if of_the_worker else "")
    of_the_order = {} if of_the_worker else {"fail_at": point}
    sites.script_order(scripted, ORDER, {})
    for name in (*STEPS, *UNTIL_IT_SUCCEEDS):
        if name != contracts.FAIL_AT[point]:
            assert await run(name, **of_the_order)
            continue
        error = await failure_of(run, name, **of_the_order)
        assert isinstance(error, ApplicationError)
        assert (error.message, error.type) == (f"injected failure at {point}", "InjectedFailure")
        assert not is_retried(error)
        assert len(scripted.requests_to(path(name))) == 1


async def test_no_failure_is_injected_before_the_effect(run: Run, scripted: sites.ScriptedSite):
    """O6: a step that the site did not do fails for its own reason and is retried."""
    scripted.script(path(contracts.PROCESS_PAYMENT), sites.status(503))
    error = await failure_of(run, contracts.PROCESS_PAYMENT, fail_at="payment")
    assert is_retried(error)


async def test_each_step_logs_one_line_without_texts_of_people(
    run: Run, scripted: sites.ScriptedSite, caplog: pytest.LogCaptureFixture
):
    """E10: the line names the step and the order."""
    caplog.set_level(logging.INFO)
    sites.script_order(scripted, ORDER, {})
    await run(contracts.BEGIN_COMPENSATION, reason="bad customer")
    said = [r.getMessage().split(" ({")[0] for r in caplog.records if "activity" in r.name]
    assert said == [f"Order {ORDER!r}: begin_compensation done"]
    asked = [r.getMessage() for r in caplog.records if r.name == "worker.site"]
    assert [re.sub(r"\d+ ms", "N ms", line) for line in asked] == [
        f"POST {path(contracts.BEGIN_COMPENSATION)} 200 in N ms"
    ]
    assert "bad customer" not in caplog.text
