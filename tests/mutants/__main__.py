"""`make mutants`: plant each defect in a copy of the code, and check that a test catches it."""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from tests.mutants.defects import DEFECTS

ROOT = Path(__file__).resolve().parents[2]
SUITE_SECONDS = 900
# A failed test, not a module that cannot be imported: such a defect is noticed anyway.
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::\S+)", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument(
        "words", nargs="*", help="only the defects whose names contain one of these"
    )
    words = parser.parse_args().words
    defects = [one for one in DEFECTS if not words or any(word in one.name for word in words)]
    if not defects:
        parser.error("no defect has such a name")
    console = Console()
    table = Table("defect", "in", "caught by", "s", title="Planted defects")
    missed = 0
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("without a defect", total=len(defects) + 1)
        copy = _copy(Path(folder) / "code")
        code, output = _suite(copy, sorted({defect.tests for defect in defects}))
        if code:
            console.print(output, markup=False)
            console.print("The tests fail without a defect. Correct the code first.")
            return 2
        for defect in defects:
            progress.update(bar, advance=1, description=defect.name)
            began = time.monotonic()
            original = (copy / defect.path).read_text()
            (copy / defect.path).write_text(original.replace(defect.old, defect.new))
            code, output = _suite(copy, [defect.tests])
            (copy / defect.path).write_text(original)
            found = FAILED.search(output)
            missed += found is None
            by = found.group(1) if found else f"NOT CAUGHT (pytest ended with {code})"
            table.add_row(defect.name, defect.path, escape(by), f"{time.monotonic() - began:.0f}")
        progress.update(bar, advance=1)
    console.print(table)
    console.print(f"{len(defects) - missed} of {len(defects)} caught")
    return 1 if missed else 0


def _copy(to: Path) -> Path:
    """Copy the files that git tracks or would add, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    (to / ".venv").symlink_to(ROOT / ".venv")
    return to


def _suite(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Return exit code and output. After SUITE_SECONDS the run is killed: a negative code."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2", "--dist", "loadfile"]
    command += ["--hypothesis-profile=unshrunk", *tests]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SUITE_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):  # no process is left
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        output.seek(0)
        return code, output.read()


if __name__ == "__main__":
    sys.exit(main())
