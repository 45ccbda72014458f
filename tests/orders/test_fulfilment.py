"""What the workflow of an order asks of the site, step by step, in whatever state the order is."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from approvals import services as approvals
from approvals.models import Approval, AuditEntry, Route, Verdict
from approvals.services import Act
from orders import fulfilment, integrations, services
from orders.integrations import payment_provider
from orders.models import (
    UNDONE,
    Charge,
    Mail,
    Order,
    OrderStep,
    Reservation,
    Shipment,
    State,
    StockItem,
    WarehouseRecord,
)
from outbox.models import Message
from temporal.outcomes import Outcome
from tests import factories
from tests.conftest import Unchanged, at_once
from tests.orders.conftest import History
from worker import contracts
from worker.contracts import StepKind

pytestmark = pytest.mark.django_db

CONFIRM = contracts.SEND_CONFIRMATION
LATER = factories.NOW + timedelta(minutes=1)
# When an order that waits since factories.NOW expires.
END = factories.NOW + timedelta(minutes=5)
ACT = factories.act()
FAILURE: Any = {"failed_step": contracts.PROCESS_PAYMENT, "reason": "card declined"}
WITH_ADDRESS = services.Customer(
    customer_id="cust-42",
    payment_method="tok_visa",
    customer_email="alice@example.org",
    shipping_address="123 Main St",
)


def standing(
    state: State, verdict: str = "", approval_reason: str = "", *, reason: str = ""
) -> dict[str, str]:
    return {
        "state": state.value,
        "verdict": verdict,
        "approval_reason": approval_reason,
        "reason": reason,
    }


def decide(order: Order, verdict: Verdict, act: Act) -> Message | None:
    return approvals.decide(approvals.approval_of(services.KIND, order, verdict, act), verdict, act)


def timeline(order: Order) -> list[tuple[int, str, str]]:
    return list(order.steps.values_list("attempt", "name", "status"))


def trail(order_id: str = "ord-1") -> list[tuple[str, str, str, str]]:
    """What happened, who and by which route, and why."""
    entries = AuditEntry.objects.filter(subject="order", subject_id=order_id).order_by("pk")
    return list(entries.values_list("event", "actor", "route", "reason"))


def stock() -> dict[str, tuple[int, int]]:
    """Of the products of a small order."""
    items = StockItem.objects.filter(product_id__in=["SKU-001", "SKU-003"])
    return {item.product_id: (item.available, item.reserved) for item in items}


UNTOUCHED = {"SKU-001": (25, 0), "SKU-003": (50, 0)}


# A whole order


def test_each_step_is_recorded_until_the_order_is_completed() -> None:
    """O1, O2, X5: each step is carried out by its integration, under the key of the attempt, and
    answers with its number and a sentence; the timeline and the trail hold what was done."""
    order = factories.order(customer=WITH_ADDRESS)
    assert factories.carry(order, contracts.CHECK_INVENTORY) == {
        "message": "All items are available"
    }
    answer = factories.carry(order, contracts.RESERVE_INVENTORY)
    reservation = Reservation.objects.get()
    assert (reservation.key, reservation.state) == (f"{order.pk}:1", "reserved")
    assert answer == {
        "reservation_id": reservation.reservation_id,
        "message": "Reserved 2 item(s) successfully",
    }
    assert stock() == {"SKU-001": (24, 1), "SKU-003": (48, 2)}
    answer = factories.carry(order, contracts.PROCESS_PAYMENT)
    charge = Charge.objects.get()
    assert (charge.key, charge.amount, charge.currency) == (f"{order.pk}:1", order.total, "USD")
    assert charge.payment_method == "tok_visa"
    assert answer == {
        "charge_id": charge.charge_id,
        "message": "Payment of $44.40 processed successfully",
    }
    answer = factories.carry(order, contracts.UPDATE_WAREHOUSE)
    shipment = Shipment.objects.get()
    assert (shipment.record.key, shipment.address) == (f"{order.pk}:1", "123 Main St")
    assert shipment.record.items == [
        {"product_id": "SKU-001", "quantity": 1},
        {"product_id": "SKU-003", "quantity": 2},
    ]
    assert answer == {
        "tracking_number": shipment.tracking_number,
        "estimated_delivery": shipment.estimated_delivery.isoformat(),
        "message": "Delivery scheduled",
    }
    answer = factories.carry(order, contracts.COMPLETE_ORDER, now=LATER)
    assert answer == standing(State.COMPLETED)
    assert (order.state, order.ended_at) == ("completed", LATER)
    assert stock() == {"SKU-001": (24, 0), "SKU-003": (48, 0)}
    assert factories.carry(order, CONFIRM) == {"message": "Confirmation sent"}
    mail = Mail.objects.get()
    assert (mail.key, mail.recipient) == (f"{order.pk}:1", "alice@example.org")
    assert (mail.subject, "44.40 USD" in mail.body) == ("Your order ord-1", True)
    steps = (*factories.STEPS, CONFIRM)
    assert timeline(order) == [(1, step, "completed") for step in steps]
    assert trail() == [
        ("submitted", "local", "protocol", ""),
        ("completed", "local", "workflow", ""),
    ]
    assert list(Message.objects.values_list("key", flat=True)) == ["order-start:ord-1"]


def test_order_without_an_address_gets_no_confirmation(unchanged: Unchanged) -> None:
    """O2: a customer without an e-mail address is not written to."""
    order = factories.order(state=State.COMPLETED)
    answer = factories.carry(order, CONFIRM)
    assert (answer, Mail.objects.count()) == ({"message": "No e-mail address, no confirmation"}, 0)
    with unchanged():
        assert factories.carry(order, CONFIRM) == answer


def test_failed_order_leaves_stock_and_money_as_before() -> None:
    """O5, X5: whatever was done is undone: stock and money net to zero; the order has failed, for
    the reason of the step that failed."""
    order = factories.order()
    factories.carry(order, *factories.STEPS[:3])
    answer = factories.carry(order, contracts.BEGIN_COMPENSATION, **FAILURE)
    begun = list(factories.STEPS[:3])
    assert answer == {**standing(State.COMPENSATING, reason="card declined"), "begun": begun}
    answers = [factories.carry(order, undo) for undo in factories.UNDOES]
    assert answers == [
        {"message": "The step was never begun; nothing is undone"},
        {"message": "Payment refunded"},
        {"message": "Reservation released"},
    ]
    answer = factories.carry(order, contracts.CLOSE_ORDER, now=LATER)
    assert answer == standing(State.FAILED, reason="card declined")
    assert (order.ends_as, order.ended_at, stock()) == ("failed", LATER, UNTOUCHED)
    assert Charge.objects.get().state == "refunded"
    assert timeline(order) == [
        *((1, step, "completed") for step in factories.STEPS[:3]),
        (1, contracts.PROCESS_PAYMENT, "failed"),
        *((1, undo, "compensated") for undo in factories.UNDOES[1:]),
    ]
    assert order.steps.get(status="failed").message == "card declined"
    assert trail()[1:] == [("failed", "local", "workflow", "card declined")]


# Each step in each state

NEXT: dict[str, dict[State, State]] = {
    contracts.AWAIT_APPROVAL: {},
    contracts.SETTLE_APPROVAL: {State.PENDING: State.RUNNING},
    contracts.COMPLETE_ORDER: {State.RUNNING: State.COMPLETED},
    contracts.BEGIN_COMPENSATION: {
        State.PENDING: State.FAILED,
        State.RUNNING: State.COMPENSATING,
    },
    contracts.CLOSE_ORDER: {State.COMPENSATING: State.FAILED},
}
DETAILS: dict[str, dict[str, Any]] = {contracts.BEGIN_COMPENSATION: FAILURE}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", [*factories.STEPS, CONFIRM])
def test_step_is_allowed_in_its_state_only(unchanged: Unchanged, step: str, state: State) -> None:
    """O3, O5: nothing is carried out before the approval, while it is undone, or after the end;
    what was done while the order ran is answered from the record, and done no second time."""
    order = factories.order(state=state, customer=WITH_ADDRESS)
    done = step != CONFIRM and state == State.COMPLETED
    if state == (State.COMPLETED if step == CONFIRM else State.RUNNING):
        answer = factories.carry(order, step)
        with unchanged():
            assert factories.carry(order, step, now=LATER) == answer
    elif done:
        with unchanged():
            answer = factories.carry(order, step)
        recorded = order.steps.get(name=step)
        assert answer == {**recorded.result, "message": recorded.message}
    else:
        with unchanged(), pytest.raises(fulfilment.NotNow, match=r"^ord-1 is .* in attempt 1\.$"):
            factories.carry(order, step)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("undo", factories.UNDOES)
def test_undo_is_allowed_in_its_states_only(unchanged: Unchanged, undo: str, state: State) -> None:
    """O5: only steps of an order that is being undone, or was undone, are undone; a repeat changes
    nothing."""
    order = factories.order(state=state)
    if state in (State.COMPENSATING, *UNDONE):
        answer = factories.carry(order, undo)
        with unchanged():
            assert factories.carry(order, undo, now=LATER) == answer
    else:
        with unchanged(), pytest.raises(fulfilment.NotNow, match="nothing of it is undone"):
            factories.carry(order, undo)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", NEXT)
def test_question_in_another_state_changes_nothing(
    unchanged: Unchanged, history: History, step: str, state: State
) -> None:
    """O3, O5: each question changes an order once, in the one state that it starts from. A repeat,
    or a question in another state, changes nothing and gets the order's state."""
    history.receive()
    order = factories.order(state=state)
    if state == State.RUNNING:
        factories.carry(order, *factories.STEPS)
    if state in NEXT[step]:
        assert factories.carry(order, step, **DETAILS.get(step, {}))["state"] == NEXT[step][state]
    elif step == contracts.AWAIT_APPROVAL and state == State.PENDING:
        factories.carry(order, step)
        assert Approval.objects.get().expires_at == END
    with unchanged():
        answer = factories.carry(order, step, **DETAILS.get(step, {}), now=LATER)
    stands = asdict(fulfilment.current_state(order, LATER))
    assert answer.items() >= {k: v for k, v in stands.items() if v is not None}.items()
    assert answer["state"] == order.state == NEXT[step].get(state, state)


