"""Orders from their submission to their end, on a real Temporal server and a real site."""

from collections import Counter
from typing import get_args
from urllib.parse import urlsplit

import pytest

from orders.models import Mail
from tests.faults.proxy import ReplyDropper
from tests.orders.conftest import Shop, reached
from tests.orders.integrations import FAULTS, Call, When, lost, refused
from worker import contracts

UNDO: dict[str, list[Call]] = {
    "inventory-check": [],
    "inventory": ["release"],
    "payment": ["refund", "release"],
    "warehouse": ["revert", "refund", "release"],
}
STEPS: dict[str, list[Call]] = {
    "inventory-check": [],
    "inventory": ["reserve"],
    "payment": ["reserve", "charge"],
    "warehouse": ["reserve", "charge", "update"],
}


async def test_small_order_is_completed(shop: Shop) -> None:
    """O2, O3, O7: check, reserve, pay, send, confirm; the result and the queries tell of it, the
    pieces leave the stock."""
    async with shop.worked():
        workflow_id = await shop.order("SKU-001", 2, customer_email="alice@example.com")
        status = await shop.ended(workflow_id)
        result = await shop.workflow(workflow_id).result()
        told = await shop.workflow(workflow_id).query("get_status")
        await shop.at_rest()
    key = await shop.key(workflow_id)
    assert FAULTS.calls_of(key) == ["reserve", "charge", "update", "fulfil", "send"]
    assert status["status"] == "completed"
    assert status["steps_completed"] == [
        contracts.CHECK_INVENTORY,
        contracts.RESERVE_INVENTORY,
        contracts.PROCESS_PAYMENT,
        contracts.UPDATE_WAREHOUSE,
        contracts.SEND_CONFIRMATION,
    ]
    assert told["steps_completed"] == status["steps_completed"]
    paid, reserved, sent = (
        status["results"][step]
        for step in (
            contracts.PROCESS_PAYMENT,
            contracts.RESERVE_INVENTORY,
            contracts.UPDATE_WAREHOUSE,
        )
    )
    assert result == contracts.OrderResult(
        status["order_id"],
        "completed",
        "Order processed successfully",
        payment=contracts.PaymentResult("Payment of $49.00 processed successfully", **paid),
        inventory=contracts.ReservationResult("Reserved 1 item(s) successfully", **reserved),
        delivery=contracts.DeliveryResult("Delivery scheduled", **sent),
    )
    mail = await Mail.objects.aget()
    assert mail.recipient == "alice@example.com"


async def test_failure_after_each_step_undoes_all_of_them(shop: Shop) -> None:
    """O5, O6: `fail_at` fails an order after that step's effect: what was begun is undone in
    reverse, nothing else; the run fails with the reason of that step. A retry completes it."""
    async with shop.worked():
        orders = {point: await shop.order(fail_at=point) for point in contracts.FAIL_AT}
        for point, workflow_id in orders.items():
            status = await shop.ended(workflow_id)
            assert status["status"] == "failed"
            assert status["failure_reason"] == f"injected failure at {point}"
            assert status["compensation_triggered"] is bool(UNDO[point])
            failed = [e["step"] for e in status["events"] if e["status"] == "failed"]
            assert failed == [contracts.FAIL_AT[point]]
            assert FAULTS.calls_of(await shop.key(workflow_id)) == STEPS[point] + UNDO[point]
        await shop.at_rest()
        for workflow_id in orders.values():
            assert await shop.post(workflow_id, "retry") == 202
        for workflow_id in orders.values():
            status = await shop.ended(workflow_id)
            assert (status["status"], status["attempt"]) == ("completed", 2)
        await shop.at_rest()


async def test_retry_that_fails_earlier_undoes_its_own_steps(shop: Shop) -> None:
    """O5: what an attempt began is undone, not what the one before began."""
    async with shop.worked():
        workflow_id = await shop.order(fail_at="warehouse")
        assert (await shop.ended(workflow_id))["status"] == "failed"
        second = await shop.key(workflow_id, 2)
        FAULTS.plan("reserve", second, refused("No piece today."))
        assert await shop.post(workflow_id, "retry") == 202
        status = await shop.ended(workflow_id)
        assert (status["status"], status["attempt"]) == ("failed", 2)
        assert status["failure_reason"] == "No piece today."
        assert FAULTS.calls_of(second) == ["reserve", "release"]
        await shop.at_rest()


@pytest.mark.parametrize("point", contracts.FAIL_AT)
async def test_failing_worker_undoes_the_order(point: str, shop: Shop) -> None:
    """O6: FAIL_AT fails every order of the worker; another worker's none."""
    async with shop.worked(fail_at=point):
        workflow_id = await shop.order()
        status = await shop.ended(workflow_id)
        assert status["status"] == "failed"
        assert status["failure_reason"] == f"injected failure at {point}"
        assert FAULTS.calls_of(await shop.key(workflow_id)) == STEPS[point] + UNDO[point]
        await shop.at_rest()
    async with shop.worked():
        assert await shop.post(workflow_id, "retry") == 202
        status = await shop.ended(workflow_id)
        assert (status["status"], status["attempt"]) == ("completed", 2)
        await shop.at_rest()


