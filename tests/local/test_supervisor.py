"""The log files of supervised processes."""

import sys
from pathlib import Path

import pytest

from local import supervisor
from local.supervisor import Child, Supervisor
from tests.servers import eventually


@pytest.fixture(autouse=True)
def small_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LARGEST_LOG", 1000)


def test_the_log_of_a_running_child_is_rotated(tmp_path: Path) -> None:
    """X11: a child that never stops writing fills two files of limited size. After the cut it goes
    on at the new end."""
    chatty = (
        "import itertools, time\n"
        "for n in itertools.count(): print(n, flush=True); time.sleep(0.001)"
    )
    log, old = tmp_path / "chatty.log", tmp_path / "chatty.log.1"
    with Supervisor(logs=tmp_path, signals=[], say=print, changed=lambda _: None) as running:
        child = running.start("chatty", [sys.executable, "-c", chatty])
        assert running.wait(lambda: old.exists() and log.stat().st_size > 0)
        cut = old.read_bytes()
        assert running.wait(lambda: old.read_bytes() != cut and log.stat().st_size > 0)
        assert old.stat().st_size < 20_000
        assert log.stat().st_size < 20_000
        assert b"\0" not in log.read_bytes()
        numbers = child.output().split()[1:-1]
    assert numbers == sorted(numbers, key=int)


def test_output_begins_at_the_last_start(tmp_path: Path) -> None:
    """X11: whether or not the log was cut meanwhile."""
    child = Child(
        "one", ["sh", "-c", "echo started; cat text"], log=tmp_path / "one.log", directory=tmp_path
    )

    def run(text: str) -> str:
        (tmp_path / "text").write_text(text)
        child.start()
        eventually(child.has_ended)
        child.bury()
        return child.output()

    assert run("first") == "started\nfirst"
    assert run("second") == "started\nsecond"
    child.rotate_log()
    assert not (tmp_path / "one.log.1").exists()
    assert run("x" * 990) == "started\n" + "x" * 990
    child.rotate_log()
    # The oldest bytes are gone; the output of this start is complete.
    assert (tmp_path / "one.log").stat().st_size == 0
    assert (tmp_path / "one.log.1").stat().st_size == 1000
    assert child.output() == "started\n" + "x" * 990
    assert run("y" * 1200) == "started\n" + "y" * 1200
    child.rotate_log()
    assert child.output() == "y" * 1000
