"""The settings file of a local installation."""

import os
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

    earlier = {"DATABASE_URL": ODD, "ORDERS_SIGNAL_LIMIT": "5", "TEMPORAL_ADDRESS": "t:1"}
    assert recorded(MADE="first", **earlier) == {"SECRET_KEY": "first", **earlier}
    with path.open("a") as file:
        file.write("SIGN_IN_FAILURES=3\n")
    later = {"SECRET_KEY": "first", "SIGN_IN_FAILURES": "3", "TEMPORAL_ADDRESS": "t:2"}
    assert recorded(MADE="second", TEMPORAL_ADDRESS="t:2") == later
    assert path.stat().st_mode & 0o777 == 0o600
