"""Starting a run that a memo tells from others, and signalling and cancelling workflows, on a real
Temporal server."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.common.v1 import Memo, Payload, WorkflowType
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.common import RawValue
from temporalio.service import RPCError

from outbox import handlers, relay, services
from outbox.models import Message
from temporal.client import Temporal, Unreachable
from temporal.inspection import Signals, signals_of
from temporal.outcomes import Outcome
from tests import factories
from tests.waits import Waiter

MEMO = {"order": "3f0c7f0e", "attempt": 1}
OUTCOME = {
    "completed": Outcome.OBSOLETE,
    "canceled": Outcome.OBSOLETE,
    "failed": Outcome.UNDELIVERABLE,
    "terminated": Outcome.UNDELIVERABLE,
    "timed out": Outcome.UNDELIVERABLE,
    "unknown": Outcome.UNDELIVERABLE,
}


@pytest.fixture(autouse=True)
def _address(monkeypatch: pytest.MonkeyPatch, temporal_address: str) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)


@pytest.fixture
async def client(temporal_address: str) -> Client:
    return await Client.connect(temporal_address)


Handle = WorkflowHandle[Any, Any]


async def ended(
    how: str,
    waiting: Waiter,
    client: Client,
    workflow_id: str,
    memo: dict[str, Any] | None = None,
) -> None:
    """Have a run under this id come to an end."""
    if how == "unknown":
        return
    if how == "timed out":
        handle: Handle = await client.start_workflow(
            "Any",
            id=workflow_id,
            task_queue="nobody",
            execution_timeout=timedelta(seconds=1),
            memo=memo,
        )
    else:
        seconds = 1 if how == "failed" else 60
        wait = await waiting(seconds=seconds, attempts=1, workflow_id=workflow_id, memo=memo)
        handle = wait.handle
        address = await wait.address()
        if how == "completed":
            await Temporal().complete_activity(address, "done")
        elif how == "canceled":
            await handle.cancel()
        elif how == "terminated":
            await handle.terminate()
    try:
        await handle.result()
    except WorkflowFailureError:
        assert how != "completed"
    description = await handle.describe()
    assert description.status is not None
    assert description.status.name.lower().replace("_", " ") == how


async def events(handle: Handle) -> list[HistoryEvent]:
    return [event async for event in handle.fetch_history_events()]


# Signal and cancel

SIGNALED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
CANCEL_REQUESTED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED


def tell_both(
    temporal: Temporal, workflow_id: str, *, started: bool
) -> Iterator[Coroutine[Any, Any, Outcome]]:
    """Signal and cancel the run with MEMO."""
    yield temporal.signal_workflow(workflow_id, "approve_order", "", memo=MEMO, started=started)
    yield temporal.cancel_workflow(workflow_id, memo=MEMO, started=started)


async def test_a_signal_reaches_the_run_each_time(waiting: Waiter, client: Client) -> None:
    """O3, X1: the workflow is told, each time it is asked for, whether its start was awaited or
    not."""
    handle = (await waiting(memo=MEMO)).handle
    for started in (True, False):
        told = await Temporal().signal_workflow(
            handle.id, "approve_order", "ä\n", memo=MEMO, started=started
        )
        assert told is Outcome.DELIVERED
    signals: list[Any] = []
    async with asyncio.timeout(20):
        # One that comes during a task of the workflow stands in its history after that.
        while len(signals) < 2:
            signals = [
                (one.signal_name, one.input.payloads)
                for event in await events(handle)
                if (one := event.workflow_execution_signaled_event_attributes).signal_name
            ]
    assert signals == [("approve_order", await client.data_converter.encode(["ä\n"]))] * 2
    await handle.terminate()


async def test_a_repeated_cancellation_asks_once(client: Client) -> None:
    """O5, X1: the workflow is asked to cancel itself, once; a repeat finds that it was."""
    # Nobody works for it, so that it stays as it is.
    handle = await client.start_workflow(
        "Any", id=f"c-{uuid.uuid4()}", task_queue="nobody", memo=MEMO
    )
    temporal = Temporal()
    for started in (True, False):
        told = await temporal.cancel_workflow(handle.id, memo=MEMO, started=started)
        assert told is Outcome.DELIVERED
    asked = [
        event
        for event in await events(handle)
        if event.HasField("workflow_execution_cancel_requested_event_attributes")
    ]
    assert len(asked) == 1
    await handle.terminate()


@pytest.mark.parametrize("how", OUTCOME)
async def test_an_ended_or_unknown_run_is_obsolete_or_undeliverable(
    waiting: Waiter, client: Client, how: str
) -> None:
    """X1, X6: a workflow that came to its end needs no word any more; of one that failed, was
    ended, or is not known, a person is told. While its start is under way, whatever failed before
    is not it: that is waited for."""
    temporal, workflow_id = Temporal(), f"ended-{uuid.uuid4()}"
    await ended(how, waiting, client, workflow_id, MEMO)
    for started in (True, False):
        for tell in tell_both(temporal, workflow_id, started=started):
            if started or how != "unknown":
                assert await tell is OUTCOME[how]
            else:
                with pytest.raises(Unreachable, match="not started yet") as caught:
                    await tell
                assert not caught.value.down


async def test_a_run_with_another_memo_is_never_notified(waiting: Waiter) -> None:
    """X7, X1: the run of another order or attempt, or of another kind, is never told, running or
    ended; that of this one is waited for while its start is under way."""
    for memo in ({**MEMO, "attempt": 2}, None):
        handle = (await waiting(memo=memo)).handle
        for ending in (False, True):
            if ending:
                await handle.terminate()
            for tell in tell_both(Temporal(), handle.id, started=True):
                assert await tell is Outcome.UNDELIVERABLE
            for tell in tell_both(Temporal(), handle.id, started=False):
                with pytest.raises(Unreachable, match="not started yet"):
                    await tell
        told = {event.event_type for event in await events(handle)}
        assert told.isdisjoint({SIGNALED, CANCEL_REQUESTED})


async def test_a_silent_server_or_an_unknown_namespace_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, waiting: Waiter
) -> None:
    """X1: a server that is gone, or has another namespace, is waited for."""
    handle = (await waiting(memo=MEMO)).handle
    for name, value, down in (
        ("TEMPORAL_NAMESPACE", "nowhere", False),
        ("TEMPORAL_ADDRESS", "127.0.0.1:1", True),
    ):
        monkeypatch.setenv(name, value)
        for tell in tell_both(Temporal(), handle.id, started=True):
            with pytest.raises(Unreachable) as caught:
                await tell
            assert caught.value.down is down
    await handle.terminate()


# What a run was told

NAMES = {"approve_order", "reject_order"}
NOTHING = ("", 0)


@pytest.fixture
async def unattended(client: Client) -> AsyncIterator[Handle]:
    """A run with MEMO for which nobody works, so that its history is what clients make it."""
    handle: Handle = await client.start_workflow(
        "Any", id=f"u-{uuid.uuid4()}", task_queue="nobody", memo=MEMO
    )
    yield handle
    with contextlib.suppress(RPCError):
        await handle.terminate()


async def read(handle: Handle, **how: Any) -> Signals:
    asked = {"memo": MEMO, "names": NAMES, "after": NOTHING, **how}
    return await signals_of(Temporal(), handle.id, **asked)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], ""),
        ([None], ""),
        (["fine ü \U0001f600"], "fine ü \U0001f600"),
        ([7], "7"),
        ([["a", None]], "['a', None]"),
        (["first", {"second": 1}], "first"),
        (["nul \0, lone \ud83d"], "nul ?, lone ?"),
        (["x" * 100_000], "x" * 2000),
        ([b"bytes"], "b'bytes'"),
        ([RawValue(Payload(metadata={"encoding": b"odd"}, data=b"\xff"))], ""),
        ([RawValue(Payload(data=b"no encoding"))], ""),
        ([RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b"{"))], ""),
        ([RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b"[" * 100_000))], ""),
        ([RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b"9" * 5000))], ""),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_the_reason_of_a_signal_is_a_text_that_can_be_stored(
    unattended: Handle, arguments: list[Any], reason: str
) -> None:
    """O3: the first argument as a text that can be stored, at most 2,000 characters; "" where there
    is none, or none that can be read."""
    await unattended.signal("approve_order", args=arguments)
    signals = await read(unattended)
    assert [(one.name, one.reason) for one in signals.found] == [("approve_order", reason)]
    assert signals.complete


async def test_signals_are_read_by_name_in_order_and_after_an_event(
    unattended: Handle, temporal_address: str
) -> None:
    """O3: those of the names asked for, oldest first, with the identity as claimed; those after an
    event of the same run, and all where the event is another run's."""
    other = await Client.connect(temporal_address, identity="anna\0")
    await unattended.signal("approve_order", "1")
    await unattended.signal("another", "2")
    await other.get_workflow_handle(unattended.id).signal("reject_order", "3")
    signals = await read(unattended)
    assert signals.run_id == unattended.first_execution_run_id
    assert [(one.name, one.reason) for one in signals.found] == [
        ("approve_order", "1"),
        ("reject_order", "3"),
    ]
    first, second = signals.found
    assert first.sender == (await Client.connect(temporal_address)).identity
    assert second.sender == "anna\0"
    assert first.event_id < second.event_id
    assert (await read(unattended, after=(signals.run_id, first.event_id))).found == (second,)
    assert (await read(unattended, after=(signals.run_id, second.event_id))).found == ()
    assert (await read(unattended, after=("another", second.event_id))).found == (first, second)
    await unattended.terminate()
    assert await read(unattended) == signals


