"""Each outcome of a call to Temporal, on a real server (requirements X1)."""

import asyncio
import dataclasses
import signal
import uuid
from pathlib import Path

import pytest
from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution
from temporalio.api.workflowservice.v1 import (
    PauseWorkflowExecutionRequest,
    ResetWorkflowExecutionRequest,
    RespondActivityTaskCompletedRequest,
    UnpauseWorkflowExecutionRequest,
)
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from temporal.addresses import Address, ids_in_token
from temporal.client import Temporal, Unreachable, connect_options
from temporal.inspection import run_of
from temporal.outcomes import Outcome
from tests.servers import FAST, TemporalServer
from tests.waits import Waiter, Waiting, waiter


@pytest.fixture(autouse=True)
def _address(monkeypatch: pytest.MonkeyPatch, temporal_address: str) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)


def unnamed(address: Address) -> Address:
    """The address that is stored where a plain client registered the token alone."""
    return Address(address.token).with_ids_of(ids_in_token(address.token))


async def test_the_token_completes_the_waiting_activity(waiting: Waiter) -> None:
    """E9: the waiting activity is completed with the value."""
    wait = await waiting()
    address = await wait.address()
    assert await Temporal().complete_activity(address, "APPROVED") is Outcome.DELIVERED
    assert await wait.handle.result() == "APPROVED"


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("second", "outcome"),
    [("APPROVED", Outcome.ALREADY_COMPLETED), ("REJECTED", Outcome.CONFLICT)],
)
async def test_a_repeat_is_already_completed_and_another_value_a_conflict(
    waiting: Waiter, named: bool, second: str, outcome: Outcome
) -> None:
    """X1: a repeat finds its own value in the history; another value is a conflict, and the
    first one stays. Ids that were not registered are read from the token."""
    wait = await waiting()
    address = await wait.address()
    address = address if named else unnamed(address)
    temporal = Temporal()
    assert await temporal.complete_activity(address, "APPROVED") is Outcome.DELIVERED
    assert await temporal.complete_activity(address, second) is outcome
    assert await wait.handle.result() == "APPROVED"
    assert await temporal.complete_activity(address, second) is outcome


@pytest.mark.parametrize("named", [True, False])
async def test_a_token_of_an_earlier_attempt_completes_the_current_attempt(
    waiting: Waiter, named: bool
) -> None:
    """W7: the attempt timed out and another waits; its token is void, its ids are not."""
    wait = await waiting(seconds=1)
    first = await wait.address()
    await wait.address()
    address = first if named else unnamed(first)
    assert await Temporal().complete_activity(address, "APPROVED") is Outcome.DELIVERED
    assert await wait.handle.result() == "APPROVED"


@pytest.mark.parametrize("end", ["terminate", "cancel"])
async def test_an_activity_of_a_closed_workflow_is_undeliverable(waiting: Waiter, end: str) -> None:
    """E9: nobody waits any more; the outcome says so, and no attempt follows."""
    wait = await waiting()
    address = await wait.address()
    await getattr(wait.handle, end)()
    with pytest.raises(Exception, match=r"failed|terminated|cancel"):
        await wait.handle.result()
    assert await Temporal().complete_activity(address, "APPROVED") is Outcome.UNDELIVERABLE


async def test_an_activity_after_its_last_attempt_is_undeliverable(waiting: Waiter) -> None:
    """E9: the last attempt is over."""
    wait = await waiting(seconds=1, attempts=1)
    address = await wait.address()
    with pytest.raises(Exception, match="failed"):
        await wait.handle.result()
    assert await Temporal().complete_activity(address, "APPROVED") is Outcome.UNDELIVERABLE


async def test_an_unreadable_token_without_ids_is_dead() -> None:
    """E9: Temporal cannot read the address."""
    assert await Temporal().complete_activity(Address(b"garbage"), "APPROVED") is Outcome.DEAD


