"""Start processes, restart them when they die, and stop them in order.

Knows no Django. Single-threaded, since the kernel kills a child when the thread that started it
ends.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Self

from expensesite.processes import die_with

TICK: Final = 0.2
# After a life shorter than this the next start waits, longer each time.
BRIEF: Final = 5.0
LONGEST_PAUSE: Final = 10.0
STOP_GRACE: Final = 10.0
# After this the console says what a slow start waits for.
PATIENCE: Final = 5.0
LARGEST_LOG: Final = 10_000_000


@dataclass
class Child:
    """A command that the supervisor restarts, each time in a session of its own."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] | None = None
    directory: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    start_at: float = field(default=0.0, init=False)
    _started_at: float = field(default=0.0, init=False)
    _brief_lives: int = field(default=0, init=False)
    _log_start: int = field(default=0, init=False)
    # Where this start's output begins in the old log; None if the log contains all of it.
    _old_log_start: int | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the process. Raises OSError if the system refuses."""
        self._started_at = time.monotonic()
        self.log.parent.mkdir(exist_ok=True)
        self.rotate_log()
        with self.log.open("ab") as log:
            self._log_start, self._old_log_start = log.tell(), None
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self.environment,
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid()) if os.name == "posix" else None,
            )

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        """Kill the process group, which may outlive the process."""
        if self.process is None:
            return
        if sys.platform == "win32":
            self.process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):  # the group has ended
                os.killpg(self.process.pid, signal.SIGKILL)

    def bury(self) -> int:
        """Kill the process group; return the exit code, or the negative number of a signal."""
        assert self.process is not None  # noqa: S101
        self.kill()
        code = self.process.wait()
        self.process = None
        return code

    def pause(self, *, killed: bool = False) -> float:
        """Set the time of the next start; return the seconds until then."""
        now = time.monotonic()
        brief = now - self._started_at < BRIEF and not killed
        self._brief_lives = self._brief_lives + 1 if brief else 0
        seconds = min(0.25 * 2**self._brief_lives, LONGEST_PAUSE) if self._brief_lives else 0.0
        self.start_at = now + seconds
        return seconds

    def rotate_log(self) -> None:
        """Move the content of a large log to the old log.

        The child appends, so it goes on writing at the new end. Lines that it writes between the
        copy and the cut are lost.
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
        except OSError:  # the disk has no room for a copy; cutting the log makes room
            surplus = self._log_start
        os.truncate(self.log, 0)
        self._old_log_start = max(self._log_start - surplus, 0)
        self._log_start = 0

    def output(self) -> str:
        """Return the output since the last start, as far as the logs still contain it."""
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


@dataclass(kw_only=True)
class Supervisor:
    """Run children until one of `signals` arrives. Use it as a context manager.

    At the end the children stop, the last started first: each gets SIGTERM and, after
    :data:`STOP_GRACE` seconds, its process group gets SIGKILL. A second SIGINT kills all of them at
    once. If this process is killed, the kernel kills the children (Linux).

    `say` gets lines for the console, `changed` the process ids by name after each start. `logs` is
    the directory of the log files.
    """

    logs: Path
    signals: Sequence[signal.Signals]
    say: Callable[[str], None]
    changed: Callable[[dict[str, int]], None]
    _children: list[Child] = field(default_factory=list, init=False)
    _pids: dict[str, int] = field(default_factory=dict, init=False)
    _entered_at: float = field(default_factory=time.monotonic, init=False)
    _stopping: bool = field(default=False, init=False)
    _in_a_hurry: bool = field(default=False, init=False)

    def __enter__(self) -> Self:
        for number in self.signals:
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
        """Start a child in `directory` and keep it running.

        `environment` is the child's whole environment; None means this process's own.
        """
        child = Child(name, command, self.logs / f"{name}.log", environment, directory)
        self._children.append(child)
        self._start(child)
        return child

    def run(self, name: str, command: Sequence[str]) -> tuple[bool, str]:
        """Run a command once beside the children; return whether it succeeded, and its output."""
        child = Child(name, command, self.logs / f"{name}.log")
        child.start()
        self.wait(child.has_ended)
        return child.bury() == 0, child.output()

    def wait(self, until: Callable[[], bool] = lambda: False, what: str = "") -> bool:
        """Keep the children running until `until()` is true; False if a stop is requested first.

        After :data:`PATIENCE` the console says once that `up` waits for `what`.
        """
        said = False
        while not self._stopping:
            for child in self._children:
                child.rotate_log()
                self._revive(child)
            if until():
                return True
            if what and not said and time.monotonic() - self._entered_at > PATIENCE:
                self.say(f"waiting for {what}")
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
            self.changed(self._pids)

    def _say_next_start(self, child: Child, reason: str, seconds: float) -> None:
        if not seconds:
            self.say(f"{child.name} {reason}; it is started again")
            return
        lines = [f"{child.name} {reason}; it is started again in {seconds:g} s. Its log ends:"]
        lines += [f"    {line}" for line in child.output().splitlines()[-5:] if line]
        self.say("\n".join(lines))

    def _note_stop_request(self, number: int, _: object) -> None:
        # A second SIGTERM means nothing: `make` repeats the one that its process group got already.
        self._in_a_hurry |= self._stopping and number == signal.SIGINT
        self._stopping = True