@pytest.mark.parametrize("state", [State.RUNNING, State.COMPLETED])
def test_repeated_step_calls_no_integration(state: State) -> None:
    """O5: a step that was done is answered from the record, whatever its integration would say
    now."""
    order = factories.order()
    first = factories.carry(order, contracts.CHECK_INVENTORY)
    factories.carry(order, *factories.STEPS[1:])
    if state == State.COMPLETED:
        factories.carry(order, contracts.COMPLETE_ORDER)
    StockItem.objects.update(available=0)
    assert factories.carry(order, contracts.CHECK_INVENTORY) == first


def test_unknown_step_changes_nothing(unchanged: Unchanged) -> None:
    order = factories.order()
    with unchanged(), pytest.raises(fulfilment.UnknownStep):
        factories.carry(order, "no_such_step")


# A step that is added later


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a step that the product has in addition, first of the saga, with an undo."""
    more = [
        contracts.Step("wrap_gift", StepKind.SAGA, undo="unwrap_gift"),
        *contracts.STEPS.values(),
        contracts.Step("unwrap_gift", StepKind.UNDO),
    ]
    monkeypatch.setattr(contracts, "STEPS", {step.name: step for step in more})
    for name in ("wrap_gift", "unwrap_gift"):
        monkeypatch.setitem(
            fulfilment._INTEGRATION_CALLS, name, lambda *_: contracts.StepResult("wrapped")
        )
    return "wrap_gift"


def test_order_has_the_steps_that_it_began_with(
    request: pytest.FixtureRequest, unchanged: Unchanged
) -> None:
    """O2, O5: a step that is added later is neither carried out nor undone, and the order is
    complete without it. The workflow is told the steps of the attempt."""
    order, failing = factories.order(), factories.order("failing")
    for each in (order, failing):
        factories.carry(each, contracts.CHECK_INVENTORY, contracts.RESERVE_INVENTORY)
    added = request.getfixturevalue("added")
    assert contracts.saga_step_names() == [added, *factories.STEPS]
    with unchanged(), pytest.raises(fulfilment.NotNow, match=r"^ord-1 began without the step"):
        factories.carry(Order.objects.get(order_id="ord-1"), added)
    Message.objects.update(outcome=Outcome.DELIVERED, settled_at=factories.NOW)
    assert services.start_again(order)
    start = Message.objects.get(key="order-start:ord-1")
    assert start.payload["argument"]["steps"] == list(factories.STEPS)
    factories.carry(order, *factories.STEPS[2:])
    assert factories.carry(order, contracts.COMPLETE_ORDER) == standing(State.COMPLETED)
    answer = factories.carry(failing, contracts.BEGIN_COMPENSATION, **FAILURE)
    assert answer["begun"] == [contracts.CHECK_INVENTORY, contracts.RESERVE_INVENTORY]
    with unchanged():
        assert "never begun" in factories.carry(failing, "unwrap_gift")["message"]


def test_next_attempt_has_the_steps_of_today(request: pytest.FixtureRequest) -> None:
    """O2, O5: a retry begins with the steps that the product has then, and so does its workflow."""
    order = factories.order(state=State.FAILED)
    added = request.getfixturevalue("added")
    services.retry_order(order, ACT)
    start = Message.objects.get(key="order-start:ord-1")
    assert start.payload["argument"]["steps"] == [added, *factories.STEPS]
    factories.carry(order, added, *factories.STEPS, attempt=2)
    stands = factories.carry(order, contracts.COMPLETE_ORDER, attempt=2)
    assert stands == standing(State.COMPLETED)


# Attempts


@pytest.fixture
def retried() -> Order:
    """An order in its second attempt, at the beginning."""
    order = factories.order(state=State.FAILED)
    services.retry_order(order, ACT)
    return order


@pytest.mark.parametrize("attempt", [1, 3])
def test_steps_of_another_attempt_change_nothing(
    unchanged: Unchanged, retried: Order, attempt: int
) -> None:
    """O5: a run that is not the order's own carries out nothing, and is told to end."""
    with unchanged():
        for step in (*factories.STEPS, CONFIRM):
            with pytest.raises(fulfilment.NotNow):
                factories.carry(retried, step, attempt=attempt)
        for step in NEXT:
            answer = factories.carry(retried, step, attempt=attempt, **DETAILS.get(step, {}))
            reason = f"ord-1 is in attempt 2, not {attempt}."
            assert answer == standing(State.FAILED, reason=reason)


