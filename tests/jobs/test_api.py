"""Jobs over HTTP, with a real Temporal server and a real worker."""

import asyncio
import re
import signal
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from django.test import Client as Browser
from temporalio.api.workflowservice.v1 import PauseWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle

from access import groups
from temporal import loop
from tests import factories
from tests.conftest import Unchanged
from tests.jobs.conftest import Working, failing, hanging
from tests.servers import FAST, TemporalServer, eventually
from worker import contracts

pytestmark = pytest.mark.django_db

JOBS = ("/jobs", "/jobs/", "/api/v1/jobs", "/api/v1/jobs/")
BODY = {"msg": "Temporal"}
AT_ONCE = {"Prefer": "wait=0"}


class Program(Browser):
    """A program with a token of a person in these groups."""

    def __init__(self, *group_names: str) -> None:
        super().__init__(headers=factories.bearer(factories.user(*group_names)))


@pytest.fixture
def operator() -> Program:
    return Program(groups.OPERATOR)


def submit(client: Browser, body: Any = None, path: str = "/jobs", **headers: str) -> Any:
    body = BODY if body is None else body
    return client.post(path, body, "application/json", headers=headers)


def problem(response: Any, status: int) -> dict[str, Any]:
    """The problem details of a refusal; asserts that they are whole."""
    assert (response.status_code, response["Content-Type"]) == (status, "application/problem+json")
    details: dict[str, Any] = response.json()
    assert (details["type"], details["status"]) == ("about:blank", status)
    return details


def described(client: Browser, job_id: str, root: str = "") -> dict[str, Any]:
    """The state of a run, without its id and with true times."""
    response = client.get(f"{root}/jobs/{quote(job_id, safe='')}")
    assert response.status_code == 200, response.content
    state: dict[str, Any] = response.json()
    assert state.pop("job_id") == job_id
    for name in ("start_time", "end_time"):
        if (text := state[name]) is not None:
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", text)
            state[name] = datetime.fromisoformat(text)
    return state


def run_id() -> str:
    return contracts.job_workflow_id(uuid.uuid4())


@pytest.fixture
def started(temporal: str) -> Callable[..., str]:
    """Start a workflow, by default a job's; its id."""

    def start(
        workflow_id: str | None = None,
        workflow: str = contracts.JOB_WORKFLOW,
        argument: Any = contracts.Job("Temporal"),  # noqa: B008 (frozen)
        queue: str = contracts.JOB_QUEUE,
        **options: Any,
    ) -> str:
        async def started() -> str:
            client = await Client.connect(temporal)
            handle = await client.start_workflow(
                workflow, argument, id=workflow_id or run_id(), task_queue=queue, **options
            )
            return handle.id

        return asyncio.run(started())

    return start


@pytest.fixture
def told(temporal: str) -> Callable[..., None]:
    """Do something to the run under an id."""

    def tell(workflow_id: str, what: Callable[[WorkflowHandle[Any, Any]], Any]) -> None:
        async def tell() -> None:
            client = await Client.connect(temporal)
            await what(client.get_workflow_handle(workflow_id))

        asyncio.run(tell())

    return tell


# Running a job


@pytest.mark.parametrize("path", JOBS)
def test_a_job_answers_with_its_result(
    temporal: str, working: Working, operator: Program, path: str
) -> None:
    """J1, J2: a job is answered with its result, and described under its id."""
    before = datetime.now(UTC)
    with working():
        response = submit(operator, path=path)
    assert response.status_code == 200
    job_id = response.json()["job_id"]
    assert response.json() == {"job_id": job_id, "result": {"attempt": 1, "msg": "Hello Temporal"}}
    prefix, unique = job_id[:19], job_id[19:]
    assert (prefix, str(uuid.UUID(unique))) == ("say-hello-workflow-", unique)
    assert response["Location"] == f"{path.rstrip('/')}/{job_id}"
    for place in (response["Location"], response["Location"] + "/"):
        state = operator.get(place).json()
        assert set(state) == {"job_id", "status", "start_time", "end_time", "attempt"}
    state = described(operator, job_id)
    assert before - timedelta(seconds=1) < state.pop("start_time") <= state.pop("end_time")
    assert state == {"status": 2, "attempt": 1}


@pytest.mark.parametrize("msg", [" ", "é😀\n%s <b>", "x" * 2000], ids=ascii)
def test_a_message_comes_back_unchanged(
    temporal: str, working: Working, operator: Program, msg: str
) -> None:
    """J1: the message comes back unchanged; unknown fields are ignored."""
    with working():
        response = submit(operator, {"msg": msg, "fail_first_attempt": False, "more": [1]})
    assert response.json()["result"] == {"attempt": 1, "msg": f"Hello {msg}"}


