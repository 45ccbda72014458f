"""The check of `make chaos`: it accepts sound expenses and names what is wrong with others."""

from collections import Counter

import pytest

from tests.chaos.checks import Seen, judge
from tests.chaos.load import APPROVED, REJECTED, RUNNING, Told


def told(
    *acknowledged: str,
    refused: tuple[str, ...] = (),
    unanswered: tuple[str, ...] = (),
    unexpected: tuple[str, ...] = (),
    finished: bool = True,
) -> Told:
    """Return the answers to the clients of a created expense."""
    return Told(
        created=True,
        acknowledged=set(acknowledged),
        refused=set(refused),
        unanswered=set(unanswered),
        finished=finished,
        unexpected=list(unexpected),
    )


def seen(
    status: str, *events: str, result: str = RUNNING, payments: int = 0, listed: bool = True
) -> Seen:
    return Seen(
        status=status,
        listed=listed,
        payments=payments,
        result=result,
        events=Counter({"created": 1}) + Counter(events),
    )


PAID = seen("COMPLETED", "approved", "paid", result="COMPLETED", payments=1)
NOT_PAID = seen("REJECTED", "rejected", result="")
WAITING = seen("CREATED")


@pytest.mark.parametrize(
    ("client", "was"),
    [
        (told(APPROVED), PAID),
        (told(APPROVED, refused=(REJECTED,)), PAID),
        (told(REJECTED), NOT_PAID),
        (told(REJECTED, refused=(APPROVED,)), NOT_PAID),
    ],
)
def test_sound_expense_violates_nothing(client: Told, was: Seen) -> None:
    """X1, X2: an expense that ended as its clients were told."""
    assert judge({"lunch": client}, {"lunch": was}) == []


@pytest.mark.parametrize(
    ("client", "was", "broken"),
    [
        (told(finished=False), WAITING, ["end"]),
        (told(unanswered=("APPROVED by rest",)), WAITING, ["answered"]),
        # The client got this answer, and stopped.
        (told(unexpected=("action: 400",), finished=False), WAITING, ["answered"]),
        (told(), seen("CREATED", listed=False), ["I1"]),
        (told(), seen("ERROR:INVALID_ID"), ["I1", "I4"]),
        # Both were acknowledged, so one of them is not final.
        (told(APPROVED, REJECTED), PAID, ["I2", "I2"]),
        (told(APPROVED), NOT_PAID, ["I2"]),
        (told(REJECTED), PAID, ["I2"]),
        (told(APPROVED), WAITING, ["I2"]),
        (told(refused=(APPROVED,)), PAID, ["I2"]),
        (told(refused=(REJECTED,)), NOT_PAID, ["I2"]),
        # Paid twice, not at all, with another result, too early, or although it is rejected.
        (
            told(APPROVED),
            seen("COMPLETED", "approved", "paid", result="COMPLETED", payments=2),
            ["I3"],
        ),
        (told(APPROVED), seen("COMPLETED", "approved", "paid", result="COMPLETED"), ["I3"]),
        (told(APPROVED), seen("COMPLETED", "approved", "paid", result="", payments=1), ["I3"]),
        (told(), seen("CREATED", payments=1), ["I3"]),
        (told(REJECTED), seen("REJECTED", "rejected", result="", payments=1), ["I3"]),
        (told(REJECTED), seen("REJECTED", "rejected", result="COMPLETED"), ["I3"]),
        (told(APPROVED), seen("APPROVED", "approved"), ["I4"]),
        (told(REJECTED), seen("REJECTED", "rejected"), ["I3", "I4"]),
        # No decision, two, the opposite decision, another payment.
        (told(REJECTED), seen("REJECTED", result=""), ["I5"]),
        (told(REJECTED), seen("REJECTED", "rejected", "rejected", result=""), ["I5"]),
        (told(REJECTED), seen("REJECTED", "approved", result=""), ["I5"]),
        (told(REJECTED), seen("REJECTED", "rejected", "withdrawn", result=""), ["I5"]),
        (
            told(APPROVED),
            seen("COMPLETED", "approved", "paid", "paid", result="COMPLETED", payments=1),
            ["I5"],
        ),
        (told(), seen("CREATED", "approved"), ["I5"]),
    ],
)
def test_violated_invariant_is_named_and_no_other(
    client: Told, was: Seen, broken: list[str]
) -> None:
    """X1, X2: the invariants that do not hold are named, and no others."""
    assert [violation.invariant for violation in judge({"lunch": client}, {"lunch": was})] == broken


def test_expense_that_no_client_made_is_named() -> None:
    """X1: the site has an expense that no client created."""
    other = seen("CREATED", listed=False)
    assert [found.invariant for found in judge({}, {"other": other})] == ["end"]
