"""A fault at each point of the relay and of the worker (requirements X1, X2)."""

import pytest

from tests.faults import points
from tests.faults.people import People, survive
from tests.faults.stack import Stack


@pytest.mark.parametrize(("point", "action"), points.cases(points.BACKGROUND))
async def test_nothing_is_lost_or_done_twice(
    point: points.Point, action: points.Action, stack: Stack
) -> None:
    """X1, X2, X5: whatever fails here, the acknowledged verdict is the only one, and nobody has to
    repair anything."""
    await survive(stack, point, action)


async def test_registration_after_the_decision_gets_the_decision(stack: Stack) -> None:
    """X1, W5: a registration that comes after the decision and before its delivery gets the
    decision as its answer. The delivery then finds the activity completed."""
    late, held = points.called("registration-unasked"), points.called("relay-leased")
    async with People(stack) as people:
        with stack.armed(held, "hang", kill=False):
            stack.faults.arm(late, "hang")
            await people.start("overtaken")
            assert await people.until(lambda: stack.faults.fired_in(late))
            await people.decide("overtaken", "approve")
            assert await people.until(lambda: stack.faults.fired_in(held))
            stack.faults.disarm(late)
            assert await people.result("overtaken") == "COMPLETED"
        await people.see("overtaken")
    assert stack.database.rows(
        "SELECT outcome FROM outbox_message WHERE key = ?", "expense-decision:overtaken"
    ) == [("ALREADY_COMPLETED",)]
