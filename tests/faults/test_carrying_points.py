"""A fault at each point of a submission and of the worker's requests (requirements X1, X2)."""

import pytest

from tests.faults import points
from tests.faults.people import survive
from tests.faults.stack import Stack


@pytest.mark.parametrize(("point", "action"), points.cases(points.CARRYING))
async def test_nothing_is_lost_or_done_twice(
    point: points.Point, action: points.Action, stack: Stack
) -> None:
    """X1, X2, X5: whatever fails here, the acknowledged verdict is the only one, and nobody has to
    repair anything."""
    await survive(stack, point, action)
