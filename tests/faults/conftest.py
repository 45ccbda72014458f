import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest

from tests.faults.stack import Database, Stack


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    """A second, migrated database on the engine of the test database."""
    server = os.environ.get("DATABASE_URL", "sqlite://")
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        if server.startswith("sqlite"):
            with prepared(f"sqlite:///{quote(folder)}/db.sqlite3") as made:
                yield made
            return
        name = f"faults_{os.getpid()}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
            try:
                with prepared(urlsplit(server)._replace(path=f"/{name}").geturl()) as made:
                    yield made
            finally:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def prepared(url: str) -> AbstractContextManager[Database]:
    """Create the tables and users at `url`."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.faults.prepare"],
        env={**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    return contextlib.closing(Database(url, json.loads(run.stdout)))


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, database: Database, temporal_address: str
) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), database, temporal_address) as running:
        yield running
