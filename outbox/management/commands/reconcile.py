"""`manage.py reconcile [--fix]`: compare the records with Temporal."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from operator import attrgetter
from typing import Any

from asgiref.sync import sync_to_async
from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from outbox import reconciliation, relay
from temporal import client
from temporal.base_command import TemporalCommand

# The table shows so many differences; the numbers below it count them all.
ROWS = 1000
# The width where the output is no terminal.
WIDTH = 200


class Command(TemporalCommand):
    help = (
        "Compare each record that belongs to a workflow with Temporal: decisions that a workflow "
        "still waits for, workflows that ended or are lost before their record did, results that "
        "contradict the record. Exit code: 0 nothing differs, or --fix queued all; 1 the "
        "comparison could not be made; 2 something differs."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--fix",
            action="store_true",
            help="queue each remedy that the site can apply; without --fix nothing changes",
        )

    def handle(self, *args: Any, fix: bool, **options: Any) -> None:
        try:
            asyncio.run(self._run(fix))
        except DatabaseError as error:
            raise CommandError(
                f"The database cannot be used ({error}). See that it is up and migrated."
            ) from error
        except KeyboardInterrupt:
            raise CommandError("Stopped before the end.", returncode=130) from None

    async def _run(self, fix: bool) -> None:
        table = Table("Subject", "Database", "Temporal", "Queued" if fix else "What --fix queues")
        found = fixable = 0
        try:
            async for difference in _differences():
                found += 1
                if difference.enqueue is not None:
                    fixable += 1
                    if fix:
                        await reconciliation.queue_remedy(difference)
                if found <= ROWS:
                    cells = attrgetter("subject", "record", "workflow", "remedy")(difference)
                    table.add_row(*map(Text, cells))
        except client.Unreachable as error:
            raise CommandError(f"{error} Compare again when it answers.") from error
        finally:
            if found:
                self.stdout.write(_lines(table))
        if not found:
            self.stdout.write("Nothing differs, but for what changed in the last 30 s.")
            return
        differ = f"{found} {'differs' if found == 1 else 'differ'}; {fixable}"
        if fix and fixable == found:
            self.stdout.write(f"{differ} queued, and a relay delivers.")
            return
        queued = "queued; see to the rest." if fix else "can be queued with --fix."
        raise CommandError(f"{differ} {queued}", returncode=2)


async def _differences() -> AsyncIterator[reconciliation.Difference]:
    temporal = client.Temporal()
    await temporal.client()
    now = await sync_to_async(relay.database_now)()
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for name, comparison in reconciliation.COMPARISONS.items():
            total = await sync_to_async(comparison.count)()
            bar = progress.add_task(f"Comparing {name}", total=total)
            advance = partial(progress.advance, bar)
            async for difference in comparison.everything(temporal, now, advance):
                yield difference


def _lines(table: Table) -> str:
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    with console.capture() as lines:
        console.print(table)
    return lines.get()
