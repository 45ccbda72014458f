"""`python -m tests.chaos`: break the product under load, and check that nothing is lost."""

import argparse
import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from rich.console import Console

from tests.chaos import outage, run


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Start the product, submit and decide expenses over all routes, and meanwhile "
        "kill and freeze its processes; a proxy loses replies between worker and site. Then check, "
        "from outside only, that no decision was lost or contradicted and nothing was paid twice "
        "(requirements X1, X2). The exit code is 0 only if all of that holds.",
        epilog="DATABASE_URL names the database; without it, SQLite. On a throwaway PostgreSQL "
        "server: python -m tests.postgres python -m tests.chaos …",
    )
    parser.add_argument(
        "--expenses", default=2000, help="how many (%(default)s)", type=_count, metavar="N"
    )
    parser.add_argument(
        "--faults",
        default=200,
        help="kill -9, or SIGSTOP for 0.2 to 4 s, of the web server, one of its processes, worker, "
        f"relay or Temporal, {run.FAULT_GAP:g} s apart on average (%(default)s)",
        type=_count,
        metavar="N",
    )
    parser.add_argument(
        "--seed", type=int, help="repeat the plan of an earlier run (default: a new plan)"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the folder of the run even if all holds"
    )
    parser.add_argument(
        "--outage",
        help="instead: take N decisions while Temporal is down; measure how fast they are "
        "answered, and when they are delivered after Temporal is back",
        type=_count,
        metavar="N",
    )
    parser.add_argument(
        "--frozen",
        action="store_true",
        help="with --outage: freeze Temporal instead of killing it",
    )
    options = parser.parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    console = Console(highlight=False)
    if options.outage:
        what = f"OUTAGE={options.outage}{' FROZEN=1' if options.frozen else ''}"
        chosen = partial(outage.run, folder, options.outage, frozen=options.frozen)
    else:
        what = f"N={options.expenses} FAULTS={options.faults}"
        chosen = partial(run.run, folder, options.expenses, options.faults)
    postgres = os.environ.get("DATABASE_URL", "").startswith("postgres")
    command = f"make chaos {what} SEED={seed}{' DB=postgres' if postgres else ''}"
    console.print(command)
    holds = False
    try:
        holds = asyncio.run(chosen(seed=seed, console=console, command=command))
    except KeyboardInterrupt:
        return 130
    finally:
        if options.keep or not holds:
            console.print(f"The record is {folder}/record.jsonl, beside the logs", soft_wrap=True)
        else:
            shutil.rmtree(folder)
    return 0 if holds else 1


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


if __name__ == "__main__":
    sys.exit(main())
