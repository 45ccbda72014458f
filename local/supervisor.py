"""Processes that run together: started, restarted when they die, stopped in order.

Knows no Django. Single-threaded, since the kernel ties a child's death to the thread that made it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self

from expensesite.processes import die_with

TICK: Final = 0.2
# A child that ends by itself so soon keeps dying: the next start waits, longer each time.
BRIEF: Final = 5.0
LONGEST_PAUSE: Final = 10.0
STOP_GRACE: Final = 10.0
# From then on a slow start says what it waits for.
PATIENCE: Final = 5.0
LARGEST_LOG: Final = 10_000_000


class Child:
    """A command that is run again and again, each time in a session of its own."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._brief_lives = 0
        self.start_at = 0.0
        self._command = command
        self._environment = environment
        self._directory = directory
        self._started_at = 0.0
        self._log_start = 0
        # Where in the old log this start's output begins; None where the log has all of it.
        self._old_log_start: int | None = None

    def start(self) -> None:
        """Raises OSError where the system refuses."""
        self._started_at = time.monotonic()
        self.log.parent.mkdir(exist_ok=True)
        self.rotate_log()
        with self.log.open("ab") as log:
            self._log_start, self._old_log_start = log.tell(), None
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env=self._environment,
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid()) if os.name == "posix" else None,
            )

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        """Kill its process group, which may outlive it."""
        if self.process is None:
            return
        if sys.platform == "win32":
            self.process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):  # nothing of it is left
                os.killpg(self.process.pid, signal.SIGKILL)

    def bury(self) -> int:
        """Kill what is left of it; its exit code, negative for the signal that ended it."""
        assert self.process is not None  # noqa: S101
        self.kill()
        code = self.process.wait()
        self.process = None
        return code

    def pause(self, *, killed: bool = False) -> float:
        """Set the time of its next start; the seconds until then."""
        now = time.monotonic()
        brief = now - self._started_at < BRIEF and not killed
        self._brief_lives = self._brief_lives + 1 if brief else 0
        seconds = min(0.25 * 2**self._brief_lives, LONGEST_PAUSE) if self._brief_lives else 0.0
        self.start_at = now + seconds
        return seconds

    def rotate_log(self) -> None:
        """Move the log's content to the old log when it is large.

        The child goes on writing at the new end, since it appends. What it writes between the copy
        and the cut is lost.
        """
        try:
            surplus = self.log.stat().st_size - LARGEST_LOG
            if surplus <= 0:
                return
            with self.log.open("rb") as log, self._old_log.open("wb") as old:
                log.seek(surplus)
                shutil.copyfileobj(log, old)
        except FileNotFoundError:
            return
        except OSError:  # no room for a copy, and cutting the log makes some
            surplus = self._log_start
        os.truncate(self.log, 0)
        self._old_log_start = max(self._log_start - surplus, 0)
        self._log_start = 0

    def output(self) -> str:
        """What it wrote since its last start, as far as the logs still have it."""
        written = _read_from(self.log, self._log_start)
        if self._old_log_start is not None:
            written = _read_from(self._old_log, self._old_log_start) + written
        return written.decode(errors="replace")

    @property
    def _old_log(self) -> Path:
        return self.log.with_suffix(".log.1")


def _read_from(path: Path, start: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        return b""


class Supervisor:
    """Runs children until one of `signals` arrives. Use as a context manager.

    Leaving it stops the children, the last started first, each with SIGTERM, :data:`STOP_GRACE`
    seconds and then SIGKILL to its process group; SIGINT meanwhile kills all of them at once. Where
    this process is killed itself, the kernel kills the children (Linux).

    `say` is called with a line for the console, `changed` with the process ids by name after each
    start; `logs` is the directory of the log files.
    """

    def __init__(
        self,
        *,
        logs: Path,
        signals: Sequence[signal.Signals],
        say: Callable[[str], None],
        changed: Callable[[dict[str, int]], None],
    ) -> None:
        self._logs = logs
        self._signals = signals
        self._say = say
        self._changed = changed
        self._children: list[Child] = []
        self._pids: dict[str, int] = {}
        self._entered_at = time.monotonic()
        self._stopping = False
        self._in_a_hurry = False

    def __enter__(self) -> Self:
        for number in self._signals:
            signal.signal(number, self._note_stop_request)
        return self

    def __exit__(self, *_: object) -> None:
        for child in reversed(self._children):
            if child.process is None:
                continue
            child.process.terminate()
            deadline = time.monotonic() + STOP_GRACE
            while not child.has_ended():
                if self._in_a_hurry or time.monotonic() > deadline:
                    child.kill()
                time.sleep(0.05)
            child.bury()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> Child:
        """Start a child and keep it running, in this directory.

        `environment` is the whole of it; None is this process's own.
        """
        child = Child(
            name,
            command,
            log=self._logs / f"{name}.log",
            environment=environment,
            directory=directory,
        )
        self._children.append(child)
        self._start(child)
        return child

    def run(self, name: str, command: Sequence[str]) -> tuple[bool, str]:
        """Run a command once, beside the children: whether it succeeded, and its output."""
        child = Child(name, command, log=self._logs / f"{name}.log")
        child.start()
        self.wait(child.has_ended)
        return child.bury() == 0, child.output()

    def wait(self, until: Callable[[], bool] = lambda: False, what: str = "") -> bool:
        """Keep the children running until `until()` is true; False when asked to stop first.

        When it takes long, the console says once that this waits for `what`.
        """
        said = False
        while not self._stopping:
            for child in self._children:
                child.rotate_log()
                self._revive(child)
            if until():
                return True
            if what and not said and time.monotonic() - self._entered_at > PATIENCE:
                self._say(f"waiting for {what}")
                said = True
            time.sleep(TICK)
        return False

    def _revive(self, child: Child) -> None:
        if child.has_ended():
            code = child.bury()
            ending = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._say_next_start(child, ending, child.pause(killed=code == -signal.SIGKILL))
        if child.process is None and time.monotonic() >= child.start_at:
            self._start(child)

    def _start(self, child: Child) -> None:
        try:
            child.start()
        except OSError as error:
            self._say_next_start(child, f"cannot be started ({error})", child.pause())
        else:
            assert child.process is not None  # noqa: S101
            self._pids[child.name] = child.process.pid
            self._changed(self._pids)

    def _say_next_start(self, child: Child, reason: str, seconds: float) -> None:
        if not seconds:
            self._say(f"{child.name} {reason}; it is started again")
            return
        lines = [f"{child.name} {reason}; it is started again in {seconds:g} s. Its log ends:"]
        lines += [f"    {line}" for line in child.output().splitlines()[-5:] if line]
        self._say("\n".join(lines))

    def _note_stop_request(self, number: int, _: object) -> None:
        # Only Ctrl-C hurries: `make` passes a SIGTERM on that its process group has got already.
        self._in_a_hurry |= self._stopping and number == signal.SIGINT
        self._stopping = True