async def test_ids_repair_an_unreadable_token(waiting: Waiter) -> None:
    """X1: the ids repair a corrupt token."""
    wait = await waiting()
    address = dataclasses.replace(await wait.address(), token=b"garbage")
    assert await Temporal().complete_activity(address, "REJECTED") is Outcome.DELIVERED
    assert await wait.handle.result() == "REJECTED"


async def test_a_used_token_without_ids_is_undeliverable(waiting: Waiter) -> None:
    """E9: without any id nobody can be asked."""
    wait = await waiting()
    address = await wait.address()
    temporal = Temporal()
    await temporal.complete_activity(address, "APPROVED")
    alone = Address(address.token)
    assert await temporal.complete_activity(alone, "APPROVED") is Outcome.UNDELIVERABLE


async def test_a_wait_that_nobody_registered_is_completed_once(
    waiting: Waiter, temporal_address: str
) -> None:
    """X1, W7: the task was lost on its way to the worker, or has no worker yet. The decision
    completes the wait once; a repeat finds how the wait ended."""
    temporal, client = Temporal(), await Client.connect(temporal_address)

    async def told(workflow_id: str, value: str, *, started: bool = True) -> Outcome:
        return await temporal.complete_wait(
            workflow_id, "wait", workflow_id, value, started=started
        )

    lost = await waiting()
    await lost.address()
    # The workflow's task is done by a worker that takes no activities.
    unserved = f"unserved-{uuid.uuid4()}"
    async with Worker(
        client,
        task_queue=unserved,
        workflows=[Waiting],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        queued = await client.start_workflow(
            Waiting.run, args=[60.0, 0], id=unserved, task_queue=unserved
        )
        for handle in (lost.handle, queued):
            async with asyncio.timeout(20):
                while True:
                    try:
                        outcome = await told(handle.id, "APPROVED")
                        break
                    except Unreachable as error:
                        # The first workflow task of the second is not done yet.
                        assert not error.down  # noqa: PT017
                        await asyncio.sleep(0.05)
            assert outcome is Outcome.DELIVERED
            assert await handle.result() == "APPROVED"
    again = [await told(lost.handle.id, value) for value in ("APPROVED", "REJECTED")]
    assert again == [Outcome.ALREADY_COMPLETED, Outcome.CONFLICT]
    assert await told("no-such", "APPROVED") is Outcome.UNDELIVERABLE
    # The start of the workflow may still come.
    with pytest.raises(Unreachable, match="not started yet") as caught:
        await told("no-such", "APPROVED", started=False)
    assert not caught.value.down


async def test_a_wait_with_another_argument_is_never_completed(waiting: Waiter) -> None:
    """X7: a workflow id may serve again, for another expense, whose wait has another argument."""
    temporal, other = Temporal(), await waiting()
    await other.address()
    wait = (other.handle.id, "wait", "another expense", "REJECTED")
    with pytest.raises(Unreachable, match="does not wait for this activity") as caught:
        await temporal.complete_wait(*wait, started=True)
    assert not caught.value.down
    await other.handle.terminate()
    assert await temporal.complete_wait(*wait, started=True) is Outcome.UNDELIVERABLE


async def test_ids_without_a_run_id_repair_nothing(waiting: Waiter) -> None:
    """X7: ids that do not say which run are no repair; they may have been guessed beforehand."""
    wait = await waiting()
    address = dataclasses.replace(await wait.address(), token=b"garbage", run_id="")
    assert await Temporal().complete_activity(address, "APPROVED") is Outcome.UNDELIVERABLE
    assert (await wait.handle.describe()).status is WorkflowExecutionStatus.RUNNING


async def test_an_unknown_workflow_is_undeliverable(waiting: Waiter) -> None:
    """X1: a history that retention deleted is unknown, not a conflict."""
    address = dataclasses.replace(await (await waiting()).address(), workflow_id="gone")
    damaged = dataclasses.replace(address, token=b"garbage")
    assert await Temporal().complete_activity(damaged, "APPROVED") is Outcome.UNDELIVERABLE


async def test_an_activity_that_is_not_waiting_yet_is_tried_again(waiting: Waiter) -> None:
    """X1: the workflow runs but does not wait there (yet): asked again, never given up."""
    address = dataclasses.replace(
        await (await waiting()).address(), token=b"garbage", activity_id="99"
    )
    with pytest.raises(Unreachable) as raised:
        await Temporal().complete_activity(address, "APPROVED")
    assert not raised.value.down


async def test_after_a_reset_the_new_run_is_completed(
    waiting: Waiter, temporal_address: str
) -> None:
    """X1: a reset makes a new run; the decision reaches the run that waits now."""
    wait = await waiting()
    address = await wait.address()
    client = await Client.connect(temporal_address)
    await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace="default",
            workflow_execution=WorkflowExecution(workflow_id=wait.handle.id),
            reason="test",
            request_id="reset",
            workflow_task_finish_event_id=4,
        )
    )
    renewed = await wait.address()
    assert renewed.run_id != address.run_id
    assert await Temporal().complete_activity(address, "APPROVED") is Outcome.DELIVERED
    assert await client.get_workflow_handle(wait.handle.id).result() == "APPROVED"


