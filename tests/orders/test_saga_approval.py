"""Orders that need a decision: all parts agree on the first one (requirements O3, O4)."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.service import RPCError, RPCStatusCode

from approvals.models import AuditEntry
from orders.models import Order
from tests.orders.conftest import Shop
from worker import contracts

LARGE = "SKU-1001"
Decide = Callable[[Shop, str], Awaitable[Any]]


def over_http(verb: str) -> Decide:
    async def decide(shop: Shop, workflow_id: str) -> int:
        answer = await shop.post(workflow_id, verb, f"{verb} over HTTP")
        assert answer in (200, 409)
        return answer

    return decide


def by_signal(verb: str) -> Decide:
    async def decide(shop: Shop, workflow_id: str) -> None:
        handle = shop.workflow(workflow_id)
        try:
            await handle.signal(f"{verb}_order", f"{verb} by signal")
        except RPCError as error:
            # The other one was taken, and the workflow has ended.
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise

    return decide


async def decided(shop: Shop, workflow_id: str) -> tuple[str, str]:
    """The decision on an order that has ended as it says; the approval's status and reason."""
    status = await shop.ended(workflow_id)
    completed = status["approval_status"] == "approved"
    assert status["status"] == ("completed" if completed else "cancelled")
    assert status["failure_reason"] == (None if completed else status["approval_reason"])
    trail = AuditEntry.objects.filter(subject="order", subject_id=status["order_id"])
    events = [event async for event in trail.order_by("pk").values_list("event", flat=True)]
    assert events == ["submitted", status["approval_status"], *(["completed"] if completed else [])]
    return status["approval_status"], status["approval_reason"]


async def test_only_a_total_above_the_threshold_waits(shop: Shop) -> None:
    """O1: a total of exactly 1000.00 needs nobody; 1000.01 waits."""
    async with shop.worked():
        at, above = await shop.order("SKU-1000"), await shop.order("SKU-1001")
        assert (await shop.ended(at))["approval_status"] == "not_required"
        await shop.waiting(above)
        status = await shop.status(above)
        assert (status["status"], status["approval_status"]) == ("pending", "pending")
        assert await shop.workflow(above).query("get_approval_status") == "pending"
        assert await shop.workflow(above).query("get_approval_reason") == ""
        assert await shop.post(above, "approve") == 200
        assert await decided(shop, above) == ("approved", "")
        await shop.at_rest()
    totals = [str(total) async for total in Order.objects.values_list("total", flat=True)]
    assert sorted(totals) == ["1000.00", "1000.01"]


async def test_decision_by_each_route_is_carried_out(shop: Shop) -> None:
    """O3, O4: approved or rejected, over HTTP or by a signal, with a reason or without; a second
    decision, the same or the opposite, changes nothing."""
    cases: dict[str, tuple[list[Decide], tuple[str, str]]] = {}
    for how, where in ((over_http, "over HTTP"), (by_signal, "by signal")):
        cases[await shop.order(LARGE)] = (
            [how("approve"), how("approve"), how("reject")],
            ("approved", f"approve {where}"),
        )
        cases[await shop.order(LARGE)] = (
            [how("reject"), how("approve"), how("reject")],
            ("rejected", f"reject {where}"),
        )
    async with shop.worked():
        for workflow_id, (decisions, expected) in cases.items():
            await shop.waiting(workflow_id)
            answers = [await decide(shop, workflow_id) for decide in decisions]
            assert await decided(shop, workflow_id) == expected
            # A repeat of what stands is no conflict; a signal has no answer.
            if "HTTP" in expected[1]:
                assert answers == (
                    [200, 200, 409] if expected[0] == "approved" else [200, 409, 200]
                )
            else:
                assert answers == [None] * 3
        await shop.at_rest()


