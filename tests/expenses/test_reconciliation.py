"""Each difference between the records and Temporal, made for real: a Temporal server, the
product's worker over HTTP, its relay."""

import asyncio
import contextlib
import io
import logging
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.management import call_command
from django.db import connections
from django.utils import timezone
from pytest_django.live_server_helper import LiveServer
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from approvals import services as approvals
from approvals.models import Approval, Verdict
from expenses import services
from expenses.models import Expense, LedgerEntry, State
from expenses.reconciliation import COMPARISON
from expensesite.management.commands import relay as relay_command
from outbox import reconciliation, relay
from outbox.models import NEEDS_ATTENTION, Message
from outbox.reconciliation import Difference, Reconciler
from temporal import client, inspection
from temporal.outcomes import Outcome
from tests import factories
from tests.conftest import Unchanged, at_once
from tests.outbox import commands
from tests.servers import TemporalServer
from tests.waits import waiter
from worker import contracts
from worker.expenses.activities import ExpenseActivities
from worker.expenses.workflows import SampleExpenseWorkflow
from worker.site import Site

pytestmark = pytest.mark.django_db(transaction=True)

DELIVER, START = "deliver the decision again", "start the workflow again"
RESET = "none; reset the workflow (docs/operations.md)"
LOOK_INTO = "none; find out why the ledger has no payment"


@pytest.fixture(scope="module")
def server() -> Iterator[TemporalServer]:
    """Not the session's: other tests leave workflows on the product's queue there."""
    with TemporalServer() as server:
        yield server


@pytest.fixture(autouse=True)
async def _surroundings(
    server: TemporalServer, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> AsyncIterator[None]:
    monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
    # What a minute's patience hides in production shows here.
    monkeypatch.setattr(reconciliation, "GRACE", timedelta(0))
    settings.EXPENSES_PROTOCOL_ACCESS = "open"
    yield
    await sync_to_async(connections.close_all)()


class Installation:
    """The product at work on one Temporal server: a worker, and what the site and relay do."""

    def __init__(self, temporal: Client, site: Site) -> None:
        self.temporal = temporal
        self.activities = ExpenseActivities(site).all()

    def worked(self, activities: list[Any] | None = None) -> Worker:
        return Worker(
            self.temporal,
            task_queue=contracts.EXPENSE_QUEUE,
            workflows=[SampleExpenseWorkflow],
            activities=activities or self.activities,
            max_cached_workflows=0,
        )

    async def start(self) -> str:
        """The id of an expense whose workflow waits for the decision."""
        expense_id = f"exp-{uuid.uuid4()}"
        await self.temporal.start_workflow(
            contracts.EXPENSE_WORKFLOW,
            expense_id,
            id=contracts.expense_workflow_id(expense_id),
            task_queue=contracts.EXPENSE_QUEUE,
        )
        await until(lambda: Expense.objects.filter(expense_id=expense_id, callback__gt=0).exists())
        return expense_id

    def workflow(self, expense_id: str) -> WorkflowHandle[Any, str]:
        return self.temporal.get_workflow_handle(
            contracts.expense_workflow_id(expense_id), result_type=str
        )

    async def ends(self, expense_id: str) -> str:
        async with asyncio.timeout(40):
            return await self.workflow(expense_id).result()


@pytest.fixture
async def site(live_server: LiveServer) -> AsyncIterator[Site]:
    async with Site(live_server.url) as opened:
        yield opened


@pytest.fixture
async def installation(server: TemporalServer, site: Site) -> Installation:
    return Installation(await Client.connect(server.address), site)


@pytest.fixture
async def worked(installation: Installation) -> AsyncIterator[Installation]:
    async with installation.worked():
        yield installation


async def until(ask: Callable[[], Any], seconds: float = 40) -> Any:
    """The first true answer of a question to the database."""
    async with asyncio.timeout(seconds):
        while not (answer := await sync_to_async(ask)()):
            await asyncio.sleep(0.05)
        return answer


async def decide(
    expense_id: str, verdict: Verdict = Verdict.APPROVED, *, at: datetime | None = None
) -> None:
    def take() -> None:
        approvals.decide(
            Approval.objects.get(reference=expense_id),
            verdict,
            factories.act(at=at or timezone.now(), reason="asked"),
        )

    await sync_to_async(take)()


async def deliver() -> int:
    """A relay's step; the number of messages that it settled."""
    settled = Message.objects.filter(settled_at__isnull=False)
    before = await settled.acount()
    await relay.Relay().step()
    return await settled.acount() - before


async def all_differences() -> list[Difference]:
    now = timezone.now()
    found = COMPARISON.everything(client.Temporal(), now, lambda done: None)
    return [difference async for difference in found]


async def suspected() -> list[Difference]:
    found = COMPARISON.suspects(client.Temporal(), timezone.now())
    return [difference async for difference in found]


async def until_suspected(count: int = 1) -> list[Difference]:
    """What the relay's look finds, once the visibility store has caught up."""
    async with asyncio.timeout(40):
        while len(found := await suspected()) < count:
            await asyncio.sleep(0.1)
        return found


async def reconcile(*arguments: str) -> tuple[int, str]:
    # Not the thread in which the command uses the database.
    return await asyncio.to_thread(commands.reconcile, *arguments)


def said(difference: Difference) -> tuple[str, str, str, str]:
    return difference.subject, difference.record, difference.workflow, difference.remedy


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the comparison logged at WARNING or above."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "outbox.reconciliation" and record.levelno >= logging.WARNING
    ]