def test_a_failed_first_attempt_is_repeated(
    temporal: str, working: Working, operator: Program
) -> None:
    """J2, J3: it fails once, then succeeds with attempt 2."""
    with working():
        answer = submit(operator, BODY | {"fail_first_attempt": True}).json()
    assert answer["result"] == {"attempt": 2, "msg": "Hello Temporal"}
    state = described(operator, answer["job_id"])
    assert (state["status"], state["attempt"]) == (2, 2)


def test_a_failed_job_answers_502_with_its_cause(
    temporal: str, working: Working, operator: Program
) -> None:
    """J1, J2, J3: after three failed attempts the answer names the job and the cause."""
    with working(failing):
        details = problem(submit(operator), 502)
    assert details["code"] == "job_failed"
    job_id = details["detail"].split()[2]
    assert details["detail"] == f"The job {job_id} failed: RuntimeError: no hello"
    state = described(operator, job_id)
    assert state.pop("start_time") < state.pop("end_time")
    assert state == {"status": 3, "attempt": 3, "reason": "failed: RuntimeError: no hello"}


def test_without_a_worker_the_answer_is_202_with_the_id(
    temporal: str, working: Working, operator: Program
) -> None:
    """J1, J2: without a worker 202 with the id, then RUNNING with no attempt; once a worker comes
    the job completes."""
    began = time.monotonic()
    response = submit(operator, Prefer="wait=1")
    assert time.monotonic() - began >= 1
    assert (response.status_code, list(response.json())) == (202, ["job_id"])
    job_id = response.json()["job_id"]
    assert response["Location"] == f"/jobs/{job_id}"
    state = described(operator, job_id)
    assert state.pop("start_time")
    assert state == {"status": 1, "end_time": None, "attempt": 0}
    with working():
        eventually(lambda: described(operator, job_id)["status"] == 2)


def test_a_client_that_does_not_wait_gets_202_at_once(
    temporal: str, working: Working, operator: Program
) -> None:
    """J1: `wait=0` is answered at once."""
    response = submit(operator, **AT_ONCE)
    assert response.status_code == 202
    with working():
        eventually(lambda: described(operator, response.json()["job_id"])["status"] == 2)


def test_without_a_free_thread_the_answer_is_202_at_once(
    temporal: str, working: Working, operator: Program, no_free_thread: None
) -> None:
    """J1: at most half of the threads wait; the next job is answered 202 at once, and runs."""
    response = submit(operator, Prefer="wait=60")
    assert response.status_code == 202
    with working():
        eventually(lambda: described(operator, response.json()["job_id"])["status"] == 2)


# How a run stands


def test_a_running_job_shows_its_highest_attempt(
    working: Working,
    operator: Program,
    started: Callable[..., str],
    told: Callable[..., None],
) -> None:
    """J2: the attempt under way counts, the next one does not before it begins. A terminated run
    keeps its attempts."""
    job_id = started()
    assert described(operator, job_id)["attempt"] == 0
    with working(hanging):
        eventually(lambda: described(operator, job_id)["attempt"] == 1)
    # The worker gave it up as it ended, so the second attempt waits for another worker.
    told(job_id, lambda handle: handle.terminate(reason="as said"))
    state = described(operator, job_id)
    assert (state["status"], state["attempt"], state["reason"]) == (3, 1, "terminated: as said")