async def test_failing_undo_is_repeated_until_it_succeeds(shop: Shop) -> None:
    """O5: an undo is asked for until it succeeds, whether it took effect before it failed or not;
    only then comes the next one."""
    orders = [await shop.order(fail_at="warehouse") for _ in range(2)]
    for when, workflow_id in zip(get_args(When), orders, strict=True):
        for call in UNDO["warehouse"]:
            FAULTS.plan(call, await shop.key(workflow_id), lost(when), lost(when))
    async with shop.worked():
        for workflow_id in orders:
            assert (await shop.ended(workflow_id))["status"] == "failed"
            calls = FAULTS.calls_of(await shop.key(workflow_id))
            undone = [call for call in UNDO["warehouse"] for _ in range(3)]
            assert calls == STEPS["warehouse"] + undone
        await shop.at_rest()


async def test_call_without_an_answer_has_one_effect(shop: Shop) -> None:
    """O2, O5, X2: a call that another system did not answer, applied or not, is made again, and
    nothing is done twice."""
    steps: list[Call] = [*STEPS["warehouse"], "fulfil", "send"]
    completed = await shop.order("PROD-102", customer_email="alice@example.com")
    failed = await shop.order(fail_at="warehouse")
    for workflow_id, calls in (
        (completed, steps),
        (failed, STEPS["warehouse"] + UNDO["warehouse"]),
    ):
        for call in calls:
            FAULTS.plan(call, await shop.key(workflow_id), lost("before"), lost("after"))
    FAULTS.plan("check", "PROD-102", lost("before"), lost("after"))
    async with shop.worked():
        assert (await shop.ended(completed))["status"] == "completed"
        assert (await shop.ended(failed))["status"] == "failed"
        await shop.at_rest()
    assert FAULTS.calls_of("PROD-102") == ["check"] * 3
    thrice = [call for call in steps for _ in range(3)]
    assert FAULTS.calls_of(await shop.key(completed)) == thrice
    assert await Mail.objects.acount() == 1


async def test_declined_step_fails_the_order(shop: Shop) -> None:
    """O5: a refusal fails the order with the other system's words, and the step is not asked for
    again; a confirmation that is refused leaves the order completed."""
    orders = []
    for call in ("reserve", "charge", "update", "send"):
        workflow_id = await shop.order(customer_email="alice@example.com")
        FAULTS.plan(call, await shop.key(workflow_id), refused(f"No {call} today: 50% off."))
        orders.append((workflow_id, call))
    async with shop.worked():
        for workflow_id, call in orders:
            status = await shop.ended(workflow_id)
            assert FAULTS.calls_of(await shop.key(workflow_id)).count(call) == 1
            if call == "send":
                assert (status["status"], status["failure_reason"]) == ("completed", None)
            else:
                assert status["status"] == "failed"
                assert status["failure_reason"] == f"No {call} today: 50% off."
        await shop.at_rest()


async def test_competing_orders_sell_no_piece_twice(shop: Shop) -> None:
    """O2, O5: of orders for more than there is, some fail, and no piece is sold twice."""
    orders = [await shop.order("SKU-001", 10) for _ in range(4)]
    async with shop.worked():
        ends = [await shop.ended(workflow_id) for workflow_id in orders]
        await shop.at_rest()
    assert sorted(end["status"] for end in ends) == ["completed"] * 2 + ["failed"] * 2
    for end in ends:
        if end["status"] == "failed":
            assert end["failure_reason"] in (
                "Only 5 of SKU-001 are available; 10 were ordered.",
                "Only 15 of SKU-001 are available; 10 were ordered.",
            )


async def test_lost_reply_of_the_site_changes_nothing(shop: Shop) -> None:
    """O2, O3, O5, X2: every step, undo and decision is asked for twice, as its first answer never
    comes, and is done once."""
    asked: Counter[str] = Counter()

    def drops(request: str) -> bool:
        asked[request] += 1
        return asked[request] == 1

    completed = await shop.order(customer_email="alice@example.com")
    failed = await shop.order(fail_at="warehouse")
    approved, rejected = await shop.order("SKU-1001"), await shop.order("SKU-1001")
    cancelled = await shop.order()
    hang = await shop.hanging("charge", cancelled, "after")
    with ReplyDropper(urlsplit(shop.url).port or 0, drops) as proxy:
        async with shop.worked(site_url=proxy.url):
            await (await shop.waiting(approved)).signal("approve_order", "good customer")
            await (await shop.waiting(rejected)).signal("reject_order", "bad customer")
            await reached(hang)
            assert await shop.post(cancelled, "cancel") == 202
            hang.released.set()
            for workflow_id, end in (
                (completed, "completed"),
                (failed, "failed"),
                (approved, "completed"),
                (rejected, "cancelled"),
                (cancelled, "cancelled"),
            ):
                assert (await shop.ended(workflow_id))["status"] == end
            await shop.at_rest()
    steps = {request.split("/")[-1].split()[0] for request in asked}
    assert steps == set(contracts.STEPS)
    # The step that was cancelled is not asked for again.
    once = [request for request, times in asked.items() if times == 1]
    assert [request.split("/")[-1] for request in once] in ([], [contracts.PROCESS_PAYMENT])
    assert await Mail.objects.acount() == 1