async def test_signal_without_a_reason_gets_the_default_reason(shop: Shop) -> None:
    """O3: as the sample's clients send it."""
    async with shop.worked():
        approved, rejected = await shop.order(LARGE), await shop.order(LARGE)
        await (await shop.waiting(approved)).signal("approve_order")
        await (await shop.waiting(rejected)).signal("reject_order")
        assert await decided(shop, approved) == ("approved", "")
        assert await decided(shop, rejected) == ("rejected", "rejected by signal")
        await shop.at_rest()


async def test_order_that_nobody_decides_times_out(shop: Shop, settings: Any) -> None:
    """O4: at the end of the window the order is cancelled and the workflow ends normally. A later
    decision is refused with the reason."""
    settings.ORDERS_APPROVAL_SECONDS = 1
    async with shop.worked():
        workflow_id = await shop.order(LARGE)
        assert await decided(shop, workflow_id) == ("expired", "approval timed out")
        assert await shop.post(workflow_id, "approve") == 409
        assert await shop.post(workflow_id, "reject", "too late") == 409
        await by_signal("approve")(shop, workflow_id)
        assert await decided(shop, workflow_id) == ("expired", "approval timed out")
        await shop.at_rest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (over_http("approve"), over_http("reject")),
        (by_signal("approve"), by_signal("reject")),
        (over_http("approve"), by_signal("reject")),
        (over_http("reject"), by_signal("approve")),
    ],
    ids=["HTTP", "signals", "approving HTTP, rejecting signal", "rejecting HTTP, approving signal"],
)
async def test_one_of_two_concurrent_decisions_wins(one: Decide, other: Decide, shop: Shop) -> None:
    """O3: the first decision wins, and nothing contradicts it."""
    async with shop.worked():
        orders = [await shop.order(LARGE) for _ in range(3)]
        for workflow_id in orders:
            await shop.waiting(workflow_id)
        await asyncio.gather(
            *(decide(shop, workflow_id) for workflow_id in orders for decide in (one, other))
        )
        for workflow_id in orders:
            status, reason = await decided(shop, workflow_id)
            assert reason.startswith({"approved": "approve ", "rejected": "reject "}[status])
        await shop.at_rest()


async def test_decision_under_way_at_the_end_of_the_window_holds(shop: Shop, settings: Any) -> None:
    """O3, X6: a decision that the relay has not delivered holds against the end of the window,
    which the workflow finds. Delivered later, it is no alarm, though the run has failed."""
    settings.ORDERS_APPROVAL_SECONDS = 4
    async with shop.worked(relay=False):
        async with shop.relayed():
            approved, rejected = await shop.order(LARGE), await shop.order(LARGE)
            failed = await shop.order(LARGE, fail_at="payment")
            for workflow_id in (approved, rejected, failed):
                await shop.waiting(workflow_id)
        for workflow_id in (approved, failed):
            assert await shop.post(workflow_id, "approve", "in time") == 200
        assert await shop.post(rejected, "reject", "in time") == 200
        assert await decided(shop, approved) == ("approved", "in time")
        assert await decided(shop, rejected) == ("rejected", "in time")
        status = await shop.ended(failed)
        assert (status["status"], status["approval_status"]) == ("failed", "approved")
        async with shop.relayed():
            await shop.at_rest()


async def test_decision_at_the_end_of_the_window_gives_one_verdict(
    shop: Shop, settings: Any
) -> None:
    """O3, O4: of a decision and the end of the window at the same moment, one holds."""
    settings.ORDERS_APPROVAL_SECONDS = 1
    async with shop.worked():
        orders = [await shop.order(LARGE) for _ in range(6)]

        async def decide(number: int, workflow_id: str) -> None:
            await shop.waiting(workflow_id)
            end = (await shop.record(workflow_id)).approval.expires_at
            await asyncio.sleep(end.timestamp() - time.time() + (number - 3) * 0.03)
            how = by_signal if number % 2 else over_http
            await how("approve")(shop, workflow_id)

        await asyncio.gather(*(decide(*order) for order in enumerate(orders)))
        for workflow_id in orders:
            assert (await decided(shop, workflow_id))[0] in ("approved", "expired")
        await shop.at_rest()


