from collections.abc import AsyncIterator, Iterator

import pytest
from temporalio.client import Client

from tests.worker import sites
from worker.site import Site


@pytest.fixture
async def client(temporal_address: str) -> Client:
    return await Client.connect(temporal_address)


@pytest.fixture
def scripted() -> Iterator[sites.ScriptedSite]:
    with sites.scripted_site() as server:
        yield server


@pytest.fixture
async def site(scripted: sites.ScriptedSite) -> AsyncIterator[Site]:
    async with Site(scripted.url, "secret-token") as opened:
        yield opened