@pytest.mark.parametrize("waits", [False, True], ids=["runs", "waits"])
@pytest.mark.parametrize("step", NEXT)
def test_question_of_an_ended_attempt_gets_failed(
    unchanged: Unchanged, step: str, waits: bool
) -> None:
    """O3, O5: a request that read the order before its retry decides nothing of the next attempt,
    and is told that its own has failed."""
    order = factories.order(state=State.PENDING if waits else State.FAILED)
    if waits:
        factories.carry(order, contracts.BEGIN_COMPENSATION, **FAILURE)
    read_before = Order.objects.get()
    services.retry_order(order, ACT)
    if not waits:
        factories.carry(order, *factories.STEPS, attempt=2)
    with unchanged():
        answer = factories.carry(read_before, step, **DETAILS.get(step, {}))
    assert answer == standing(State.FAILED, reason="ord-1 is in attempt 2, not 1.")


def test_earlier_attempt_is_undone_under_its_own_key(unchanged: Unchanged, retried: Order) -> None:
    """O5: undoing an earlier attempt again does not touch the running attempt."""
    factories.carry(retried, *factories.STEPS, attempt=2)
    with unchanged():
        factories.carry(retried, *factories.UNDOES)
    assert stock() == {"SKU-001": (24, 1), "SKU-003": (48, 2)}


@pytest.mark.parametrize("undo", factories.UNDOES)
def test_later_attempt_is_not_undone(unchanged: Unchanged, retried: Order, undo: str) -> None:
    """O5: an undo is permanent, so an attempt that has not begun is not undone."""
    with unchanged():
        for attempt in (3, 10**30):
            with pytest.raises(fulfilment.NotNow):
                factories.carry(retried, undo, attempt=attempt)


@pytest.mark.parametrize("undo", factories.UNDOES)
def test_undoing_a_step_that_never_began_leaves_no_trace(unchanged: Unchanged, undo: str) -> None:
    """O5, X3: the timeline never says that a payment was refunded which nobody took."""
    order = factories.order(state=State.PENDING)
    factories.carry(order, contracts.BEGIN_COMPENSATION, **FAILURE)
    with unchanged():
        answer = factories.carry(order, undo)
    assert answer == {"message": "The step was never begun; nothing is undone"}


def test_second_attempt_carries_out_every_step_again(retried: Order) -> None:
    """O5: its keys are its own: nothing is answered from the attempt that failed."""
    factories.carry(retried, *factories.STEPS, contracts.COMPLETE_ORDER, attempt=2)
    states = {one.key: one.state for one in Charge.objects.all()}
    assert states == {f"{retried.pk}:1": "refunded", f"{retried.pk}:2": "charged"}
    assert stock() == {"SKU-001": (24, 0), "SKU-003": (48, 0)}
    assert [one for one in timeline(retried) if one[0] == 2] == [
        (2, step, "completed") for step in factories.STEPS
    ]


# What other systems say


def test_declined_step_is_not_recorded(unchanged: Unchanged) -> None:
    """O5: where another system declines, nothing is recorded as done, and the answer has its
    words."""
    order = factories.order()
    Order.objects.update(steps_begun=2)
    StockItem.objects.filter(product_id="SKU-003").update(available=1)
    for step in (contracts.CHECK_INVENTORY, contracts.RESERVE_INVENTORY):
        refusal = r"^Only 1 of SKU-003 are available; 2 were ordered\.$"
        with unchanged(), pytest.raises(integrations.Declined, match=refusal):
            factories.carry(order, step)


