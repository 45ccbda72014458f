"""The activities of an order: each asks the site for one step, under the step's own name.

Not retried: what the site refuses (409, with its reason) or cannot read (400, 422). Everything else
is, without an end: a network error, 5xx, an answer that is not the site's, and 401, 403 or 404,
which tell of this worker's token or of a wrong address, and not of the order. What undoes a step,
and what ends an order, is retried whatever goes wrong, since nothing else could mend it (O5).
Log messages come without arguments: the SDK appends the ids to the format, and an id may hold a %.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import quote

import httpx
from temporalio import activity
from temporalio.exceptions import ApplicationError

from worker import contracts
from worker.site import Site

STEPS: Final = (
    contracts.AWAIT_APPROVAL,
    contracts.SETTLE_APPROVAL,
    contracts.CHECK_INVENTORY,
    contracts.RESERVE_INVENTORY,
    contracts.PROCESS_PAYMENT,
    contracts.UPDATE_WAREHOUSE,
    contracts.SEND_CONFIRMATION,
)
UNTIL_IT_SUCCEEDS: Final = (
    contracts.COMPLETE_ORDER,
    contracts.BEGIN_COMPENSATION,
    contracts.REVERT_WAREHOUSE,
    contracts.REFUND_PAYMENT,
    contracts.RELEASE_INVENTORY,
    contracts.CLOSE_ORDER,
)
_REFUSALS: Final = frozenset({400, 409, 422})
# What an answer has, whatever else: another one would stand in the history for ever.
_STANDING: Final = frozenset({"state", "verdict", "approval_reason", "reason"})
_EXPECTED: Final = dict.fromkeys((*STEPS, *UNTIL_IT_SUCCEEDS), frozenset({"message"})) | {
    contracts.AWAIT_APPROVAL: _STANDING,
    contracts.SETTLE_APPROVAL: _STANDING,
    contracts.COMPLETE_ORDER: _STANDING,
    contracts.BEGIN_COMPENSATION: _STANDING,
    contracts.CLOSE_ORDER: _STANDING,
}
# After these a pending order says in how many seconds it is to be asked about again.
_WAITS: Final = (contracts.AWAIT_APPROVAL, contracts.SETTLE_APPROVAL)
# A failure is stored in the history for each waiting caller to read.
_MESSAGE_LIMIT: Final = 1000

Activity = Callable[[contracts.Step], Awaitable[dict[str, Any]]]


class OrderActivities:
    """The activities of OrderWorkflow, bound to one site.

    `fail_at`, a key of contracts.FAIL_AT, has that step of every order fail after its effect
    (requirements O6).
    """

    def __init__(self, site: Site, *, fail_at: str = "") -> None:
        self._site = site
        self._fail_at = fail_at

    def all(self) -> list[Activity]:
        """What a worker registers."""
        return [
            *(self._activity(name, retry_all=False) for name in STEPS),
            *(self._activity(name, retry_all=True) for name in UNTIL_IT_SUCCEEDS),
        ]

    def _activity(self, name: str, *, retry_all: bool) -> Activity:
        @activity.defn(name=name)
        async def carry_out(step: contracts.Step) -> dict[str, Any]:
            answer = await self._ask(name, step, retry_all=retry_all)
            for point in (step.fail_at, self._fail_at):
                if point and contracts.FAIL_AT.get(point) == name:
                    raise ApplicationError(
                        f"injected failure at {point}", type="InjectedFailure", non_retryable=True
                    )
            activity.logger.info(f"Order {step.order!r}: {name} done")
            return answer

        return carry_out

    async def _ask(self, name: str, step: contracts.Step, *, retry_all: bool) -> dict[str, Any]:
        try:
            text = await self._site.request(
                "POST",
                f"/orders/{_segment(step.order)}/steps/{name}",
                workflow_id=activity.info().workflow_id or "",
                json={"attempt": step.attempt, **(step.details or {})},
            )
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if retry_all or status not in _REFUSALS:
                raise
            raise ApplicationError(
                _detail(error.response) or str(error)[:_MESSAGE_LIMIT],
                type="SiteRefused",
                non_retryable=True,
            ) from None
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not _is_whole(name, answer):
            raise ApplicationError(
                "What answers there is not the site; see EXPENSES_SITE_URL.",
                type="UnexpectedAnswer",
            )
        return answer


def _segment(ref: str) -> str:
    """Return an order's reference as one segment of a path, whatever it holds.

    Any client of Temporal can write the argument of a workflow. Dots are quoted too, since ".." is
    a segment that clients and proxies resolve.
    """
    return quote(ref, safe="", errors="replace").replace(".", "%2E")


def _is_whole(name: str, answer: dict[str, Any]) -> bool:
    """Whether this is what the site answers to a step."""
    if not _EXPECTED[name] <= answer.keys():
        return False
    if name not in _WAITS or answer["state"] != contracts.PENDING:
        return True
    seconds = answer.get("seconds_left")
    return isinstance(seconds, int) and 1 <= seconds <= contracts.LONGEST_APPROVAL_SECONDS


def _detail(response: httpx.Response) -> str:
    """The site's own words in its problem details; "" where it has none."""
    try:
        problem = response.json()
    except ValueError:
        return ""
    detail = problem.get("detail") if isinstance(problem, dict) else None
    # Storable, since the SDK cannot report a failure whose text has lone surrogates.
    return contracts.storable(detail)[:_MESSAGE_LIMIT] if isinstance(detail, str) else ""