async def test_decision_before_the_start_holds(shop: Shop) -> None:
    """O3: the workflow begins with the decision that there is."""
    approved, rejected = await shop.order(LARGE), await shop.order(LARGE)
    assert await shop.post(approved, "approve", "early") == 200
    assert await shop.post(rejected, "reject", "early") == 200
    async with shop.worked():
        assert await decided(shop, approved) == ("approved", "early")
        assert await decided(shop, rejected) == ("rejected", "early")
        await shop.at_rest()


async def test_retry_keeps_the_decision(shop: Shop) -> None:
    """O3, O6: an approved order that fails and is retried is not decided again."""
    async with shop.worked():
        workflow_id = await shop.order(LARGE, fail_at="payment")
        await shop.waiting(workflow_id)
        assert await shop.post(workflow_id, "approve", "good customer") == 200
        status = await shop.ended(workflow_id)
        assert (status["status"], status["approval_status"]) == ("failed", "approved")
        assert status["approval_reason"] == "good customer"
        assert await shop.post(workflow_id, "retry") == 202
        await shop.until(workflow_id, "completed")
        status = await shop.ended(workflow_id)
        assert (status["status"], status["attempt"]) == ("completed", 2)
        assert status["approval_reason"] == "good customer"
        await shop.at_rest()


@pytest.mark.parametrize(
    "reason", ["x" * 100_000, "nul \0 byte", "lone \ud83d surrogate", "ü €\n50% off \U0001f600"]
)
async def test_any_text_of_a_signal_is_stored(reason: str, shop: Shop) -> None:
    """O3: a text that the site cannot store keeps no order from its decision."""
    stored = reason.replace("\0", "?").replace("\ud83d", "?")[:2000]
    async with shop.worked():
        workflow_id = await shop.order(LARGE)
        await (await shop.waiting(workflow_id)).signal(contracts.APPROVE_ORDER, reason)
        assert await decided(shop, workflow_id) == ("approved", stored)
        await shop.at_rest()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], ""),
        ([None], ""),
        ([7], "7"),
        ([["a", None]], "['a', None]"),
        (["as read", {"more": 1}], "as read"),
        ([RawValue(Payload(metadata={"encoding": b"odd"}, data=b"\xff"))], ""),
    ],
    ids=str,
)
async def test_malformed_signal_stops_no_order(
    arguments: list[Any], reason: str, shop: Shop
) -> None:
    """O3: whatever arguments a client sends, the order goes on."""
    async with shop.worked():
        workflow_id = await shop.order(LARGE)
        await shop.waiting(workflow_id)
        await shop.workflow(workflow_id).signal("approve_order", args=arguments)
        assert await decided(shop, workflow_id) == ("approved", reason)


# Signals that do not decide


async def trail(workflow_id: str) -> list[tuple[str, str]]:
    """What happened to an order, and by which route."""
    order_id = (await Order.objects.aget(workflow_id=workflow_id)).order_id
    entries = AuditEntry.objects.filter(subject="order", subject_id=order_id).order_by("pk")
    return [entry async for entry in entries.values_list("event", "route")]


async def refused(shop: Shop, workflow_id: str, times: int) -> None:
    """Returns when so many signals to a pending order were refused."""
    async with asyncio.timeout(40):
        while (await trail(workflow_id))[1:] != [("refused", "signal")] * times:
            await asyncio.sleep(0.05)
    assert (await shop.status(workflow_id))["status"] == "pending"
    assert await shop.workflow(workflow_id).query("get_approval_status") == "pending"