class Lost(payment_provider.DatabasePayments):
    """Payments that take the money and then break off."""

    def charge(self, key: str, **how: Any) -> str:
        super().charge(key, **how)
        raise ConnectionResetError


def test_step_after_a_lost_reply_has_one_effect(settings: Any) -> None:
    """O5, X2: a call with an unknown outcome leaves no record; its repeat does not pay twice."""
    order = factories.order()
    own, settings.ORDERS_PAYMENTS = settings.ORDERS_PAYMENTS, f"{__name__}.Lost"
    with pytest.raises(fulfilment.OutcomeUnknown):
        factories.carry(order, contracts.PROCESS_PAYMENT)
    assert (timeline(order), Charge.objects.count()) == ([], 1)
    settings.ORDERS_PAYMENTS = own
    answer = factories.carry(order, contracts.PROCESS_PAYMENT)
    assert answer["charge_id"] == Charge.objects.get().charge_id


class Overtaken(payment_provider.DatabasePayments):
    """Payments that are slow: the order is cancelled and undone before they take the money."""

    def charge(self, key: str, **how: Any) -> str:
        order = Order.objects.get()
        services.cancel_order(order, ACT)
        factories.carry(order, *factories.UNDOES)
        return super().charge(key, **how)


def test_step_after_its_undo_is_declined(settings: Any) -> None:
    """O5: a step that arrives after its undo is declined and has no effect."""
    order = factories.order()
    factories.carry(order, contracts.RESERVE_INVENTORY)
    settings.ORDERS_PAYMENTS = f"{__name__}.Overtaken"
    with pytest.raises(integrations.Declined):
        factories.carry(order, contracts.PROCESS_PAYMENT)
    assert (contracts.PROCESS_PAYMENT, "completed") not in [one[1:] for one in timeline(order)]
    assert (integrations.payments().snapshot(), stock()) == ([], UNTOUCHED)


def test_repeat_after_a_crash_fulfils_the_reservation() -> None:
    """O5: a site that stopped between the completion and the fulfilment of the stock finishes it
    when it is asked again."""
    order = factories.order()
    factories.carry(order, *factories.STEPS)
    Order.objects.update(state=State.COMPLETED, ended_at=factories.NOW)
    assert stock()["SKU-001"] == (24, 1)
    assert factories.carry(order, contracts.COMPLETE_ORDER) == standing(State.COMPLETED)
    assert stock() == {"SKU-001": (24, 0), "SKU-003": (48, 0)}


# The decision: a signal that the site finds in the run's history, or the end of the window

SETTLE = contracts.SETTLE_APPROVAL


@pytest.fixture
def waiting(history: History) -> Order:
    """An order of 1000.01 whose approval window began at factories.NOW and is 5 minutes."""
    order = factories.order(state=State.PENDING)
    factories.carry(order, contracts.AWAIT_APPROVAL)
    return order


def test_window_begins_once(waiting: Order, unchanged: Unchanged) -> None:
    """O1, O4: the site computes when an order expires; a repeat moves it neither forward nor
    back."""
    with unchanged():
        answer = factories.carry(waiting, contracts.AWAIT_APPROVAL, now=LATER)
    assert answer == {**standing(State.PENDING), "seconds_left": 240}
    assert Approval.objects.get().expires_at == END


@pytest.mark.parametrize(
    ("before_end", "left"),
    [(300, 300), (0.001, 1), (1, 1), (1.001, 2), (0, 1), (-1, 1), (-3600, 1)],
)
def test_seconds_left_are_whole_and_at_least_one(
    waiting: Order, before_end: float, left: int
) -> None:
    """O4: whole seconds by the site's clock, rounded up, so that the next question does not come
    too early; never less than one, so that no workflow asks in a tight loop."""
    now = END - timedelta(seconds=before_end)
    assert factories.carry(waiting, contracts.AWAIT_APPROVAL, now=now)["seconds_left"] == left


def test_order_does_not_expire_too_early(waiting: Order, unchanged: Unchanged) -> None:
    """O3, X3: nothing that the caller says decides, and the answer says how long to wait."""
    with unchanged():
        for now, left in ((factories.NOW, 300), (END - timedelta(seconds=1), 1)):
            answer = factories.carry(waiting, SETTLE, reason="I say so", cancelled=True, now=now)
            assert answer == {**standing(State.PENDING), "seconds_left": left}


def test_nothing_expires_before_its_window_began(history: History, unchanged: Unchanged) -> None:
    """O4: an order whose workflow never waited is not expired, however late it is."""
    order = factories.order(state=State.PENDING)
    with unchanged():
        answer = factories.carry(order, SETTLE, now=END + timedelta(days=1))
    assert answer == {**standing(State.PENDING), "seconds_left": 300}


@pytest.mark.parametrize(
    ("name", "reason", "verdict", "state", "stored"),
    [
        ("approve_order", "fine", "APPROVED", State.RUNNING, "fine"),
        ("approve_order", "", "APPROVED", State.RUNNING, ""),
        ("reject_order", "too much", "REJECTED", State.CANCELLED, "too much"),
        ("reject_order", "", "REJECTED", State.CANCELLED, "rejected by signal"),
    ],
)
@pytest.mark.parametrize("now", [LATER, END, END + timedelta(days=1)])
def test_first_signal_decides(
    waiting: Order,
    history: History,
    name: str,
    reason: str,
    verdict: str,
    state: State,
    stored: str,
    now: datetime,
) -> None:
    """O3, O4, X5: the first signal in the history decides, also at the end of the window; one
    decision with one audit row, by whom the client claimed to be. The workflow is told by the
    answer, and by no message."""
    history.receive(name, reason)
    history.receive("approve_order", "second")
    answer = factories.carry(waiting, SETTLE, now=now)
    why = stored if state in UNDONE else ""
    assert answer == standing(state, verdict, stored, reason=why)
    waiting.refresh_from_db()
    assert (waiting.state, waiting.ended_at) == (state, now if state in UNDONE else None)
    approval = Approval.objects.get()
    assert (approval.verdict, approval.entry.by, approval.entry.at) == (verdict, None, now)
    decided = ("signal (1234@host)", "signal", stored)
    assert trail()[1:] == [(verdict.lower(), *decided)]
    assert Message.objects.count() == 1


