"""`python -m tests.chaos`: does the product keep its promise while it is broken on purpose?"""

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
        description="Starts the product, submits and decides expenses over all of its routes, and "
        "kills and freezes its processes meanwhile; a proxy loses replies between worker and site. "
        "Then checks, from outside only, that no decision was lost or contradicted and nothing "
        "paid twice (requirements X1, X2). Exits with 0 only if all of that holds.",
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
    parser.add_argument("--seed", type=int, help="repeats a run's plan (default: a new one)")
    parser.add_argument("--keep", action="store_true", help="keep the run's folder in any case")
    parser.add_argument(
        "--outage",
        help="instead: N decisions while Temporal is down, how fast they are answered, and when "
        "they are delivered once it is back",
        type=_count,
        metavar="N",
    )
    parser.add_argument(
        "--frozen",
        action="store_true",
        help="with --outage: Temporal is frozen; without, killed, and its port refuses",
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
            console.print(
                f"The record: {folder}/record.jsonl; the logs are beside it", soft_wrap=True
            )
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