async def settle_by_hand(shop: Shop, workflow_id: str, **said: Any) -> dict[str, Any]:
    """Ask for the step as whoever holds the worker's token can; the answer."""
    response = await shop.http.post(
        f"/orders/{workflow_id}/steps/settle_approval",
        json={"attempt": 1, **said},
        headers={"Idempotency-Key": contracts.idempotency_key(workflow_id)},
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_step_decides_nothing(shop: Shop) -> None:
    """O3, X3: the worker's step decides nothing by what it says, nor by a key that names the
    order's own workflow; a person decides afterwards."""
    async with shop.worked():
        workflow_id = await shop.order(LARGE)
        await shop.waiting(workflow_id)
        for verdict in ("APPROVED", "REJECTED", "EXPIRED"):
            answer = await settle_by_hand(shop, workflow_id, verdict=verdict, reason="I say so")
            assert (answer["state"], answer["verdict"]) == ("pending", "")
            assert 290 <= answer["seconds_left"] <= 300
        assert await trail(workflow_id) == [("submitted", "protocol")]
        assert await shop.post(workflow_id, "approve", "as a person") == 200
        assert await decided(shop, workflow_id) == ("approved", "as a person")
        await shop.at_rest()


async def test_signals_outside_the_open_mode_decide_nothing(shop: Shop, settings: Any) -> None:
    """O3, X3: outside the open mode a signal leaves the order pending and is audited, once, however
    often the step is repeated; a person's decision, delivered by a signal, is not."""
    settings.ORDERS_SIGNAL_DECISIONS = False
    async with shop.worked():
        approved, rejected = await shop.order(LARGE), await shop.order(LARGE)
        for workflow_id in (approved, rejected):
            handle = await shop.waiting(workflow_id)
            await handle.signal("approve_order", "mine")
            await refused(shop, workflow_id, 1)
            await asyncio.gather(*(settle_by_hand(shop, workflow_id) for _ in range(5)))
            await refused(shop, workflow_id, 1)
            await handle.signal("reject_order", "mine")
            await refused(shop, workflow_id, 2)
        assert await shop.post(approved, "approve", "good") == 200
        assert await shop.post(rejected, "reject", "bad") == 200
        assert (await shop.ended(approved))["approval_reason"] == "good"
        assert (await shop.ended(rejected))["approval_reason"] == "bad"
        await shop.at_rest()
    refusals = [("refused", "signal")] * 2
    assert await trail(approved) == [
        ("submitted", "protocol"),
        *refusals,
        ("approved", "protocol"),
        ("completed", "workflow"),
    ]
    assert await trail(rejected) == [
        ("submitted", "protocol"),
        *refusals,
        ("rejected", "protocol"),
    ]


async def test_signals_above_the_limit_decide_nothing(shop: Shop) -> None:
    """O3: a total of exactly 2000.00 is decided by a signal; 2000.02 waits for a person."""
    async with shop.worked():
        at, above = await shop.order("SKU-1000", 2), await shop.order("SKU-1001", 2)
        for workflow_id in (at, above):
            await (await shop.waiting(workflow_id)).signal("approve_order", "fine")
        assert await decided(shop, at) == ("approved", "fine")
        await refused(shop, above, 1)
        assert await shop.post(above, "approve", "as a person") == 200
        assert (await shop.ended(above))["approval_reason"] == "as a person"
        await shop.at_rest()


async def test_order_expires_in_time_under_a_flood_of_signals(shop: Shop, settings: Any) -> None:
    """O3, O4, X11: an order expires at its time, whatever number of signals it is sent; those among
    the first thousand events are audited, once each."""
    settings.ORDERS_SIGNAL_DECISIONS, settings.ORDERS_APPROVAL_SECONDS = False, 6
    async with shop.worked():
        workflow_id = await shop.order(LARGE)
        handle = await shop.waiting(workflow_id)
        for _ in range(15):
            await asyncio.gather(*(handle.signal("approve_order", "mine") for _ in range(100)))
        ended = await shop.ended(workflow_id)
        assert ended["approval_status"] == "expired"
        order = await shop.record(workflow_id)
        assert 0 <= (order.ended_at - order.approval.expires_at).total_seconds() < 10
        events = [event for event, _ in await trail(workflow_id)]
        signalled = [
            event.event_id
            for event in (await handle.fetch_history()).events[:1000]
            if event.HasField("workflow_execution_signaled_event_attributes")
        ]
        assert events == ["submitted", *["refused"] * len(signalled), "expired"]
        await shop.at_rest()
