"""The activities of an order: each asks the site for one step and has the name of the step.

Not retried: a request that the site refuses (409, with its reason) or cannot read (400, 422).
Everything else is retried without limit: network errors, 5xx, an answer that is not the site's, and
401, 403 or 404, which come from this worker's token or a wrong address, and not from the order. The
undo of a step and the end of an order are retried after every error (requirements O5).
Log messages have no arguments: the SDK appends the ids to the format, and an id may contain a %.
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
# Every other status is retried: an order that has begun is never left half done.
_REFUSALS: Final = frozenset({400, 409, 422})
# The fields that an answer must have before it is recorded in the history.
_STATE_FIELDS: Final = frozenset({"state", "verdict", "approval_reason", "reason"})
_EXPECTED: Final = dict.fromkeys((*STEPS, *UNTIL_IT_SUCCEEDS), frozenset({"message"})) | {
    contracts.AWAIT_APPROVAL: _STATE_FIELDS,
    contracts.SETTLE_APPROVAL: _STATE_FIELDS,
    contracts.COMPLETE_ORDER: _STATE_FIELDS,
    contracts.BEGIN_COMPENSATION: _STATE_FIELDS,
    contracts.CLOSE_ORDER: _STATE_FIELDS,
}
# The answers to these say in how many seconds to ask again about a pending order.
_PENDING_STEPS: Final = (contracts.AWAIT_APPROVAL, contracts.SETTLE_APPROVAL)
# The history stores each failure text.
_MESSAGE_LIMIT: Final = 1000

Activity = Callable[[contracts.Step], Awaitable[dict[str, Any]]]


class OrderActivities:
    """The activities of OrderWorkflow, bound to one site.

    `fail_at` is a key of contracts.FAIL_AT: that step of every order fails after its effect
    (requirements O6).
    """

    def __init__(self, site: Site, *, fail_at: str = "") -> None:
        self._site = site
        self._fail_at = fail_at

    def all(self) -> list[Activity]:
        """Return what a worker registers."""
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
                "The answer is not the expense site's. Correct EXPENSES_SITE_URL.",
                type="UnexpectedAnswer",
            )
        return answer


def _segment(ref: str) -> str:
    """Return an order's reference as one segment of a path.

    The reference may be any text, since any client of Temporal can start a workflow. Dots are
    quoted too, since clients and proxies resolve a segment "..".
    """
    return quote(ref, safe="", errors="replace").replace(".", "%2E")


def _is_whole(name: str, answer: dict[str, Any]) -> bool:
    """Return whether the answer has the fields of the site's answer to the step."""
    if not _EXPECTED[name] <= answer.keys():
        return False
    if name not in _PENDING_STEPS or answer["state"] != contracts.PENDING:
        return True
    seconds = answer.get("seconds_left")
    return isinstance(seconds, int) and 1 <= seconds <= contracts.LONGEST_APPROVAL_SECONDS


def _detail(response: httpx.Response) -> str:
    """Return the site's reason from its problem details; "" if there is none."""
    try:
        problem = response.json()
    except ValueError:
        return ""
    detail = problem.get("detail") if isinstance(problem, dict) else None
    # The SDK cannot report a failure whose text has lone surrogates.
    return contracts.storable(detail)[:_MESSAGE_LIMIT] if isinstance(detail, str) else ""
