"""The settings file of a local installation."""

import os
import subprocess
import sys
from pathlib import Path

import dotenv
import pytest

from local import installation

ODD = "it's a \\ path #1 $HOME"


def test_a_start_replaces_the_settings_of_an_earlier_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E13, X8: the secrets and a person's own lines stay, whatever characters they contain."""
    path = tmp_path / "settings.env"

    def recorded(**environment: str) -> dict[str, str | None]:
        monkeypatch.setattr(os, "environ", environment)
        installation.record(tmp_path, {"SECRET_KEY": environment["MADE"]})
        return dotenv.dotenv_values(path, interpolate=False)

    earlier = {"DATABASE_URL": ODD, "LOCAL_EMPLOYEE": "ada", "ORDERS_SIGNAL_LIMIT": "5"}
    earlier |= {"TEMPORAL_ADDRESS": "t:1"}
    assert recorded(MADE="first", **earlier) == {"SECRET_KEY": "first", **earlier}
    with path.open("a") as file:
        file.write("SIGN_IN_FAILURES=3\n")
    later = {"SECRET_KEY": "first", "SIGN_IN_FAILURES": "3", "TEMPORAL_ADDRESS": "t:2"}
    assert recorded(MADE="second", TEMPORAL_ADDRESS="t:2") == later
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("database", "actor"), [(None, "approver"), ("sqlite:///another.sqlite3", "")]
)
def test_users_of_the_installation_act_in_its_database_only(
    tmp_path: Path, database: str | None, actor: str
) -> None:
    """O8: with another DATABASE_URL a command has to name its user."""
    (tmp_path / "settings.env").write_text("SECRET_KEY='x'\nLOCAL_APPROVER='approver'\n")
    given = {"EXPENSES_DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "expensesite.settings"}
    given |= {"DATABASE_URL": database} if database else {}
    names = ("PATH", "HOME", "EXPENSES_FERNET_KEYS")
    given |= {name: os.environ[name] for name in names if name in os.environ}
    code = "from django.conf import settings; print(settings.LOCAL_APPROVER)"
    told = subprocess.run(
        [sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == actor
