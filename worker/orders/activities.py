"""The activities of an order: each asks the site for one step and has the name of the step.

Not retried: a request that the site refuses (409, with its reason) or cannot read (400, 422).
Everything else is retried without limit: network errors, 5xx, an answer that is not the site's, and
401, 403 or 404, which come from this worker's token or a wrong address, and not from the order. The
undo of a step and the end of an order are retried after every error (requirements O5).
Log messages have no arguments: the SDK appends the ids to the format, and an id may contain a %.
"""

import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar
from urllib.parse import quote

import httpx
from temporalio import activity
from temporalio.converter import value_to_type
from temporalio.exceptions import ApplicationError

from worker import contracts
from worker.contracts import (
    CompensationRequest,
    DeliveryResult,
    OrderState,
    PaymentResult,
    ReservationResult,
    StepKind,
    StepRequest,
    StepResult,
)
from worker.site import Site

Answer = TypeVar("Answer", StepResult, PaymentResult, ReservationResult, DeliveryResult, OrderState)

# Every other status is retried: an order that has begun is never left half done.
_REFUSALS: Final = frozenset({400, 409, 422})
# What the worker needs itself.
_NOT_FOR_THE_SITE: Final = ("order", "fail_at")
# The history stores each failure text.
_MESSAGE_LIMIT: Final = 1000


class OrderActivities:
    """The activities of OrderWorkflow, bound to one site.

    `fail_at` is a key of contracts.FAIL_AT: that step of every order fails after its effect
    (requirements O6).
    """

    def __init__(self, site: Site, *, fail_at: str = "") -> None:
        self._site = site
        self._fail_at = fail_at

    def all(self) -> list[Callable[..., Awaitable[StepResult | OrderState]]]:
        """Return what a worker registers."""
        return [getattr(self, name) for name in contracts.STEPS]

    @activity.defn(name=contracts.AWAIT_APPROVAL)
    async def await_approval(self, request: StepRequest) -> OrderState:
        return await self._ask(contracts.AWAIT_APPROVAL, request, OrderState)

    @activity.defn(name=contracts.SETTLE_APPROVAL)
    async def settle_approval(self, request: StepRequest) -> OrderState:
        return await self._ask(contracts.SETTLE_APPROVAL, request, OrderState)

    @activity.defn(name=contracts.CHECK_INVENTORY)
    async def check_inventory(self, request: StepRequest) -> StepResult:
        return await self._ask(contracts.CHECK_INVENTORY, request, StepResult)

    @activity.defn(name=contracts.RESERVE_INVENTORY)
    async def reserve_inventory(self, request: StepRequest) -> ReservationResult:
        return await self._ask(contracts.RESERVE_INVENTORY, request, ReservationResult)

    @activity.defn(name=contracts.PROCESS_PAYMENT)
    async def process_payment(self, request: StepRequest) -> PaymentResult:
        return await self._ask(contracts.PROCESS_PAYMENT, request, PaymentResult)

    @activity.defn(name=contracts.UPDATE_WAREHOUSE)
    async def update_warehouse(self, request: StepRequest) -> DeliveryResult:
        return await self._ask(contracts.UPDATE_WAREHOUSE, request, DeliveryResult)

    @activity.defn(name=contracts.COMPLETE_ORDER)
    async def complete_order(self, request: StepRequest) -> OrderState:
        return await self._ask(contracts.COMPLETE_ORDER, request, OrderState)

    @activity.defn(name=contracts.SEND_CONFIRMATION)
    async def send_confirmation(self, request: StepRequest) -> StepResult:
        return await self._ask(contracts.SEND_CONFIRMATION, request, StepResult)

    @activity.defn(name=contracts.BEGIN_COMPENSATION)
    async def begin_compensation(self, request: CompensationRequest) -> OrderState:
        return await self._ask(contracts.BEGIN_COMPENSATION, request, OrderState)

    @activity.defn(name=contracts.REVERT_WAREHOUSE)
    async def revert_warehouse(self, request: StepRequest) -> StepResult:
        return await self._ask(contracts.REVERT_WAREHOUSE, request, StepResult)

    @activity.defn(name=contracts.REFUND_PAYMENT)
    async def refund_payment_by_idempotency_key(self, request: StepRequest) -> StepResult:
        return await self._ask(contracts.REFUND_PAYMENT, request, StepResult)

    @activity.defn(name=contracts.RELEASE_INVENTORY)
    async def release_inventory(self, request: StepRequest) -> StepResult:
        return await self._ask(contracts.RELEASE_INVENTORY, request, StepResult)

    @activity.defn(name=contracts.CLOSE_ORDER)
    async def close_order(self, request: StepRequest) -> OrderState:
        return await self._ask(contracts.CLOSE_ORDER, request, OrderState)

    async def _ask(self, name: str, request: StepRequest, kind: type[Answer]) -> Answer:
        """Return the site's answer to the step, or fail where a failure is injected."""
        step = contracts.STEPS[name]
        body = dataclasses.asdict(request)
        try:
            text = await self._site.request(
                "POST",
                f"/orders/{_segment(request.order)}/steps/{name}",
                workflow_id=activity.info().workflow_id or "",
                json={name: body[name] for name in body if name not in _NOT_FOR_THE_SITE},
            )
        except httpx.HTTPStatusError as error:
            is_final = error.response.status_code in _REFUSALS
            if step.kind in (StepKind.UNDO, StepKind.TRANSITION) or not is_final:
                raise
            raise ApplicationError(
                _detail(error.response) or str(error)[:_MESSAGE_LIMIT],
                type="SiteRefused",
                non_retryable=True,
            ) from None
        try:
            answer = _parse(text, kind)
        except (ValueError, TypeError):
            raise ApplicationError(
                "The answer is not the expense site's. Correct EXPENSES_SITE_URL.",
                type="UnexpectedAnswer",
            ) from None
        if step.fail_at and step.fail_at in (request.fail_at, self._fail_at):
            raise ApplicationError(
                f"injected failure at {step.fail_at}", type="InjectedFailure", non_retryable=True
            )
        activity.logger.info(f"Order {request.order!r}: {name} done")
        return answer


def _segment(ref: str) -> str:
    """Return an order's reference as one segment of a path.

    The reference may be any text, since any client of Temporal can start a workflow. Dots are
    quoted too, since clients and proxies resolve a segment "..".
    """
    return quote(ref, safe="", errors="replace").replace(".", "%2E")


def _parse(text: str, kind: type[Answer]) -> Answer:
    """Return the site's answer. Raises ValueError or TypeError for another site's, which lacks a
    field or has another type: the history must not record it."""
    said = json.loads(text)
    answer: Answer = value_to_type(kind, said)
    if isinstance(answer, OrderState) and answer.state == contracts.PENDING:
        # No timer can wait for any other number.
        seconds = said.get("seconds_left")
        if not isinstance(seconds, int) or not 1 <= seconds <= contracts.LONGEST_APPROVAL_SECONDS:
            raise ValueError(seconds)
    return answer


def _detail(response: httpx.Response) -> str:
    """Return the site's reason from its problem details; "" if there is none."""
    try:
        problem = response.json()
    except ValueError:
        return ""
    detail = problem.get("detail") if isinstance(problem, dict) else None
    # The SDK cannot report a failure whose text has lone surrogates.
    return contracts.storable(detail)[:_MESSAGE_LIMIT] if isinstance(detail, str) else ""