def test_blank_reason_of_a_signal_counts_as_no_reason(waiting: Order, history: History) -> None:
    """O3: a rejection by signal with a blank reason is stored as "rejected by signal"."""
    history.receive("reject_order", " \n")
    answer = factories.carry(waiting, SETTLE, now=LATER)
    why = "rejected by signal"
    assert answer == standing(State.CANCELLED, "REJECTED", why, reason=why)
    assert trail()[1:] == [("rejected", "signal (1234@host)", "signal", why)]


@pytest.mark.parametrize(
    ("sender", "actor"),
    [
        ("", "signal"),
        ("a\0b\nc\u202ed", "signal (a?b?c?d)"),
        ("x" * 1000, f"signal ({'x' * 130})"),
        ("anna", "signal (anna)"),
    ],
)
def test_sender_of_a_signal_is_recorded_as_claimed(
    waiting: Order, history: History, sender: str, actor: str
) -> None:
    """X5: the name that a client of Temporal gives is recorded as a claim, in one short line."""
    history.receive(sender=sender)
    factories.carry(waiting, SETTLE)
    assert [row[:3] for row in trail()[1:]] == [("approved", actor, "signal")]


@pytest.mark.parametrize("late", [timedelta(), timedelta(hours=1)])
def test_order_expires_at_the_end_of_its_window(waiting: Order, late: timedelta) -> None:
    """O4, X5: when the window is over, and nobody signalled, the order is cancelled."""
    answer = factories.carry(waiting, SETTLE, now=END + late)
    stands = standing(State.CANCELLED, "EXPIRED", "approval timed out", reason="approval timed out")
    assert answer == stands
    assert trail()[1:] == [("expired", "local", "workflow", "approval timed out")]


def test_signals_to_another_run_decide_nothing(
    waiting: Order, history: History, unchanged: Unchanged
) -> None:
    """O3, X7: neither those to the run of another order or attempt."""
    history.receive()
    for memo in (
        {"order": str(waiting.pk), "attempt": 2},
        {"order": "another", "attempt": 1},
        {},
    ):
        history.memo = memo
        with unchanged():
            assert factories.carry(waiting, SETTLE, now=LATER)["state"] == "pending"
    history.memo = {"order": str(waiting.pk), "attempt": 1}
    assert factories.carry(waiting, SETTLE, now=LATER)["state"] == "running"


@pytest.mark.parametrize(
    ("limit", "refusal"),
    [
        (
            None,
            "Signals decide no orders here (ORDERS_SIGNAL_DECISIONS); an approver decides in the "
            "admin or over the API.",
        ),
        (
            Decimal(1000),
            "Signals decide orders of up to 1000 (ORDERS_SIGNAL_LIMIT), and the total is "
            "1,000.01 USD; an approver decides in the admin or over the API.",
        ),
    ],
)
def test_refused_signals_are_audited_and_decide_nothing(
    waiting: Order,
    history: History,
    settings: Any,
    unchanged: Unchanged,
    limit: Decimal | None,
    refusal: str,
) -> None:
    """O3, X3: where a setting leaves the order to people, a signal leaves it pending and is audited
    once, however often the step is repeated; a new one is audited too, and the order expires."""
    if limit is None:
        settings.ORDERS_SIGNAL_DECISIONS = False
    else:
        settings.ORDERS_SIGNAL_LIMIT = limit
    history.receive("approve_order", "mine")
    history.receive("reject_order", "", "")
    for _ in range(5):
        assert factories.carry(waiting, SETTLE)["state"] == "pending"
    assert trail()[1:] == [
        ("refused", "signal (1234@host)", "signal", f"approved: {refusal}"),
        ("refused", "signal", "signal", f"rejected: {refusal}"),
    ]
    with unchanged():
        assert factories.carry(Order.objects.get(), SETTLE)["state"] == "pending"
    history.receive("approve_order")
    assert factories.carry(waiting, SETTLE)["state"] == "pending"
    assert len(trail()) == 4
    assert factories.carry(waiting, SETTLE, now=END)["verdict"] == "EXPIRED"
    assert [row[0] for row in trail()[1:]] == ["refused"] * 3 + ["expired"]
    assert Approval.objects.get().entry == AuditEntry.objects.get(event="expired", actor="local")


def test_signals_decide_up_to_the_limit(waiting: Order, history: History, settings: Any) -> None:
    """O3: the limit itself included."""
    settings.ORDERS_SIGNAL_LIMIT = Decimal("1000.01")
    history.receive()
    assert factories.carry(waiting, SETTLE)["verdict"] == "APPROVED"


def test_refused_signal_stays_refused(waiting: Order, history: History, settings: Any) -> None:
    """O3: a changed setting applies to later signals, and to those of another run."""
    settings.ORDERS_SIGNAL_DECISIONS = False
    history.receive()
    factories.carry(waiting, SETTLE)
    settings.ORDERS_SIGNAL_DECISIONS = True
    assert factories.carry(waiting, SETTLE)["state"] == "pending"
    history.run_id = "run-2"
    assert factories.carry(waiting, SETTLE)["verdict"] == "APPROVED"


def test_delivered_decision_is_not_judged_as_a_signal(
    waiting: Order, history: History, settings: Any, unchanged: Unchanged
) -> None:
    """O3: the outbox delivers a person's decision by a signal. No request judges that signal, not
    even one that read the order before the decision."""
    settings.ORDERS_SIGNAL_DECISIONS = False
    stale = Order.objects.get()
    decide(waiting, Verdict.APPROVED, ACT)
    history.receive("approve_order")
    with unchanged():
        for order in (stale, waiting):
            assert factories.carry(order, SETTLE, now=END)["verdict"] == "APPROVED"