async def paid_once(expense_id: str) -> bool:
    paid = LedgerEntry.objects.filter(expense__expense_id=expense_id)
    return (
        await paid.acount() == 1
        and await Expense.objects.filter(expense_id=expense_id, state=State.COMPLETED).aexists()
    )


async def nothing_changes(unchanged: Unchanged) -> None:
    """Neither the relay's look nor the command finds or queues anything, twice."""

    def compare() -> None:
        with unchanged():
            for _ in range(2):
                asyncio.run(Reconciler().step())
                output = io.StringIO()
                call_command("reconcile", "--fix", stdout=output)
                assert (
                    output.getvalue() == "Nothing differs, but for what changed in the last 30 s.\n"
                )
        connections.close_all()

    await asyncio.to_thread(compare)


def delete(message: Message) -> None:
    message.delete()


def settle(outcome: Outcome) -> Callable[[Message], None]:
    def change(message: Message) -> None:
        message.outcome, message.settled_at = outcome, timezone.now()
        message.save()

    return change


def spoil(message: Message) -> None:
    message.payload = {}
    settle(Outcome.DEAD)(message)


@pytest.mark.parametrize(
    "lose",
    [delete, settle(Outcome.DELIVERED), settle(Outcome.UNDELIVERABLE), spoil],
    ids=["deleted", "not delivered", "given up", "spoilt"],
)
async def test_a_lost_decision_is_delivered_again(
    worked: Installation,
    lose: Callable[[Message], None],
    unchanged: Unchanged,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """X1: a workflow that still waits for a decision is told it by the relay itself."""
    expense_id = await worked.start()
    await decide(expense_id)
    key = services.KIND.key("decision", expense_id)
    await sync_to_async(lambda: lose(Message.objects.get(key=key)))()
    expected = (
        f"expense {expense_id}",
        "APPROVED",
        "its workflow waits for the decision",
        DELIVER,
    )
    assert [said(one) for one in await until_suspected()] == [expected]
    assert [said(one) for one in await all_differences()] == [expected]

    await Reconciler().step()
    await Reconciler().step()
    assert logged(caplog) == [
        f"expense {expense_id}: APPROVED here, in Temporal its workflow waits for the decision; "
        f"queued: {DELIVER}"
    ]
    assert await deliver() == 1
    assert await worked.ends(expense_id) == "COMPLETED"
    assert await paid_once(expense_id)
    message = await Message.objects.aget(key=key)
    assert message.outcome == Outcome.DELIVERED
    await nothing_changes(unchanged)


async def test_a_lost_decision_of_a_plain_client_is_delivered_again(server: TemporalServer) -> None:
    """X1: a workflow that the expense does not own is told at the activity that it registered."""
    async with waiter(await Client.connect(server.address)) as start:
        wait = await start(workflow_id=f"plain-{uuid.uuid4()}")
        address = await wait.address()
        await sync_to_async(factories.expense)("plain", State.REJECTED, callback=address)
        await Message.objects.all().adelete()
        [difference] = await all_differences()
        assert said(difference) == (
            "expense plain",
            "REJECTED",
            "its workflow waits for the decision",
            DELIVER,
        )
        code, output = await reconcile("--fix")
        assert (code, output.splitlines()[-1]) == (0, "1 differs; 1 queued, and a relay delivers.")
        assert await deliver() == 1
        assert await wait.handle.result() == "REJECTED"
        assert await all_differences() == []
        # The workflow id serves again, and waits at an activity of the same id.
        again = await start(workflow_id=wait.handle.id)
        assert (await again.address()).activity_id == address.activity_id
        assert await all_differences() == []
        await again.handle.terminate()


def test_a_workflow_id_that_served_twice_is_compared_once() -> None:
    """X7: of the expenses that a workflow id served, the open one is compared with it, whatever the
    clocks of the machines that made them; else the newest."""
    later = factories.NOW + timedelta(days=1)
    factories.expense("settled", State.REJECTED, workflow_id="again", now=later)
    served = factories.expense("open", State.CREATED, workflow_id="again")
    compared = COMPARISON.rows().values_list("expense_id", flat=True)
    assert list(compared) == ["open"]
    approvals.decide(served.approval, Verdict.APPROVED, factories.act())
    assert list(compared.all()) == ["open"]
    served.refresh_from_db()
    services.record_payment(served, factories.act())
    assert list(compared.all()) == ["settled"]


async def test_healthy_expenses_never_differ(worked: Installation) -> None:
    """X1: no false alarm, at any moment of healthy expenses, even without any grace."""
    relaying = relay.Relay()
    task = asyncio.create_task(relaying.run())
    verdicts = [Verdict.APPROVED, Verdict.APPROVED, Verdict.REJECTED] * 8
    ids = await asyncio.gather(*(worked.start() for _ in verdicts))

    looked = asyncio.Event()

    async def carry() -> list[str]:
        await asyncio.gather(*map(decide, ids[1:], verdicts[1:]))
        await looked.wait()
        await decide(ids[0], verdicts[0])
        return await asyncio.gather(*map(worked.ends, ids))

    carried = asyncio.create_task(carry())
    while not carried.done():
        for _ in range(2):
            assert await all_differences() == []
            assert await suspected() == []
        looked.set()
    relaying.stop()
    await task
    assert await carried == ["COMPLETED", "COMPLETED", ""] * 8
    assert await all_differences() == []


async def test_an_end_between_the_two_reads_is_no_difference(installation: Installation) -> None:
    """X1: an expense that is paid after its record was read, and before Temporal is asked, does
    not differ."""
    async with installation.worked():
        expense_id = await installation.start()
    await decide(expense_id)
    assert await deliver() == 1

    class Crossing(client.Temporal):
        async def describe(self, workflow_id: str, run_id: str = "") -> client.Description | None:
            async with installation.worked():
                assert await installation.ends(expense_id) == "COMPLETED"
            return await super().describe(workflow_id, run_id)

    found = COMPARISON.everything(Crossing(), timezone.now(), lambda done: None)
    assert [difference async for difference in found] == []
    assert await paid_once(expense_id)


async def test_young_changes_are_no_difference(
    worked: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: a decision, and a wait, less than 30 s old is still under way."""
    monkeypatch.setattr(reconciliation, "GRACE", timedelta(seconds=30))
    ids = [await worked.start() for _ in range(2)]
    waits_since = timezone.now()
    await decide(ids[0], at=waits_since - timedelta(days=1))
    await decide(ids[1], at=waits_since + timedelta(seconds=40))
    await Message.objects.all().adelete()

    async def after(seconds: float) -> list[str]:
        now = waits_since + timedelta(seconds=seconds)
        found = COMPARISON.everything(client.Temporal(), now, lambda done: None)
        return [difference.subject async for difference in found]

    assert await after(25) == []
    assert await after(65) == [f"expense {ids[0]}"]
    assert sorted(await after(75)) == sorted(f"expense {one}" for one in ids)


async def test_a_terminated_workflow_is_started_again_on_request_alone(
    worked: Installation, unchanged: Unchanged, caplog: pytest.LogCaptureFixture
) -> None:
    """X1, X2: a workflow that was ended before it paid is started again when a person says so; the
    relay names it once an hour."""
    expense_id = await worked.start()
    await worked.workflow(expense_id).terminate()
    await decide(expense_id)
    assert await deliver() == 1
    expected = (f"expense {expense_id}", "APPROVED", "its workflow ended: terminated", START)
    assert [said(one) for one in await until_suspected()] == [expected]
    reconciler, before = Reconciler(), await sync_to_async(factories.records)()
    await reconciler.step()
    await reconciler.step()
    assert logged(caplog) == [
        "Differs from Temporal, see `manage.py reconcile`: "
        f"expense {expense_id}: APPROVED here, in Temporal its workflow ended: terminated"
    ]
    code, output = await reconcile()
    assert code == 2
    for cell in expected:
        assert cell in output
    assert output.endswith("1 differs; 1 can be queued with --fix.")
    assert await sync_to_async(factories.records)() == before

    assert await Message.objects.filter(NEEDS_ATTENTION).acount() == 1
    assert (await reconcile("--fix"))[0] == 0
    assert await Message.objects.filter(NEEDS_ATTENTION).acount() == 0
    # Queued already: nothing is to be done until that is delivered.
    assert await reconcile("--fix") == (
        0,
        "Nothing differs, but for what changed in the last 30 s.\n",
    )
    assert await deliver() == 1
    assert await worked.ends(expense_id) == "COMPLETED"
    assert await paid_once(expense_id)
    await nothing_changes(unchanged)


async def test_a_failed_payment_is_started_again_on_request(installation: Installation) -> None:
    """X2: an approved expense whose payment failed for good is paid once after a new start."""

    @activity.defn(name=contracts.PAYMENT)
    async def refuse(expense_id: str) -> None:
        raise ApplicationError("no", non_retryable=True)

    async with installation.worked([*installation.activities[:2], refuse]):
        expense_id = await installation.start()
        await decide(expense_id)
        assert await deliver() == 1
        with pytest.raises(WorkflowFailureError):
            await installation.ends(expense_id)
    [difference] = await until_suspected()
    assert said(difference)[1:] == ("APPROVED", "its workflow ended: failed", START)
    assert not difference.automatic
    assert (await reconcile("--fix"))[0] == 0
    assert await deliver() == 1
    async with installation.worked():
        assert await installation.ends(expense_id) == "COMPLETED"
    assert await paid_once(expense_id)
    assert await all_differences() == []


async def test_after_a_wiped_server_open_expenses_start_again(
    worked: Installation, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: after the loss of Temporal's data new workflows carry the open expenses. Settled expenses
    need no workflow, as after retention."""
    ids = [await worked.start() for _ in range(3)]
    created, approved, rejected = ids
    await decide(rejected, Verdict.REJECTED)
    assert await deliver() == 1
    assert await worked.ends(rejected) == ""
    with TemporalServer() as fresh:
        monkeypatch.setenv("TEMPORAL_ADDRESS", fresh.address)
        await decide(approved)
        assert await deliver() == 1
        found = sorted(said(one) for one in await all_differences())
        assert found == sorted(
            [
                (f"expense {created}", "CREATED", "its workflow is unknown", START),
                (f"expense {approved}", "APPROVED", "its workflow is unknown", START),
            ]
        )
        assert (await reconcile("--fix"))[0] == 0
        assert await deliver() == 2
        again = Installation(await Client.connect(fresh.address), site)
        async with again.worked():
            assert await again.ends(approved) == "COMPLETED"
            old = await Expense.objects.aget(expense_id=created, state=State.CREATED)
            await until(
                lambda: Expense.objects.filter(
                    expense_id=created,
                    callback__run_id__gt="",
                    callback__registered_at__gt=old.created_at,
                ).exists()
            )
            await decide(created)
            async with asyncio.timeout(40):
                while not await deliver():
                    await asyncio.sleep(0.1)
            assert await again.ends(created) == "COMPLETED"
        assert await paid_once(created)
        assert await paid_once(approved)
        assert await all_differences() == []


async def test_each_contradicting_result_is_named_and_not_guessed_away(
    installation: Installation,
) -> None:
    """X2: COMPLETED ⇔ result "COMPLETED", REJECTED ⇔ ""; the command names each contradiction
    and fixes none by guessing."""
    states = (State.CREATED, State.APPROVED, State.REJECTED, State.WITHDRAWN, State.COMPLETED)
    expected: dict[tuple[State, str], str | None] = {
        (State.CREATED, ""): RESET,
        (State.CREATED, "COMPLETED"): LOOK_INTO,
        (State.APPROVED, ""): RESET,
        (State.APPROVED, "COMPLETED"): LOOK_INTO,
        (State.REJECTED, ""): None,
        (State.REJECTED, "COMPLETED"): LOOK_INTO,
        (State.WITHDRAWN, ""): None,
        (State.WITHDRAWN, "COMPLETED"): LOOK_INTO,
        (State.COMPLETED, ""): RESET,
        (State.COMPLETED, "COMPLETED"): None,
    }

    @activity.defn(name=contracts.CREATE_EXPENSE)
    async def create(expense_id: str) -> None:
        pass

    @activity.defn(name=contracts.WAIT_FOR_DECISION)
    async def wait(expense_id: str) -> str:
        return "APPROVED" if expense_id.endswith("COMPLETED") else "REJECTED"

    @activity.defn(name=contracts.PAYMENT)
    async def pay(expense_id: str) -> None:
        pass

    mark = uuid.uuid4()
    async with installation.worked([create, wait, pay]):
        for state, result in expected:
            expense_id = f"{mark}-{state}-{result}"
            if state == State.WITHDRAWN:
                await sync_to_async(factories.expense)(expense_id, state)
            else:
                workflow_id = contracts.expense_workflow_id(expense_id)
                await sync_to_async(factories.expense)(expense_id, state, workflow_id=workflow_id)
            await installation.temporal.start_workflow(
                contracts.EXPENSE_WORKFLOW,
                expense_id,
                id=contracts.expense_workflow_id(expense_id),
                task_queue=contracts.EXPENSE_QUEUE,
            )
            assert await installation.ends(expense_id) == result
    # A workflow id that served before: the run is the newer expense's.
    await sync_to_async(factories.expense)(
        f"{mark}-older",
        State.REJECTED,
        workflow_id=contracts.expense_workflow_id(f"{mark}-COMPLETED-COMPLETED"),
        now=factories.NOW - timedelta(days=1),
    )
    await Message.objects.all().adelete()
    wrong = sorted(
        (f"expense {mark}-{state}-{result}", state, f'its workflow returned "{result}"', remedy)
        for (state, result), remedy in expected.items()
        if remedy
    )
    assert sorted(said(one) for one in await all_differences()) == wrong
    assert set(states) == {state for state, _ in expected}
    found = await until_suspected(4)
    assert sorted(said(one) for one in found) == [
        one for one in wrong if one[1] in (State.CREATED, State.APPROVED)
    ]
    code, output = await reconcile("--fix")
    assert (code, output.splitlines()[-1]) == (2, "7 differ; 0 queued; see to the rest.")
    assert not await Message.objects.aexists()


async def test_workflows_of_others_are_left_to_their_clients() -> None:
    """X1, X7: an expense without a workflow has nothing to compare; one whose workflow a client
    started is named, and not started in its place."""
    await sync_to_async(factories.expense)("plain", State.APPROVED)
    await sync_to_async(factories.expense)("client's", State.CREATED, workflow_id="their-own")
    [difference] = await all_differences()
    assert said(difference) == (
        "expense client's",
        "CREATED",
        "its workflow is unknown",
        "none; who started the workflow can start it again",
    )
    assert difference.enqueue is None


async def test_more_suspects_than_a_sample_have_their_turn_later(
    worked: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: the relay compares a bounded number; the others have their turn in the next minutes."""
    ids = [await worked.start() for _ in range(3)]
    for expense_id in ids:
        await decide(expense_id)
    await Message.objects.all().adelete()
    with monkeypatch.context() as pages:
        pages.setattr(inspection, "PAGE_SIZE", 2)
        pages.setattr(reconciliation, "BATCH", 2)
        assert len(await until_suspected(3)) == len(await all_differences()) == 3
    monkeypatch.setattr(reconciliation, "SAMPLE", 1)
    for queued in (1, 2, 3):
        await Reconciler().step()
        assert await Message.objects.acount() == queued
    assert await deliver() == 3
    assert [await worked.ends(expense_id) for expense_id in ids] == ["COMPLETED"] * 3


@pytest.mark.parametrize("again", [services.notify_again, services.start_again])
@pytest.mark.parametrize("settled", [True, False])
def test_two_concurrent_fixes_queue_one_message(
    again: Callable[[Expense], bool], settled: bool
) -> None:
    """X1: two relays, or a relay and a person, that fix the same difference queue one message."""
    expense = factories.expense("race", State.APPROVED, workflow_id="expense_race")
    Message.objects.all().delete()
    if settled:
        assert again(expense)
        settle(Outcome.DELIVERED)(Message.objects.get())
    assert sorted(at_once([partial(again, expense)] * 4)) == [False, False, False, True]
    assert Message.objects.filter(settled_at=None).count() == 1


async def test_the_relay_compares_automatically(worked: Installation) -> None:
    """X1: `manage.py relay` finds and delivers a lost decision, and stops at SIGTERM."""
    expense_id = await worked.start()
    await decide(expense_id)
    await Message.objects.all().adelete()
    await until_suspected()
    running = asyncio.create_task(relay_command.Command()._run())
    with contextlib.suppress(TimeoutError):
        assert await worked.ends(expense_id) == "COMPLETED"
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(40):
        await running
    assert await paid_once(expense_id)


async def test_without_temporal_reconcile_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """X1: the command says so, with exit code 1."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    assert await reconcile() == (
        1,
        "Temporal at 127.0.0.1:1 does not answer. Compare again when it answers.",
    )