async def test_signals_to_a_run_with_another_memo_are_not_read(unattended: Handle) -> None:
    """O3, X7: of a run with another memo, or of one that is not there, nothing is read."""
    await unattended.signal("approve_order")
    for memo in ({**MEMO, "attempt": 2}, {**MEMO, "attempt": "1"}, {"order": "3f0c7f0e"}, {}):
        assert await read(unattended, memo=memo) == Signals()
    unknown = await signals_of(Temporal(), "no such", memo=MEMO, names=NAMES, after=NOTHING)
    assert unknown == Signals()


async def test_a_flood_of_signals_is_read_in_bounded_time(unattended: Handle) -> None:
    """O3, X11: of a run with thousands of signals the first thousand events are read, in time, and
    a signal among them counts; later ones do not."""
    await unattended.signal("approve_order", "in time")
    for _ in range(12):
        await asyncio.gather(*(unattended.signal("noise", "x" * 1000) for _ in range(100)))
    await unattended.signal("approve_order", "too late")
    began = time.monotonic()
    signals = await read(unattended)
    assert time.monotonic() - began < 2
    assert ([one.reason for one in signals.found], signals.complete) == (["in time"], True)


async def test_signals_of_a_silent_server_are_unknown(
    unattended: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O3: a server that is gone, or has another namespace, says nothing of the signals."""
    for name, value in (
        ("TEMPORAL_NAMESPACE", "nowhere"),
        ("TEMPORAL_ADDRESS", "127.0.0.1:1"),
    ):
        monkeypatch.setenv(name, value)
        with pytest.raises(Unreachable):
            await read(unattended)


async def test_a_history_read_in_part_is_reported_as_incomplete(
    unattended: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O3: where the time is over before the history was read, what was read counts, and the caller
    knows that there may be more."""
    await unattended.signal("approve_order", "read")

    history = await events(unattended)

    async def stalling(handle: Handle) -> AsyncIterator[HistoryEvent]:
        for event in history:
            yield event
        await asyncio.Event().wait()

    monkeypatch.setattr(WorkflowHandle, "fetch_history_events", stalling)
    monkeypatch.setattr("temporal.inspection.SIGNALS_SECONDS", 0.3)
    signals = await read(unattended)
    assert [one.reason for one in signals.found] == ["read"]
    assert not signals.complete


# A run among others under its id


async def start(workflow_id: str, memo: dict[str, Any] = MEMO) -> Outcome:
    return await Temporal().start_workflow(
        "OrderWorkflow", {}, workflow_id=workflow_id, queue="nobody", memo=memo
    )


@pytest.fixture
async def own_id(client: Client) -> AsyncIterator[str]:
    workflow_id = f"own-{uuid.uuid4()}"
    yield workflow_id
    await client.get_workflow_handle(workflow_id).terminate()


async def test_a_repeated_start_finds_its_run_by_the_memo(client: Client, own_id: str) -> None:
    """X1: a repeated start finds the run that the first one made; that of another run waits for
    its end, and starts it then."""
    assert await start(own_id) is Outcome.DELIVERED
    handle = client.get_workflow_handle(own_id)
    first = await handle.describe()
    assert await first.memo() == MEMO
    assert await start(own_id) is Outcome.ALREADY_COMPLETED
    for memo in ({**MEMO, "attempt": 2}, {**MEMO, "attempt": "1"}, {"order": "3f0c7f0e"}):
        with pytest.raises(Unreachable, match="has not ended") as caught:
            await start(own_id, memo)
        assert not caught.value.down
    assert (await handle.describe()).run_id == first.run_id
    await handle.terminate()
    assert await start(own_id, {**MEMO, "attempt": 2}) is Outcome.DELIVERED
    second = await handle.describe()
    assert second.run_id != first.run_id
    assert await second.memo() == {**MEMO, "attempt": 2}
    # The start of the first, delivered once more, begins nothing beside it.
    with pytest.raises(Unreachable, match="has not ended"):
        await start(own_id)


@pytest.mark.parametrize("how", ["failed", "terminated", "timed out", "canceled"])
async def test_the_id_of_a_run_that_did_not_complete_serves_again(
    waiting: Waiter, client: Client, own_id: str, how: str
) -> None:
    """X1: the id of a run that came to no good end serves for the next."""
    await ended(how, waiting, client, own_id)
    assert await start(own_id) is Outcome.DELIVERED
    description = await client.get_workflow_handle(own_id).describe()
    assert (description.status, await description.memo()) == (
        WorkflowExecutionStatus.RUNNING,
        MEMO,
    )


async def test_a_start_after_another_completed_run_is_a_conflict(
    waiting: Waiter, client: Client
) -> None:
    """X1, X6: another run that was completed under the id is a conflict, that is said; without a
    memo it is the one that was meant."""
    workflow_id = f"done-{uuid.uuid4()}"
    await ended("completed", waiting, client, workflow_id)
    assert await start(workflow_id) is Outcome.CONFLICT
    plain = await Temporal().start_workflow("Any", {}, workflow_id=workflow_id, queue="nobody")
    assert plain is Outcome.ALREADY_COMPLETED


async def test_an_unreadable_memo_is_another_memo(client: Client, own_id: str) -> None:
    """X1: what another client wrote into its memo is another memo, readable here or not."""
    odd = Payload(metadata={"encoding": b"odd"}, data=b"?")
    await client.workflow_service.start_workflow_execution(
        StartWorkflowExecutionRequest(
            namespace="default",
            workflow_id=own_id,
            workflow_type=WorkflowType(name="Any"),
            task_queue=TaskQueue(name="nobody"),
            request_id=str(uuid.uuid4()),
            memo=Memo(fields={"order": odd, "attempt": odd}),
        )
    )
    with pytest.raises(Unreachable, match="has not ended"):
        await start(own_id)


async def test_racing_starts_make_one_run(client: Client, own_id: str) -> None:
    """X1: of several starts of one run at the same time one begins it; of those of two runs, one
    waits."""
    assert sorted(await asyncio.gather(*(start(own_id) for _ in range(4)))) == [
        *[Outcome.ALREADY_COMPLETED] * 3,
        Outcome.DELIVERED,
    ]
    answers = await asyncio.gather(
        *(start(own_id, {**MEMO, "attempt": 2}) for _ in range(3)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {Unreachable}


# Messages that have become moot


def message(key: str, **fields: Any) -> Message:
    made: Message = Message.objects.create(
        kind=handlers.SIGNAL_WORKFLOW,
        key=key,
        payload={},
        created_at=factories.NOW,
        **{"due_at": factories.NOW, **fields},
    )
    return made


@pytest.mark.django_db
def test_mark_obsolete_settles_waiting_and_alarming_messages_as_obsolete() -> None:
    """X6: what waits, or alarms, is settled with the reason; what was delivered, and every other
    message, stays as it is."""
    message("waits")
    for outcome in Outcome:
        message(outcome, outcome=outcome, settled_at=factories.NOW)
    message("another")
    keys = ["waits", *Outcome, "no such message"]
    services.mark_obsolete(keys, why="Its workflow has ended.")
    found = {one.key: (one.outcome, one.last_error) for one in Message.objects.all()}
    moot = (Outcome.OBSOLETE, "Its workflow has ended.")
    assert found == {
        "waits": moot,
        "another": (None, ""),
        **dict.fromkeys(("CONFLICT", "UNDELIVERABLE", "DEAD"), moot),
        **{kept: (kept, "") for kept in ("DELIVERED", "ALREADY_COMPLETED", "OBSOLETE")},
    }
    times = dict(Message.objects.values_list("key", "settled_at"))
    assert times.pop("another") is None
    assert times.pop("waits") > factories.NOW
    assert set(times.values()) == {factories.NOW}


@pytest.mark.django_db
@pytest.mark.parametrize("again", [False, True], ids=["settled", "and queued again"])
def test_an_attempt_under_way_does_not_change_an_obsolete_message(again: bool) -> None:
    """X1: an attempt that was under way when its message became moot changes nothing, though
    another is queued by then."""
    under_way = message("k", due_at=relay.database_now() + timedelta(seconds=5))
    services.mark_obsolete(["k"], why="Its workflow has ended.")
    if again:
        assert services.enqueue_again(handlers.CANCEL_WORKFLOW, "k", {"new": True})
    before = list(Message.objects.values())
    attempt = relay.Attempt(under_way, Outcome.UNDELIVERABLE)
    relay.settle([attempt], now=relay.database_now())
    assert list(Message.objects.values()) == before


@pytest.mark.django_db
def test_supersede_marks_alarming_messages_alone_as_obsolete() -> None:
    """X6: the effect of an alarming message happens in another way; other messages stay."""
    message("waits")
    for outcome in Outcome:
        message(outcome, outcome=outcome, settled_at=factories.NOW)
    for key in ("waits", *Outcome):
        services.supersede(key)
    found = dict(Message.objects.values_list("key", "outcome"))
    assert found == {
        "waits": None,
        **dict.fromkeys(("OBSOLETE", "CONFLICT", "UNDELIVERABLE", "DEAD"), Outcome.OBSOLETE),
        **{kept: kept for kept in ("DELIVERED", "ALREADY_COMPLETED")},
    }