@pytest.mark.parametrize("answers", [False, True], ids=["no answer", "half an answer"])
def test_order_expires_30_s_late_while_temporal_is_silent(
    waiting: Order, history: History, unchanged: Unchanged, answers: bool
) -> None:
    """O3, O4: the workflow asks again, also after the window, because somebody may have signalled
    in time. If Temporal never answers, the order expires 30 s later."""
    history.answers, history.complete = answers, False
    with unchanged():
        for now in (LATER, END, END + timedelta(seconds=29)):
            with pytest.raises(fulfilment.OutcomeUnknown):
                factories.carry(waiting, SETTLE, now=now)
    assert factories.carry(waiting, SETTLE, now=END + timedelta(seconds=30))["verdict"] == "EXPIRED"


@pytest.mark.parametrize("now", [LATER, END + timedelta(hours=1)])
def test_signal_in_an_incomplete_answer_decides(
    waiting: Order, history: History, now: datetime
) -> None:
    """O3: a signal that was read decides, though there may be more; the order does not expire."""
    history.complete = False
    history.receive()
    assert factories.carry(waiting, SETTLE, now=now)["verdict"] == "APPROVED"


@pytest.mark.parametrize("stands", [Verdict.APPROVED, Verdict.REJECTED])
def test_late_signal_decides_nothing(
    unchanged: Unchanged, waiting: Order, history: History, stands: Verdict
) -> None:
    """O3: the first decision holds; the workflow gets that decision, and Temporal is not asked."""
    decide(waiting, stands, factories.act(reason="first"))
    for name in ("approve_order", "reject_order"):
        history.receive(name, "late")
    state = State.RUNNING if stands == Verdict.APPROVED else State.CANCELLED
    waiting.refresh_from_db()
    with unchanged():
        for step in (SETTLE, contracts.AWAIT_APPROVAL):
            answer = factories.carry(waiting, step, now=END)
            assert answer == standing(state, stands, "first", reason=waiting.failure_reason)
    assert history.reads == 0


def test_signal_after_a_cancellation_decides_nothing(
    unchanged: Unchanged, waiting: Order, history: History
) -> None:
    """O3: an order that was cancelled while it waited is not decided any more."""
    services.cancel_order(waiting, factories.act(reason="changed my mind"))
    history.receive()
    with unchanged():
        answer = factories.carry(waiting, SETTLE)
    assert answer == standing(State.CANCELLED, reason="cancelled by local: changed my mind")


def test_caller_cancels_without_naming_a_person(waiting: Order) -> None:
    """O5, X5: the workflow reports a cancellation in Temporal, and cannot attribute it to a
    person."""
    lie = {"reason": "cancelled by anna: changed my mind", "cancelled": True}
    answer = factories.carry(waiting, contracts.BEGIN_COMPENSATION, **lie)
    assert answer["reason"] == "cancelled in Temporal"
    assert trail()[1:] == [("cancelled", "local", "workflow", "cancelled in Temporal")]


# How a compensation begins and ends


@pytest.mark.parametrize("before", [State.PENDING, State.RUNNING])
@pytest.mark.parametrize("cancelled", [False, True])
def test_compensation_ends_with_the_stored_end(before: State, cancelled: bool) -> None:
    """O4, O5: cancelled in Temporal, or failed. A waiting order has nothing to undo and ends at
    once. One audit entry records the end."""
    order = factories.order(state=before)
    event, why = (
        ("cancelled", "cancelled in Temporal") if cancelled else ("failed", "card declined")
    )
    if before == State.PENDING and not cancelled:
        why = "its workflow failed: card declined"
    details = {**FAILURE, "cancelled": cancelled}
    answer = factories.carry(order, contracts.BEGIN_COMPENSATION, **details, now=LATER)
    ends_at_once = before == State.PENDING
    assert answer["state"] == (event if ends_at_once else "compensating")
    assert len(trail()) == (2 if ends_at_once else 1)
    answer = factories.carry(order, contracts.CLOSE_ORDER, now=LATER)
    assert answer == standing(State(event), reason=why)
    order.refresh_from_db()
    assert (order.ends_as, order.ended_at) == (event, LATER)
    assert trail()[1:] == [(event, "local", "workflow", why)]
    failed = [] if cancelled else [(1, contracts.PROCESS_PAYMENT, "failed")]
    assert timeline(order) == failed


def test_first_reason_is_kept(unchanged: Unchanged) -> None:
    """O5: an order fails for the reason that was given first, and a cancelled one stays so."""
    order = factories.order(state=State.COMPENSATING)
    with unchanged():
        for details in ({"reason": "another"}, {"reason": "another", "cancelled": True}):
            answer = factories.carry(order, contracts.BEGIN_COMPENSATION, **details)
            stands = standing(State.COMPENSATING, reason="as made")
            assert answer == {**stands, "begun": list(factories.STEPS)}
    cancelled = factories.order("ord-2")
    services.cancel_order(cancelled, factories.act(reason="too late"))
    factories.carry(cancelled, contracts.BEGIN_COMPENSATION, **FAILURE)
    answer = factories.carry(cancelled, contracts.CLOSE_ORDER)
    assert answer == standing(State.CANCELLED, reason="cancelled by local: too late")


def test_completing_before_the_last_step_changes_nothing(unchanged: Unchanged) -> None:
    """O2, O5: an order is not complete while a step of it was not even begun."""
    order = factories.order()
    for step in factories.STEPS:
        with unchanged():
            assert factories.carry(order, contracts.COMPLETE_ORDER) == standing(State.RUNNING)
        factories.carry(order, step)
    assert factories.carry(order, contracts.COMPLETE_ORDER) == standing(State.COMPLETED)


@pytest.mark.parametrize("state", [State.RUNNING, State.COMPLETED])
def test_closing_a_running_order_changes_nothing(unchanged: Unchanged, state: State) -> None:
    """X1: the decision on a running order still has to reach its workflow."""
    order = factories.order(state=state, large=True)
    with unchanged():
        assert factories.carry(order, contracts.CLOSE_ORDER)["state"] == state


