"""What a person sets wrong is one sentence (design rule 8)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MANAGE = Path(__file__).resolve().parents[2] / "manage.py"
GOOD = {
    "SECRET_KEY": "s",
    "EXPENSES_FERNET_KEYS": "dGVzdHMtb25seS10ZXN0cy1vbmx5LXRlc3RzLW9ubHk=",
}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"SECRET_KEY": ""}, "SECRET_KEY is not set."),
        ({"EXPENSES_FERNET_KEYS": ""}, "EXPENSES_FERNET_KEYS is not set."),
        ({"EXPENSES_FERNET_KEYS": "abc"}, "EXPENSES_FERNET_KEYS holds something that is no key."),
        ({"EXPENSES_PROTOCOL_ACCESS": "all"}, "EXPENSES_PROTOCOL_ACCESS is 'all'; it must be"),
        ({"WEB_THREADS": "many"}, 'Environment variable "WEB_THREADS" invalid'),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(wrong: dict[str, str], said: str, tmp_path: Path) -> None:
    """X8, design rule 8: no traceback, no default secret; the variable and the remedy."""
    checked = subprocess.run(
        [sys.executable, MANAGE, "check"],
        env={"PATH": os.environ["PATH"], "EXPENSES_DATA_DIR": str(tmp_path), **GOOD, **wrong},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 1
    assert checked.stderr.startswith(said)
    assert checked.stderr.count("\n") == 1
