"""The files of a local installation, and what must be true before Django reads its settings."""

import os
import secrets
import signal
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import dotenv
from cryptography.fernet import Fernet

from expensesite.processes import die_with

if sys.platform != "win32":
    import fcntl

BASE_DIR = Path(__file__).resolve().parent.parent

# Made at the first start. The site and the relay need them; the worker and Temporal do not.
SECRETS: Final = ("SECRET_KEY", "EXPENSES_FERNET_KEYS")

# Open, and locked, while this process is the one `up` of its data directory.
_lock: int | None = None


def is_locked() -> bool:
    """Whether :func:`prepare` found no other `up` on the data directory."""
    return _lock is not None


def add_data_dir(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("EXPENSES_DATA_DIR") or str(BASE_DIR / "var"),
        help="holds the databases, credentials, logs and secrets "
        "(EXPENSES_DATA_DIR, or var beside manage.py)",
    )


def prepare(arguments: list[str]) -> None:
    """Make this process `up` on the data directory that `arguments` name.

    Call before Django's settings load: they need the secrets that the first start makes here, and
    would take the addresses of an earlier start for this one's. Exits with a sentence where the
    directory cannot be used.
    """
    os.umask(0o077)  # what this process and its children write is their owner's
    for number in stop_signals():
        # Nothing runs yet; the supervisor takes over when something does.
        signal.signal(number, lambda *_: sys.exit())
    if "MAKELEVEL" in os.environ:
        die_with(os.getppid(), signal.SIGTERM)

    parser = ArgumentParser(prog="manage.py up", add_help=False)
    add_data_dir(parser)
    directory = Path(parser.parse_known_args(arguments)[0].data_dir).resolve()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if _take_lock(directory):
            _make_secrets(directory)
    except OSError as error:
        sys.exit(
            f"The data directory {directory} cannot be used: {error.strerror}. "
            "Name another with --data-dir."
        )

    os.environ["EXPENSES_DATA_DIR"] = str(directory)
    os.environ["DEBUG"] = "0"
    for name, value in {
        "EXPENSES_PROTOCOL_ACCESS": "open",
        "DATABASE_URL": f"sqlite:///{quote(str(directory / 'db.sqlite3'))}",
        "EXPENSES_SITE_URL": "",
        "ORDERS_APPROVAL_THRESHOLD": "1000",
        "ORDERS_APPROVAL_SECONDS": "300",
        "ORDERS_SIGNAL_DECISIONS": "",  # as the access mode has it
        "ORDERS_SIGNAL_LIMIT": "2000",
    }.items():
        os.environ[name] = os.environ.get(name) or value
    # The embedded server is the one that is used, whatever this person's own settings are.
    for name in [name for name in os.environ if name.startswith("TEMPORAL_")]:
        if name != "TEMPORAL_CLI_PATH":
            del os.environ[name]


def stop_signals() -> list[signal.Signals]:
    """The signals that ask `up` to stop; not SIGHUP where `nohup` has it ignored."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


def record(directory: Path, addresses: Mapping[str, str]) -> None:
    """Put the addresses of this start into `settings.env`, and keep what else it says."""
    path = directory / "settings.env"
    settings = dotenv.dotenv_values(path, interpolate=False) | dict(addresses)
    lines = [
        "{}='{}'\n".format(name, (value or "").replace("\\", "\\\\").replace("'", "\\'"))
        for name, value in settings.items()
    ]
    write_private(path, "".join(lines))


def write_private(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner only; on the disk when this returns."""
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)


def _take_lock(directory: Path) -> bool:
    """Whether no other `up` had it; it is held until this process ends."""
    global _lock
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    if sys.platform != "win32":
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    _lock = lock
    return True


def _make_secrets(directory: Path) -> None:
    existing = dotenv.dotenv_values(directory / "settings.env")
    made = dict(
        zip(
            SECRETS,
            (secrets.token_urlsafe(48), Fernet.generate_key().decode()),
            strict=True,
        )
    )
    if missing := {name: value for name, value in made.items() if not existing.get(name)}:
        record(directory, missing)