@pytest.mark.parametrize("state", [State.COMPENSATING, *UNDONE])
def test_close_settles_the_messages(state: State) -> None:
    """X1, X6: what waits in the outbox for a workflow that has ended, or found nobody, needs
    nobody's attention any more; what was delivered stays so, and other orders' messages wait."""
    other = factories.order("other", State.PENDING)
    decide(other, Verdict.APPROVED, ACT)
    order = factories.order(state=state, large=True)
    Message.objects.get_or_create(
        key="order-cancel:ord-1",
        defaults={
            "kind": "cancel_workflow",
            "payload": {},
            "outcome": Outcome.UNDELIVERABLE,
            **dict.fromkeys(("created_at", "due_at", "settled_at"), factories.NOW),
        },
    )
    Message.objects.filter(key="order-cancel:ord-1").update(outcome=None, settled_at=None)
    Message.objects.filter(key="order-decision:ord-1").update(
        outcome=Outcome.UNDELIVERABLE, settled_at=factories.NOW
    )
    factories.carry(order, contracts.CLOSE_ORDER)
    messages = {one.key: one for one in Message.objects.all()}
    for key in ("order-decision:ord-1", "order-cancel:ord-1"):
        assert messages[key].outcome == Outcome.OBSOLETE
        assert messages[key].last_error == "Its workflow has ended."
    assert messages["order-decision:ord-1"].settled_at == factories.NOW
    assert messages["order-cancel:ord-1"].settled_at > factories.NOW
    for key in ("order-start:ord-1", "order-start:other", "order-decision:other"):
        assert messages[key].outcome is None


# At once


def ask(order: Order, step: str, **details: Any) -> dict[str, Any]:
    """As a thread of its own asks, with a record of its own."""
    return factories.carry(Order.objects.get(pk=order.pk), step, **details)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (approvals.WrongState, fulfilment.NotNow, integrations.Declined) as refusal:
        return type(refusal)


def cancel(order: Order) -> Any:
    return services.cancel_order(Order.objects.get(pk=order.pk), ACT)


@pytest.mark.django_db(transaction=True)
def test_concurrent_ends_give_one_end() -> None:
    """O5: of a concurrent completion, failure and cancellation exactly one happens. All callers get
    the same answer, and the order is whole or undone."""
    for race in range(9):
        order = factories.order(f"ord-{race}")
        factories.carry(order, *factories.STEPS)
        calls = [
            partial(ask, order, contracts.COMPLETE_ORDER),
            partial(ask, order, contracts.BEGIN_COMPENSATION, **FAILURE),
            partial(outcome, partial(cancel, order)),
        ]
        # Each begins first by turns.
        turn = race % 3
        calls = [calls[turn], *calls[:turn], *calls[turn + 1 :]]
        at_once(calls)
        standings = [
            ask(order, step, **FAILURE)
            for step in (contracts.COMPLETE_ORDER, contracts.BEGIN_COMPENSATION)
        ]
        assert standings[1].pop("begun") == list(factories.STEPS)
        assert standings[0] == standings[1]
        order.refresh_from_db()
        events = trail(order.order_id)[1:]
        charge = Charge.objects.get(key=order.idempotency_key(1))
        if order.state == State.COMPLETED:
            assert events == [("completed", "local", "workflow", "")]
            for undo in factories.UNDOES:
                with pytest.raises(fulfilment.NotNow):
                    ask(order, undo)
            assert charge.state == "charged"
        else:
            cancelled = order.ends_as == "cancelled"
            assert events == [("cancelled", "local", "protocol", "")] * cancelled
            assert Message.objects.filter(key=f"order-cancel:ord-{race}").exists() == cancelled
            for undo in factories.UNDOES:
                ask(order, undo)
            assert ask(order, contracts.CLOSE_ORDER)["state"] == order.ends_as
            charge.refresh_from_db()
            assert charge.state == "refunded"
        held = Reservation.objects.get(key=order.idempotency_key(1)).state
        assert held == ("fulfilled" if order.state == State.COMPLETED else "released")
    completed = Order.objects.filter(state=State.COMPLETED).count()
    assert stock() == {"SKU-001": (25 - completed, 0), "SKU-003": (50 - 2 * completed, 0)}


@pytest.mark.django_db(transaction=True)
def test_concurrent_decisions_give_one_decision(history: History) -> None:
    """O3, X1: of an approval, a rejection, a signal and the end of the window at the same time
    one decides. Temporal is asked outside of any transaction."""
    history.receive("reject_order", "r")
    for race in range(6):
        order = factories.order(f"ord-{race}", State.PENDING)
        factories.carry(order, contracts.AWAIT_APPROVAL)
        # In every other race nobody signalled.
        history.memo = {} if race % 2 else services.memo(order)

        def decided(order: Order, verdict: Verdict) -> Any:
            return decide(Order.objects.get(pk=order.pk), verdict, factories.act(reason="r"))

        calls = [
            *(partial(outcome, partial(decided, order, one)) for one in list(Verdict)[:2]),
            *[partial(ask, order, SETTLE, now=END)] * 3,
        ]
        answers = at_once(calls)
        order.refresh_from_db()
        verdict = order.approval.verdict
        assert {one["verdict"] for one in answers[2:]} == {verdict}
        assert order.state == (State.RUNNING if verdict == "APPROVED" else State.CANCELLED)
        assert [row[0] for row in trail(order.order_id)] == ["submitted", verdict.lower()]
        told = Message.objects.filter(key=f"order-decision:ord-{race}").count()
        assert told == (order.approval.entry.route == Route.PROTOCOL)
        assert sum(isinstance(one, Message) for one in answers[:2]) == told
    assert not history.asked_within_a_transaction


def retry(order: Order) -> Any:
    return services.retry_order(Order.objects.get(pk=order.pk), ACT)