async def test_an_unknown_namespace_is_tried_again(
    waiting: Waiter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: a server that does not know the namespace is misconfigured; the decision is kept."""
    address = await (await waiting()).address()
    other = TemporalServer(tmp_path)
    other.start()
    try:
        monkeypatch.setenv("TEMPORAL_ADDRESS", other.address)
        for tried, namespace in ((Address(address.token), "default"), (address, "nowhere")):
            temporal = Temporal()
            monkeypatch.setenv("TEMPORAL_NAMESPACE", namespace)
            with pytest.raises(Unreachable, match="namespace") as raised:
                await temporal.complete_activity(tried, "APPROVED")
            assert not raised.value.down
    finally:
        other.kill()


async def test_a_paused_workflow_is_completed_once_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """X1: a decision on a paused workflow is delivered once the workflow goes on."""
    with TemporalServer(config=[*FAST, "frontend.WorkflowPauseEnabled=true"]) as server:
        monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
        client, temporal = await Client.connect(server.address), Temporal()
        async with waiter(client) as start:
            begun = await start()
            await begun.address()
            handle = begun.handle
            who = {"namespace": "default", "workflow_id": handle.id}
            await client.workflow_service.pause_workflow_execution(
                PauseWorkflowExecutionRequest(**who)
            )
            wait = (handle.id, "wait", handle.id, "APPROVED")
            with pytest.raises(Unreachable, match="paused") as raised:
                await temporal.complete_wait(*wait, started=True)
            assert not raised.value.down
            run = await run_of(temporal, handle.id)
            assert run is not None
            assert (run.status, run.waits_for, run.idle) == ("paused", (), False)
            await client.workflow_service.unpause_workflow_execution(
                UnpauseWorkflowExecutionRequest(**who)
            )
            assert await temporal.complete_wait(*wait, started=True) is Outcome.DELIVERED
            assert await handle.result() == "APPROVED"


async def test_a_silent_server_is_waited_for_and_the_token_survives_its_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1, W7: a dead or frozen server is waited for, in bounded time; the same token works after
    its restart."""
    server = TemporalServer(tmp_path)
    server.start()
    monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
    try:
        async with waiter(await Client.connect(server.address)) as start:
            wait = await start()
            address = await wait.address()
            connected, fresh = Temporal(), Temporal()
            await connected.client()
            server.signal(signal.SIGSTOP)
            for temporal in (connected, fresh):
                async with asyncio.timeout(10):
                    with pytest.raises(Unreachable) as raised:
                        await temporal.complete_activity(address, "APPROVED")
                assert raised.value.down
            server.kill()
            for temporal in (connected, fresh):
                async with asyncio.timeout(10):
                    with pytest.raises(Unreachable) as raised:
                        await temporal.complete_activity(address, "APPROVED")
                assert raised.value.down
            server.start()
            async with asyncio.timeout(60):
                while True:
                    try:
                        outcome = await connected.complete_activity(address, "APPROVED")
                        break
                    except Unreachable:
                        await asyncio.sleep(0.1)
                # The call on the frozen server may have been applied when it was thawed.
                assert outcome in (Outcome.DELIVERED, Outcome.ALREADY_COMPLETED)
                assert await wait.handle.result() == "APPROVED"
    finally:
        server.kill()


async def test_a_repeated_start_makes_one_run_unless_the_first_failed(
    waiting: Waiter, temporal_address: str
) -> None:
    """X1: a repeated start finds the run that the first start made, running or completed. A failed
    workflow starts again."""
    temporal, client = Temporal(), await Client.connect(temporal_address)

    async def start(**options: bool) -> Outcome:
        return await temporal.start_workflow(
            "AnyWorkflow", "x", workflow_id="start-once", queue="nobody", **options
        )

    assert await start() is Outcome.DELIVERED
    assert await start() is Outcome.DELIVERED
    assert await start(exist_ok=False) is Outcome.ALREADY_COMPLETED
    await client.get_workflow_handle("start-once").terminate()
    assert await start() is Outcome.DELIVERED
    assert await start() is Outcome.DELIVERED
    runs = [run async for run in client.list_workflows("WorkflowId = 'start-once'")]
    assert len(runs) == 2

    done = await waiting()
    await temporal.complete_activity(await done.address(), "APPROVED")
    await done.handle.result()
    again = await temporal.start_workflow("Any", "x", workflow_id=done.handle.id, queue="nobody")
    assert again is Outcome.ALREADY_COMPLETED


async def test_ids_of_an_earlier_run_never_complete_a_later_run(
    waiting: Waiter, temporal_address: str
) -> None:
    """X7: the ids of an earlier run do not complete a run that was started later under its id."""
    wait = await waiting()
    address = await wait.address()
    await wait.handle.terminate()
    later = await waiting(workflow_id=wait.handle.id)
    fresh = await later.address()
    assert await Temporal().complete_activity(address, "APPROVED") is Outcome.UNDELIVERABLE
    assert await Temporal().complete_activity(fresh, "REJECTED") is Outcome.DELIVERED
    assert await later.handle.result() == "REJECTED"


async def test_an_unreadable_result_is_a_conflict(waiting: Waiter, temporal_address: str) -> None:
    """X1: a result that another client wrote is another value, readable here or not."""
    wait = await waiting()
    address = await wait.address()
    client = await Client.connect(temporal_address)
    await client.workflow_service.respond_activity_task_completed(
        RespondActivityTaskCompletedRequest(
            task_token=address.token,
            result=Payloads(payloads=[Payload(metadata={"encoding": b"odd"}, data=b"?")]),
        )
    )
    assert await Temporal().complete_activity(address, "APPROVED") is Outcome.CONFLICT
    await wait.handle.terminate()


async def test_a_real_token_holds_all_three_ids(waiting: Waiter) -> None:
    """X7: a task token names its workflow, run and activity."""
    address = await (await waiting()).address()
    assert ids_in_token(address.token) == (
        address.workflow_id,
        address.run_id,
        address.activity_id,
    )


def test_without_an_address_the_default_is_used_and_an_unreadable_profile_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """X1: Temporal is at the default address; an unreadable profile is named."""
    monkeypatch.delenv("TEMPORAL_ADDRESS")
    assert connect_options()["target_host"] == "localhost:7233"
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(tmp_path / "missing.toml"))
    monkeypatch.setenv("TEMPORAL_PROFILE", "nope")
    with pytest.raises(ValueError, match="TEMPORAL_"):
        connect_options()