def test_a_paused_run_is_running(
    asking: None, operator: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J2: a run that somebody paused is RUNNING."""
    job_id = run_id()

    async def start_and_pause(address: str) -> None:
        client = await Client.connect(address)
        job = contracts.Job("Temporal")
        await client.start_workflow(contracts.JOB_WORKFLOW, job, id=job_id, task_queue="none")
        await client.workflow_service.pause_workflow_execution(
            PauseWorkflowExecutionRequest(namespace="default", workflow_id=job_id)
        )

    with TemporalServer(config=[*FAST, "frontend.WorkflowPauseEnabled=true"]) as server:
        monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
        asyncio.run(start_and_pause(server.address))
        state = described(operator, job_id)
    assert (state["status"], state["end_time"], state["attempt"]) == (1, None, 0)


def test_a_cancelled_run_is_failed_with_its_reason(
    working: Working,
    operator: Program,
    started: Callable[..., str],
    told: Callable[..., None],
) -> None:
    """J2: a cancelled run is FAILED, with the reason."""
    job_id = started()
    with working(hanging):
        eventually(lambda: described(operator, job_id)["attempt"] == 1)
        told(job_id, lambda handle: handle.cancel())
        state = eventually(lambda: (s := described(operator, job_id))["end_time"] and s)
    assert (state["status"], state["attempt"], state["reason"]) == (3, 1, "cancelled")


def test_terminated_and_timed_out_runs_are_failed_with_their_reason(
    operator: Program, started: Callable[..., str], told: Callable[..., None]
) -> None:
    """J2: so is a terminated one, with what was said of it, and one whose time was over."""
    terminated, timed_out = started(), started(execution_timeout=timedelta(seconds=1))
    told(terminated, lambda handle: handle.terminate(reason="by hand, 50%"))
    for job_id, reason in ((terminated, "terminated: by hand, 50%"), (timed_out, "timed out")):
        state = eventually(
            lambda job_id=job_id: (s := described(operator, job_id))["end_time"] and s
        )
        assert (state["status"], state["attempt"], state["reason"]) == (3, 0, reason)


@pytest.mark.parametrize(
    ("workflow", "name"),
    [
        (contracts.EXPENSE_WORKFLOW, "expense_"),
        (contracts.ORDER_WORKFLOW, "order-"),
        *((contracts.JOB_WORKFLOW, name) for name in (" a b ", "50%25 é😀", "a/b/", "a\nb", "?#;")),
    ],
    ids=ascii,
)
def test_workflows_of_expenses_and_orders_are_found(
    operator: Program,
    started: Callable[..., str],
    told: Callable[..., None],
    workflow: str,
    name: str,
) -> None:
    """J2: expenses and orders too, whatever characters the id has."""
    workflow_id = started(f"{uuid.uuid4()}{name}", workflow, "nobody works it", "none")
    for root in ("", "/api/v1"):
        if not workflow_id.endswith("/"):  # a slash at the end belongs to the path
            assert described(operator, workflow_id, root)["status"] == 1
        response = operator.get(f"{root}/jobs/{quote(workflow_id, safe='')}/")
        assert response.json()["job_id"] == workflow_id
    told(workflow_id, lambda handle: handle.terminate())
    response = operator.get(f"/jobs/{quote(workflow_id, safe='')}/")
    assert response.json()["status"] == 3


@pytest.mark.parametrize("job_id", ["nope", " ", "\0", "\ufffd", "\n", "/", "x" * 5000], ids=ascii)
def test_an_unknown_id_is_404(temporal: str, operator: Program, job_id: str) -> None:
    """J2: an unknown id is 404, as problem details."""
    for root in ("", "/api/v1"):
        problem(operator.get(f"{root}/jobs/{quote(job_id, safe='')}"), 404)


def test_a_workflow_of_another_type_is_404(
    operator: Program, started: Callable[..., str], told: Callable[..., None]
) -> None:
    """J2: a workflow of another project in the same namespace is not described."""
    workflow_id = started(workflow="Foreign", queue="none")
    problem(operator.get(f"/jobs/{workflow_id}"), 404)
    told(workflow_id, lambda handle: handle.terminate())


# Temporal that does not answer


def unavailable(response: Any, detail: str | None = None) -> None:
    details = problem(response, 503)
    assert details["code"] == "temporal_unavailable"
    assert details["detail"] == detail or (
        detail is None and "does not answer" in details["detail"]
    )
    assert response["Retry-After"] == "2"


def test_without_temporal_the_answer_is_503(
    no_temporal: None, operator: Program, unchanged: Unchanged
) -> None:
    """J1, J2: Temporal that is down is told at once, with when to come again; nothing is left
    behind."""
    with unchanged():
        unavailable(submit(operator), "Temporal at 127.0.0.1:1 does not answer.")
        for root in ("", "/api/v1"):
            unavailable(submit(operator, path=f"{root}/jobs"))
            unavailable(operator.get(f"{root}/jobs/x"))


def test_an_unknown_namespace_is_503_and_not_404(
    temporal: str, operator: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J2: a namespace that Temporal does not know is no unknown job."""
    monkeypatch.setenv("TEMPORAL_NAMESPACE", "none-such")
    detail = "Temporal does not know the namespace; check TEMPORAL_ADDRESS and TEMPORAL_NAMESPACE."
    unavailable(submit(operator), detail)
    unavailable(operator.get("/jobs/x"), detail)


def test_a_frozen_temporal_is_given_up_in_seconds(
    asking: None,
    operator: Program,
    unchanged: Unchanged,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """J1, J2: Temporal that is silent is given up in seconds, then at once, until it may be asked
    again."""
    with TemporalServer() as server, unchanged():
        monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
        problem(operator.get("/jobs/x"), 404)
        server.signal(signal.SIGSTOP)
        monkeypatch.setattr(loop, "PAUSE_SECONDS", 3600.0)
        began = time.monotonic()
        unavailable(submit(operator))
        assert time.monotonic() - began < 8
        server.signal(signal.SIGCONT)
        unavailable(operator.get("/jobs/x"))
        monkeypatch.setattr(loop.current(), "_down_until", 0.0)
        problem(operator.get("/jobs/x"), 404)


# What is refused. Without Temporal, whatever reached it would be answered 503.


@pytest.mark.parametrize(
    ("body", "field"),
    [
        *(({"msg": msg}, "msg") for msg in ("", None, 1, True, [], {}, "x" * 2001, "\0", "\ud800")),
        *(({}, "msg"), ({"MSG": "x"}, "msg")),
        *((BODY | {"fail_first_attempt": wrong}, "fail_first_attempt") for wrong in (None, "true")),
        *((BODY | {"fail_first_attempt": wrong}, "fail_first_attempt") for wrong in (2, "no", [])),
        *(([], "non_field_errors"), ("x", "non_field_errors")),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_wrong_body_is_refused_by_field(
    no_temporal: None, operator: Program, body: Any, field: str
) -> None:
    """J1: a wrong field is named, and nothing is started."""
    if isinstance(body, str):
        body = f'"{body}"'
    details = problem(submit(operator, body), 400)
    assert list(details["errors"]) == [field]


def test_a_body_that_is_no_json_is_refused(no_temporal: None, operator: Program) -> None:
    """J1: so is a body that is no JSON, or not said to be."""
    problem(submit(operator, "{"), 400)
    problem(operator.post("/jobs", BODY), 415)


@pytest.mark.parametrize("path", JOBS)
def test_other_methods_are_405(no_temporal: None, operator: Program, path: str) -> None:
    """J1, J2: other methods are refused as problem details."""
    problem(operator.get(path), 405)
    problem(operator.put(path), 405)
    problem(operator.post(f"{path.rstrip('/')}/x"), 405)
    problem(operator.delete(f"{path.rstrip('/')}/x"), 405)


@pytest.mark.parametrize("group", groups.NAMES)
def test_groups_without_the_permission_are_refused(no_temporal: None, group: str) -> None:
    """J1, J2, X8, X10: operators and workers run jobs; anyone signed in reads how they stand. The
    workflows of expenses and orders are found by those alone who see all of these."""
    program = Program(group)
    for path in JOBS:
        may = group in (groups.OPERATOR, groups.WORKER)
        details = problem(submit(program, path=path), 503 if may else 403)
        if not may:
            assert details["detail"] == "You may not run jobs; ask for the Operator group."
        problem(program.get(f"{path.rstrip('/')}/say-hello-workflow-x"), 503)
        for workflow_id in ("expense_x", "order-x", "x"):
            found = program.get(f"{path.rstrip('/')}/{workflow_id}")
            problem(found, 404 if group == groups.EMPLOYEE else 503)


def test_anonymous_requests_are_refused(no_temporal: None, client: Browser) -> None:
    """J1, J2, X8: in mode token nobody runs or reads jobs without signing in."""
    for path in JOBS:
        for response in (submit(client, path=path), client.get(f"{path.rstrip('/')}/x")):
            problem(response, 401)
            assert response["WWW-Authenticate"] == "Bearer"


def test_open_access_runs_jobs_without_a_sign_in(
    temporal: str, working: Working, local: Browser
) -> None:
    """J1, J2, X8: at the local installation nobody signs in, but under /api/v1/."""
    with working():
        response = submit(local)
    assert response.status_code == 200
    assert described(local, response.json()["job_id"])["status"] == 2
    problem(submit(local, path="/api/v1/jobs"), 401)
    problem(submit(local, **{"Sec-Fetch-Site": "cross-site"}), 403)


def test_switched_off_root_routes_are_404(
    no_temporal: None, operator: Program, settings: Any
) -> None:
    """J1, J2, X8: switched off, the root has no jobs; /api/v1/ has."""
    settings.EXPENSES_PROTOCOL_ACCESS = "off"
    problem(submit(operator), 404)
    problem(operator.get("/jobs/x"), 404)
    problem(submit(operator, path="/api/v1/jobs"), 503)
