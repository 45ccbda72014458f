"""`manage.py smoke` against a running site, and against what is none."""

import io
import re
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from access import groups
from jobs.management.commands import smoke
from tests import factories
from tests.jobs.conftest import Working, failing, hanging
from tests.servers import free_port
from tests.worker import sites


@pytest.fixture
def site(live_server: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of this site, running at a local installation; nobody waits long for a worker."""
    settings.EXPENSES_PROTOCOL_ACCESS = "open"
    monkeypatch.setattr(smoke, "JOB_SECONDS", 1.0)
    at(live_server.url, settings, monkeypatch)
    return str(live_server.url)


def at(url: str, settings: Any, monkeypatch: pytest.MonkeyPatch, token: str = "") -> None:
    settings.EXPENSES_SITE_URL = url
    monkeypatch.setenv("EXPENSES_SITE_TOKEN", token)


def good() -> list[str]:
    """The lines it says when all is well."""
    output = io.StringIO()
    call_command("smoke", stdout=output, no_color=True)
    return output.getvalue().splitlines()


def bad() -> tuple[list[str], str]:
    """The parts that are well, and what it says of the one that is not, before it exits with 1."""
    output = io.StringIO()
    with pytest.raises(CommandError) as error:
        call_command("smoke", stdout=output, no_color=True)
    assert error.value.returncode == 1
    return output.getvalue().splitlines(), str(error.value)


def test_it_reports_each_part_and_the_round_trip(
    site: str, temporal: str, working: Working
) -> None:
    """J1: site, Temporal, worker, and the round-trip time."""
    with working():
        lines = good()
    assert lines[:-1] == [f"Site at {site}: ok", "Temporal: ok", "Worker: ok"]
    assert re.fullmatch(r"Round trip: \d+ ms", lines[-1])


def test_the_token_of_a_permitted_user_is_needed(
    site: str,
    temporal: str,
    working: Working,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """J1, X8: elsewhere it needs the token of a user who may run jobs, and names that."""
    settings.EXPENSES_PROTOCOL_ACCESS = "token"
    tokens = {
        "": 401,
        "nonsense": 401,
        factories.token(factories.user(groups.EMPLOYEE)): 403,
    }
    for token, status in tokens.items():
        at(site, settings, monkeypatch, token)
        assert bad() == (
            [],
            f"Site at {site}: it refuses the request ({status}). Set EXPENSES_SITE_TOKEN to the "
            "token of a user in the group Worker or Operator.",
        )
    at(site, settings, monkeypatch, factories.token(factories.user(groups.WORKER)) + "\n")
    with working():
        assert "Worker: ok" in good()


def test_a_busy_site_is_asked_again(
    site: str, temporal: str, working: Working, no_free_thread: None
) -> None:
    """J1: where the site has no thread to wait with, it asks until the job has ended."""
    with working():
        assert "Worker: ok" in good()


def test_a_missing_worker_is_named(site: str, temporal: str, working: Working) -> None:
    """J1: a job that nobody takes means that there is no worker."""
    well, said = bad()
    assert well == [f"Site at {site}: ok", "Temporal: ok"]
    assert re.fullmatch(
        r"Worker: The job say-hello-workflow-\S+ found no worker within 1 s\. "
        r"Start one \(`make up`, or `\./manage\.py runworker`\)\.",
        said,
    )


def test_a_hanging_worker_is_named_with_its_attempt(
    site: str, temporal: str, working: Working
) -> None:
    """J1: a worker that took the job and does not get on is another fault."""
    with working(hanging):
        well, said = bad()
    assert well == [f"Site at {site}: ok", "Temporal: ok"]
    assert re.fullmatch(
        r"Worker: The job \S+ is still in its attempt 1 after 1 s\. See the worker's log\.", said
    )


@pytest.mark.parametrize("busy", [False, True])
def test_a_failing_worker_is_named_with_the_cause(
    site: str,
    temporal: str,
    working: Working,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    busy: bool,
) -> None:
    """J1: a job that failed is told with its cause, by whichever answer it is learned."""
    monkeypatch.setattr(smoke, "JOB_SECONDS", 30.0)
    if busy:
        request.getfixturevalue("no_free_thread")
    with working(failing):
        well, said = bad()
    assert well == [f"Site at {site}: ok", "Temporal: ok"]
    cause = r"failed: RuntimeError: no hello\. See the worker's log\."
    assert re.fullmatch(rf"Worker: The job \S+ {cause}", said)


def test_a_missing_temporal_is_named(site: str, no_temporal: None) -> None:
    """J1: Temporal that does not answer the site."""
    assert bad() == (
        [f"Site at {site}: ok"],
        "Temporal: Temporal at 127.0.0.1:1 does not answer. Start it (`make up`), or set "
        "TEMPORAL_ADDRESS for the site.",
    )


def test_a_site_without_jobs_is_named(site: str, settings: Any) -> None:
    """J1, X8: without the plain endpoints there is nothing to ask."""
    settings.EXPENSES_PROTOCOL_ACCESS = "off"
    assert bad() == (
        [],
        f"Site at {site}: it has no jobs (404). Set EXPENSES_PROTOCOL_ACCESS on the site to "
        "token, or correct EXPENSES_SITE_URL.",
    )


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "http://a:b", ""])
def test_an_unreachable_site_is_named(
    settings: Any, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """J1: a site that is not there, and an address that can be none."""
    url = url.format(port=free_port())
    at(url, settings, monkeypatch)
    well, said = bad()
    assert well == []
    assert re.fullmatch(
        rf"Site at {re.escape(url)}: it cannot be reached \(\w+\)\. Start it \(`make up`\), or "
        r"correct EXPENSES_SITE_URL\.",
        said,
    )


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("<html>", "what answers there is not the expense site. Correct EXPENSES_SITE_URL."),
        ('{"ok": 1}', "what answers there is not the expense site. Correct EXPENSES_SITE_URL."),
        ("[]", "what answers there is not the expense site. Correct EXPENSES_SITE_URL."),
        *(
            (
                sites.status(code, body),
                f"it answers {code}. See the site's log, or correct EXPENSES_SITE_URL.",
            )
            for code in (302, 500, 502, 503)
            for body in ("<html>", '{"code": "database_unavailable"}')
        ),
    ],
)
def test_answers_of_another_program_are_named(
    settings: Any, monkeypatch: pytest.MonkeyPatch, answer: sites.Answer, fault: str
) -> None:
    """J1: what is not the site's answer to a job is the site's fault, not Temporal's."""
    with sites.scripted_site() as server:
        server.script("/jobs", answer)
        at(server.url, settings, monkeypatch)
        assert bad() == ([], f"Site at {server.url}: {fault}")


@pytest.mark.parametrize("token", ["a\nb", "é"])
def test_a_token_that_no_header_carries_is_named_and_not_shown(
    settings: Any, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """J1, X8: a token that no header carries is refused, and not shown."""
    at("http://127.0.0.1:1", settings, monkeypatch, token)
    said = "Site at http://127.0.0.1:1: EXPENSES_SITE_TOKEN has characters that a header cannot "
    assert bad() == ([], f"{said}carry.")
