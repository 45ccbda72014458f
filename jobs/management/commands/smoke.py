"""`manage.py smoke`: run a job on the running site, and name the part that fails."""

import os
import time
from typing import Any, Final

import httpx
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from jobs.services import Status

SITE, TEMPORAL, WORKER = PARTS = ("Site", "Temporal", "Worker")
JOB_SECONDS: Final = 10.0
# The time for an answer of the site, which itself waits half as long for Temporal.
ANSWER_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.2


class PartFailed(Exception):
    """A part does not work; the text is the cause and its remedy."""

    def __init__(self, part: str, text: str) -> None:
        self.part = part
        super().__init__(text)


class Command(BaseCommand):
    help = (
        "Run a job on the running site (POST /jobs at EXPENSES_SITE_URL, with the token of "
        "EXPENSES_SITE_TOKEN if it is set) and report on the site, Temporal and the worker, and "
        "the round-trip time. Where a part does not work, name the cause and the remedy, and "
        "exit with 1."
    )
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            milliseconds = round(_round_trip() * 1000)
        except PartFailed as failure:
            self._say_ok(*PARTS[: PARTS.index(failure.part)])
            raise CommandError(f"{_name(failure.part)}: {failure}") from failure
        self._say_ok(*PARTS)
        self.stdout.write(f"Round trip: {milliseconds} ms")

    def _say_ok(self, *parts: str) -> None:
        for part in parts:
            self.stdout.write(f"{_name(part)}: {self.style.SUCCESS('ok')}")


def _name(part: str) -> str:
    return f"{SITE} at {settings.EXPENSES_SITE_URL}" if part == SITE else part


def _round_trip() -> float:
    """Run a job, and return how many seconds it took. Raises PartFailed."""
    token = os.environ.get("EXPENSES_SITE_TOKEN", "").strip()
    # The HTTP library quotes a header that it refuses.
    if not (token.isascii() and token.isprintable()):
        raise PartFailed(SITE, "EXPENSES_SITE_TOKEN has characters that a header cannot carry.")
    try:
        with httpx.Client(
            base_url=settings.EXPENSES_SITE_URL,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            timeout=JOB_SECONDS + ANSWER_SECONDS,
            trust_env=False,  # no proxy: the token goes to the site alone
        ) as site:
            began = time.monotonic()
            _run_job(site, end=began + JOB_SECONDS)
            return time.monotonic() - began
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise PartFailed(
            SITE,
            f"it cannot be reached ({type(error).__name__}). Start it (`make up`), or correct "
            "EXPENSES_SITE_URL.",
        ) from error


def _run_job(site: httpx.Client, *, end: float) -> None:
    wait = {"Prefer": f"wait={JOB_SECONDS:g}"}
    answer = _read(site.post("/jobs", json={"msg": "smoke"}, headers=wait))
    if "result" in answer:
        return
    # The time is over, or the site answered at once since half of its threads waited already.
    job = f"The job {answer['job_id']}"
    place = f"/jobs/{answer['job_id']}"
    while (run := _read(site.get(place)))["status"] == Status.RUNNING and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    match run["status"], run["attempt"]:
        case Status.COMPLETED, _:
            return
        case Status.RUNNING, 0:
            raise PartFailed(
                WORKER,
                f"{job} found no worker within {JOB_SECONDS:g} s. Start one (`make up`, or "
                "`./manage.py runworker`).",
            )
        case Status.RUNNING, attempt:
            text = f"is still in its attempt {attempt} after {JOB_SECONDS:g} s"
        case _:
            text = run["reason"]
    raise PartFailed(WORKER, f"{job} {text}. See the worker's log.")


def _read(answer: httpx.Response) -> dict[str, Any]:
    """The body of a good answer. Raises PartFailed for any other."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {}
    match answer.status_code, body.get("code"):
        case 200 | 202, _ if "job_id" in body:
            return body
        case 200 | 202, _:
            fault = "what answers there is not the expense site. Correct EXPENSES_SITE_URL."
        case (401 | 403) as status, _:
            fault = (
                f"it refuses the request ({status}). Set EXPENSES_SITE_TOKEN to the token of a "
                "user in the group Worker or Operator."
            )
        case 404, _:
            fault = (
                "it has no jobs (404). Set EXPENSES_PROTOCOL_ACCESS on the site to token, or "
                "correct EXPENSES_SITE_URL."
            )
        case 502, "job_failed":
            raise PartFailed(WORKER, f"{body['detail']}. See the worker's log.")
        case 503, "temporal_unavailable":
            raise PartFailed(
                TEMPORAL,
                f"{body['detail']} Start it (`make up`), or set TEMPORAL_ADDRESS for the site.",
            )
        case status, _:
            fault = f"it answers {status}. See the site's log, or correct EXPENSES_SITE_URL."
    raise PartFailed(SITE, fault)
