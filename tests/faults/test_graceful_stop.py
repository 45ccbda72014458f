"""SIGTERM under load: answered work was done, and begun work is finished (requirements X1)."""

import asyncio
import itertools
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.faults import points
from tests.faults.people import PATIENCE_SECONDS, People
from tests.faults.stack import Database, Stack

CLIENTS = 32
# SQLite allows one writer at a time, in no order: one of many writers may wait very long.
SQLITE_CLIENTS = 8
EXPENSES = 16


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, database: Database, temporal_address: str
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    with Stack(folder, database, temporal_address, web_processes=2) as running:
        yield running


class Load:
    """Clients that create and approve each expense once, and never repeat a request.

    `done` has the answered requests, `open` the requests that were sent and not answered.
    """

    def __init__(self, stack: Stack) -> None:
        self.done: list[tuple[str, str]] = []
        self.open: dict[tuple[str, str], httpx.TransportError] = {}
        self._stack = stack
        self._ids = (f"load-{number}" for number in itertools.count())
        self._stopping = False

    async def __aenter__(self) -> "Load":
        sqlite = self._stack.database.url.startswith("sqlite")
        count = SQLITE_CLIENTS if sqlite else CLIENTS
        self._clients = [asyncio.create_task(self._client()) for _ in range(count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._clients)

    async def answered(self, more: int) -> None:
        wanted = len(self.done) + more
        async with asyncio.timeout(60):
            while len(self.done) < wanted:
                await asyncio.sleep(0.01)

    async def _client(self) -> None:
        url = f"http://127.0.0.1:{self._stack.port}"
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
            while not self._stopping:
                expense_id = next(self._ids)
                for path, who, params in (
                    ("/create", "worker", {}),
                    ("/action", "approver", {"type": "approve"}),
                ):
                    self._stack.restart()
                    token = {"Authorization": f"Bearer {self._stack.database.tokens[who]}"}
                    query = {**params, "id": expense_id, "is_api_call": "true"}
                    try:
                        answer = await http.get(path, params=query, headers=token)
                    except httpx.TransportError as error:
                        self.open[path, expense_id] = error
                        await asyncio.sleep(0.05)
                        break
                    assert (answer.status_code, answer.text) == (200, "SUCCEED")
                    self.done.append((path, expense_id))


@pytest.mark.timeout(300)
async def test_stopped_site_has_answered_all_that_it_did(stack: Stack) -> None:
    """X1: a site that stops under load has done the work that it answered, and has answered the
    work that it did; no request fails with 5xx. A new start serves the next requests."""
    async with Load(stack) as load:
        await load.answered(100)
        async with stack.stopping("web"):
            pass
        await load.answered(100)
    rows = stack.database.rows("SELECT expense_id, state FROM expenses_expense")
    done = {("/create", expense_id) for expense_id, _ in rows}
    done |= {("/action", expense_id) for expense_id, state in rows if state == "APPROVED"}
    assert set(load.done) <= done
    assert {request: load.open[request] for request in load.open.keys() & done} == {}


async def test_stopping_site_answers_the_request_under_way(stack: Stack) -> None:
    """X1: a request that the site works on when SIGTERM comes is answered after the site has
    stopped to listen."""
    token = {"Authorization": f"Bearer {stack.database.tokens['worker']}"}
    url = f"http://127.0.0.1:{stack.port}/create?id=under-way&is_api_call=true"
    async with People(stack) as people, httpx.AsyncClient(timeout=60, trust_env=False) as http:
        with stack.armed(points.called("created"), "hang", kill=False):
            creating = asyncio.create_task(http.get(url, headers=token))
            assert await people.until(lambda: stack.has_fired(points.called("created")))
            async with stack.stopping("web"):
                assert await people.until(lambda: not listens(stack.port))
                stack.faults.disarm(points.called("created"))
                assert (await creating).text == "SUCCEED"


async def test_work_of_a_stopped_worker_is_done_once(stack: Stack) -> None:
    """X1, X2: a worker stops during creations, then another one during payments. Their work is
    finished or repeated, and each expense is paid once."""
    ids = [f"stopped-worker-{number}" for number in range(EXPENSES)]
    creating, paying = points.called("created"), points.called("paid")
    async with People(stack) as people:
        with stack.armed(creating, "hang", kill=False):
            await asyncio.gather(*map(people.start, ids))
            assert await people.until(lambda: stack.has_fired(creating))
            async with stack.stopping("worker"):
                stack.faults.disarm(creating)
        # A stopped worker may have lost a task before it registered.
        await people.registered(*ids, seconds=PATIENCE_SECONDS)
        with stack.armed(paying, "hang", kill=False):
            deciding = [asyncio.create_task(people.decide(one, "approve")) for one in ids]
            assert await people.until(lambda: stack.has_fired(paying))
            async with stack.stopping("worker"):
                stack.faults.disarm(paying)
        await asyncio.gather(*deciding)
        await asyncio.gather(*map(people.see, ids))


async def test_stopping_relay_settles_its_leases_and_takes_no_more(stack: Stack) -> None:
    """X1: a relay that gets SIGTERM settles or returns the messages that it has leased, and
    leases no more."""
    ids = [f"stopped-relay-{number}" for number in range(EXPENSES)]
    point = points.called("relay-leased")
    async with People(stack) as people:
        await asyncio.gather(*map(people.start, ids))
        assert await people.registered(*ids)
        with stack.armed(point, "hang", kill=False):
            first, *others = ids
            await people.decide(first, "approve")
            assert await people.until(lambda: stack.has_fired(point))
            await asyncio.gather(*(people.decide(one, "approve") for one in others))
            async with stack.stopping("relay") as relay:
                stack.faults.disarm(point)
                await people.until(lambda: relay.poll() is not None)
                assert relay.returncode == 0
                # A lease or a back-off moves the due time, which was the time of the commit.
                taken = stack.database.rows(
                    "SELECT key, attempts FROM outbox_message "
                    "WHERE key LIKE ? AND (attempts > 0 OR due_at > created_at)",
                    "expense-decision:stopped-relay-%",
                )
                assert taken == [(f"expense-decision:{first}", 1)]
            await asyncio.gather(*map(people.see, ids))


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
