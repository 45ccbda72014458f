"""A database of the versions before approvals were records: recognised, and left as it is."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from django.db.migrations.loader import MigrationLoader

from tests.expensesite.test_health import site
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
# The tables of the product that the messages and the guards are about, as that version made them.
TABLES = """
CREATE TABLE django_migrations (id integer NOT NULL PRIMARY KEY AUTOINCREMENT,
  app varchar(255) NOT NULL, name varchar(255) NOT NULL, applied datetime NOT NULL);
CREATE TABLE approvals_decision (id char(32) NOT NULL PRIMARY KEY, verdict varchar(10) NOT NULL,
  actor varchar(150) NOT NULL, route varchar(10) NOT NULL, reason text NOT NULL,
  decided_at datetime NOT NULL);
CREATE TABLE approvals_auditentry (id integer NOT NULL PRIMARY KEY AUTOINCREMENT,
  subject varchar(20) NOT NULL, subject_id varchar(100) NOT NULL, event varchar(10) NOT NULL,
  actor varchar(150) NOT NULL, route varchar(10) NOT NULL, reason text NOT NULL,
  at datetime NOT NULL);
CREATE TABLE expenses_expense (id char(32) NOT NULL PRIMARY KEY,
  expense_id varchar(100) NOT NULL UNIQUE, state varchar(10) NOT NULL,
  decision_id char(32) NULL UNIQUE REFERENCES approvals_decision (id));
INSERT INTO approvals_auditentry (subject, subject_id, event, actor, route, reason, at)
  VALUES ('expense', 'lunch-1', 'approved', 'ada', 'admin', '', '2026-01-02 03:04:05');
"""
MIGRATIONS = {
    "access": ("0001_token", "0002_tokens_of_knox", "0003_tokens_made_for_services"),
    "approvals": ("0001_initial", "0002_expired_verdict", "0003_submissions_of_a_person"),
    "expenses": ("0001_initial", "0002_expense_opened_by"),
    "jobs": ("0001_initial", "0002_view_run"),
    "orders": ("0001_initial", "0002_signals_refused", "0003_states_known_once"),
    "outbox": ("0001_initial", "0002_health_of_delivery", "0003_obsolete"),
}
# Django's and those of other packages are the same as in that version.
OTHERS = ("admin", "auth", "axes", "contenttypes", "sessions")


@pytest.fixture
def older(tmp_path: Path) -> Iterator[Path]:
    """The data directory of an older installation, whose database must not change."""
    directory = tmp_path / "a data#dir"
    directory.mkdir()
    path = directory / "db.sqlite3"
    applied = [node for node in MigrationLoader(None).disk_migrations if node[0] in OTHERS]
    applied += [(app, name) for app, names in MIGRATIONS.items() for name in names]
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(TABLES)
        database.executemany(
            "INSERT INTO django_migrations (app, name, applied) VALUES (?, ?, '2026-01-02')",
            applied,
        )
    before = dump(path)
    yield directory
    assert dump(path) == before


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


def sentence(directory: Path) -> str:
    return (
        "CommandError: The database is of an earlier version, which this version cannot migrate. "
        f"Nothing was changed. Move the file {directory / 'db.sqlite3'} away, which keeps its "
        "audit trail, or name another data directory (--data-dir, EXPENSES_DATA_DIR).\n"
    )


def manage(
    directory: Path, *arguments: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, ROOT / "manage.py", *arguments],
        env={"PATH": os.environ["PATH"], "EXPENSES_DATA_DIR": str(directory), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_migrate_names_the_remedy(older: Path) -> None:
    """E13: a sentence and no traceback, and not one table changed."""
    secrets = {name: os.environ[name] for name in ("SECRET_KEY", "EXPENSES_FERNET_KEYS")}
    migrated = manage(older, "migrate", "--no-color", **secrets)
    assert (migrated.returncode, migrated.stderr) == (1, sentence(older))


def test_up_names_the_remedy(older: Path) -> None:
    """E13: nothing is started, and no users are made."""
    ports = ("--port", "--temporal-port", "--temporal-ui-port")
    started = manage(older, "up", "--no-color", *(f"{name}={free_port()}" for name in ports))
    assert (started.returncode, started.stderr) == (1, sentence(older))
    assert not (older / "credentials.json").exists()
    assert not (older / "logs").exists()


def test_the_site_is_not_ready(older: Path) -> None:
    """X6: its tables are not those of this version."""
    with site(f"sqlite:///{quote(str(older / 'db.sqlite3'))}") as client:
        answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"status": "unavailable", "database": "ok", "migrations": "missing"}
