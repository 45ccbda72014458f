"""The files of a local installation, and the environment of `up` before Django's settings load."""

import os
import secrets
import signal
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Final

import dotenv
from cryptography.fernet import Fernet

from expensesite.processes import die_with

if sys.platform != "win32":
    import fcntl

BASE_DIR = Path(__file__).resolve().parent.parent

# The first start makes them. The site and the relay need them; the worker and Temporal do not.
SECRETS: Final = ("SECRET_KEY", "EXPENSES_FERNET_KEYS")
# The settings of one start, which commands in other terminals read from settings.env.
# Each begins with one of these.
RECORDED: Final = (
    *("DATABASE_URL", "EXPENSES_SITE_URL", "FAULT_INJECTION", "LOCAL_EMPLOYEE", "LOCAL_APPROVER"),
    *("ORDERS_APPROVAL_", "ORDERS_SIGNAL_", "TEMPORAL_"),
)

# The descriptor of the lock file while this process holds the lock on its data directory.
_lock: int | None = None


def is_locked() -> bool:
    """Return whether :func:`prepare` found no other `up` on the data directory."""
    return _lock is not None


def add_data_dir(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("EXPENSES_DATA_DIR") or str(BASE_DIR / "var"),
        help="holds the databases, credentials, logs and secrets "
        "(EXPENSES_DATA_DIR, or var beside manage.py)",
    )


def prepare(arguments: list[str]) -> None:
    """Prepare the environment and the data directory of `up` with these arguments.

    Call this before Django's settings load: they need the secrets that the first start makes here,
    and must not read the settings of an earlier start. Exits with a sentence if the directory
    cannot be used.
    """
    os.umask(0o077)  # nobody else may read the files of this process and its children
    for number in stop_signals():
        # The supervisor replaces these handlers when it starts the children.
        signal.signal(number, lambda *_: sys.exit())
    if "MAKELEVEL" in os.environ:
        die_with(os.getppid(), signal.SIGTERM)

    for name, value in list(os.environ.items()):
        # `up` has a Temporal server of its own. An empty variable means the default.
        is_of_another_server = name.startswith("TEMPORAL_") and name != "TEMPORAL_CLI_PATH"
        if is_of_another_server or (name.startswith(RECORDED) and not value):
            del os.environ[name]
    parser = ArgumentParser(prog="manage.py up", add_help=False)
    add_data_dir(parser)
    directory = Path(parser.parse_known_args(arguments)[0].data_dir).resolve()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if _take_lock(directory):
            made = secrets.token_urlsafe(48), Fernet.generate_key().decode()
            record(directory, dict(zip(SECRETS, made, strict=True)))
    except OSError as error:
        sys.exit(
            f"The data directory {directory} cannot be used: {error.strerror}. "
            "Name another with --data-dir."
        )

    os.environ["EXPENSES_DATA_DIR"] = str(directory)
    os.environ["DEBUG"] = "0"
    os.environ["EXPENSES_PROTOCOL_ACCESS"] = os.environ.get("EXPENSES_PROTOCOL_ACCESS") or "open"


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask `up` to stop; without SIGHUP under `nohup`, which ignores it."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


def record(directory: Path, defaults: dict[str, str] | None = None) -> None:
    """Write the settings of this start to `settings.env` in place of an earlier start's.

    The file keeps its other settings; `defaults` are added where it lacks them.
    """
    path = directory / "settings.env"
    stored = dotenv.dotenv_values(path, interpolate=False)
    kept = {n: value for n, value in stored.items() if value and not n.startswith(RECORDED)}
    now = {n: value for n, value in os.environ.items() if n.startswith(RECORDED)}
    settings = (defaults or {}) | kept | now
    lines = [
        "{}='{}'\n".format(name, value.replace("\\", "\\\\").replace("'", "\\'"))
        for name, value in settings.items()
    ]
    write_private(path, "".join(lines))


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically, readable by its owner only, and sync it to the disk."""
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)


def _take_lock(directory: Path) -> bool:
    """Lock the directory until this process ends; False if another `up` has the lock."""
    global _lock
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    if sys.platform != "win32":
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    _lock = lock
    return True
