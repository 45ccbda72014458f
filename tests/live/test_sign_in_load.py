"""Many sign-ins at once, on the real server with the real password hasher."""

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.conftest import prepared
from tests.faults.stack import Database
from tests.servers import eventually, free_port

MANAGE = Path(__file__).resolve().parents[2] / "manage.py"
SIGN_INS = 100
WAVES = 3


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with prepared(f"sqlite:///{tmp_path}/db.sqlite3") as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Iterator[str]:
    port = free_port()
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "expensesite.settings",
        "EXPENSES_DATA_DIR": str(tmp_path),
        "DATABASE_URL": database.url,
        "TEMPORAL_ADDRESS": "127.0.0.1:1",
        # No attempt is refused before the hasher.
        "SIGN_IN_FAILURES": "1000000",
        "LOG_LEVEL": "ERROR",
    }
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(MANAGE), "web", "--host=127.0.0.1", f"--port={port}"]
    with subprocess.Popen(command, env=environment) as process:
        try:
            eventually(lambda: _answers(url))
            yield url
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


async def test_sign_ins_at_once_delay_nobody_else(site: str, database: Database) -> None:
    """X11: with a hundred sign-ins at once, three times, `/health` and decisions take less than a
    second. A sign-in gets its answer, or 503 with the time to try again."""
    answers: Counter[int] = Counter()
    slowest = {"health": 0.0, "decision": 0.0}

    async def sign_in(http: httpx.AsyncClient, form: dict[str, str]) -> None:
        answer = await http.post("/admin/login/", data=form)
        answers[answer.status_code] += 1
        if answer.status_code == 503:
            assert answer.headers["Retry-After"] == "3"

    async def ask(http: httpx.AsyncClient, what: str, path: str, **request: Any) -> None:
        began = time.monotonic()
        answer = await http.get(path, **request)
        slowest[what] = max(slowest[what], time.monotonic() - began)
        assert answer.text in ("ok", "SUCCEED") or answer.json()["status"] == "ok", answer.text

    async def decide(http: httpx.AsyncClient) -> None:
        number = 0
        while answers.total() < WAVES * SIGN_INS:
            number += 1
            about: dict[str, Any] = {"id": f"load-{number}", "is_api_call": "true"}
            await http.get("/create", params=about, headers=_bearer(database, "worker"))
            about["type"] = "approve"
            headers = _bearer(database, "approver")
            await ask(http, "decision", "/action", params=about, headers=headers)
            await ask(http, "health", "/health")

    limits = httpx.Limits(max_connections=SIGN_INS)
    async with (
        httpx.AsyncClient(base_url=site, timeout=30, limits=limits) as crowd,
        httpx.AsyncClient(base_url=site, timeout=30) as others,
    ):
        page = await crowd.get("/admin/login/")
        form = {
            "username": "anna",
            "password": "wrong",
            "csrfmiddlewaretoken": page.cookies["csrftoken"],
        }
        deciding = asyncio.create_task(decide(others))
        for _ in range(WAVES):
            await asyncio.gather(*(sign_in(crowd, form) for _ in range(SIGN_INS)))
        await deciding
    assert answers.keys() == {200, 503}
    assert max(slowest.values()) < 1


def _bearer(database: Database, who: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {database.tokens[who]}"}