def raced(race: int, *calls: Callable[[], Any]) -> list[Any]:
    """Make the calls at the same moment; each begins first by turns. Their outcomes, in order."""
    turn = race % len(calls)
    outcomes = at_once([partial(outcome, call) for call in (*calls[turn:], *calls[:turn])])
    return [*outcomes[-turn:], *outcomes[:-turn]] if turn else outcomes


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("verdict", [Verdict.APPROVED, Verdict.REJECTED])
@pytest.mark.parametrize("end", ["cancellation", "expiry", "compensation"])
def test_verdict_beside_the_end_of_its_order(history: History, end: str, verdict: Verdict) -> None:
    """O3, O5, X1: of a verdict and a cancellation, the end of the window, or a failure of the
    workflow at the same time, one ends the wait. An approved order may end after its approval."""
    for race in range(10):
        order = factories.order(f"ord-{race}", State.PENDING)
        factories.carry(order, contracts.AWAIT_APPROVAL)
        stale = Order.objects.select_related("approval").get(pk=order.pk)
        decided, _ = raced(
            race,
            partial(decide, stale, verdict, factories.act(reason="r")),
            {
                "cancellation": partial(cancel, order),
                "expiry": partial(ask, order, SETTLE, now=END),
                "compensation": partial(ask, order, contracts.BEGIN_COMPENSATION, **FAILURE),
            }[end],
        )
        order.refresh_from_db()
        approval = order.approval
        events = [row[0] for row in trail(order.order_id)]
        messages = Message.objects.filter(key=f"order-decision:ord-{race}").count()
        if isinstance(decided, Message):
            assert (approval.verdict, messages) == (verdict, 1)
            approved = verdict == Verdict.APPROVED
            ended = approved and end == "cancellation"
            assert events == ["submitted", verdict.lower(), *(["cancelled"] if ended else [])]
            states = {
                "cancellation": State.CANCELLED,
                "expiry": State.RUNNING,
                "compensation": State.COMPENSATING,
            }
            assert order.state == (states[end] if approved else State.CANCELLED)
        else:
            assert (decided, messages) == (approvals.AlreadyDecided, 0)
            assert approval.verdict == ("EXPIRED" if end == "expiry" else "VOID")
            last = {"cancellation": "cancelled", "expiry": "expired", "compensation": "failed"}[end]
            assert events == ["submitted", last]
            assert order.state == (State.FAILED if end == "compensation" else State.CANCELLED)
        assert approval.entry.event in events


@pytest.mark.django_db(transaction=True)
def test_verdict_beside_a_retry_decides_nothing() -> None:
    """O3, X1: a verdict on an attempt that failed before anybody decided never applies to the next
    attempt, which waits for its own; several retries open one approval."""
    for race in range(10):
        order = factories.order(f"ord-{race}", State.PENDING)
        factories.carry(order, contracts.BEGIN_COMPENSATION, **FAILURE)
        stale = Order.objects.select_related("approval").get(pk=order.pk)
        decided, *retried = raced(
            race,
            partial(decide, stale, Verdict.APPROVED, ACT),
            partial(retry, order),
            partial(retry, order),
        )
        assert decided in (approvals.AlreadyDecided, approvals.WrongState)
        assert sorted(map(str, retried)) == sorted(map(str, (None, approvals.WrongState)))
        order.refresh_from_db()
        assert (order.state, order.attempt, order.approval.verdict) == (State.PENDING, 2, None)
        opened = Approval.objects.filter(reference=order.order_id)
        assert [one.verdict for one in opened.exclude(pk=order.approval_id)] == ["VOID"]
        events = [row[0] for row in trail(order.order_id)]
        assert events == ["submitted", "failed", "retried"]
        assert decide(order, Verdict.APPROVED, ACT) is not None


@pytest.mark.django_db(transaction=True)
def test_concurrent_refusals_are_audited_once(history: History, settings: Any) -> None:
    """O3, X5: of several requests that find the same refused signals at the same time one audits
    them."""
    settings.ORDERS_SIGNAL_DECISIONS = False
    order = factories.order(state=State.PENDING)
    for _ in range(3):
        history.receive()
    answers = at_once([partial(ask, order, SETTLE)] * 4)
    assert {one["state"] for one in answers} == {"pending"}
    assert [row[0] for row in trail()] == ["submitted"] + ["refused"] * 3


@pytest.mark.django_db(transaction=True)
def test_step_beside_its_undo_leaves_nothing() -> None:
    """O5: a step that is still on its way while the order is cancelled and undone leaves nothing
    behind, whichever comes first."""

    def undo(order: Order) -> None:
        cancel(order)
        for step in (*factories.UNDOES, contracts.CLOSE_ORDER):
            ask(order, step)

    for race in range(6):
        order = factories.order(f"ord-{race}")
        if race == 0:  # else a cancellation that always comes first leaves nothing to undo
            factories.carry(order, *factories.STEPS)
        at_once(
            [
                partial(undo, order),
                *(partial(outcome, partial(ask, order, step)) for step in factories.STEPS[1:]),
            ]
        )
        order.refresh_from_db()
        assert order.state == State.CANCELLED
    assert stock() == UNTOUCHED
    assert {one.state for one in Reservation.objects.all()} == {"released"}
    assert {one.state for one in Charge.objects.all()} == {"refunded"}
    assert {one.state for one in WarehouseRecord.objects.all()} == {"reverted"}


@pytest.mark.django_db(transaction=True)
def test_concurrent_repeats_have_one_effect() -> None:
    """O5: a step that is asked for several times at the same time is done, and noted, once."""
    order = factories.order()
    for step in factories.STEPS:
        answers = at_once([partial(ask, order, step)] * 4)
        assert all(one == answers[0] for one in answers)
    assert OrderStep.objects.count() == len(factories.STEPS)
    assert (Charge.objects.count(), Shipment.objects.count()) == (1, 1)
    at_once([partial(ask, order, contracts.COMPLETE_ORDER)] * 4)
    assert [row[0] for row in trail()] == ["submitted", "completed"]
    assert stock() == {"SKU-001": (24, 0), "SKU-003": (48, 0)}
