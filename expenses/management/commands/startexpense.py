"""`manage.py startexpense`: start the workflow of an expense; the workflow creates the record."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError
from django.urls import reverse
from rich.console import Console
from rich.progress import Progress

from access.text import ID_RULE, is_opaque_id
from expenses import services
from expenses.models import Expense
from temporal import client, inspection
from temporal.base_command import TemporalCommand
from temporal.outcomes import Outcome
from worker import contracts

AT_A_TIME = 32


class Command(TemporalCommand):
    help = (
        "Start the workflow expense_<ID>, which creates the expense and waits for its decision. "
        "Without an ID the command makes one up; with --count the ids are ID-1 to ID-N."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", nargs="?", help="the expense's id, 1 to 100 characters")
        parser.add_argument("--count", type=int, default=1, help="how many to start (1)")
        parser.add_argument(
            "--wait",
            action="store_true",
            help="wait until the workflow ends; prints COMPLETED once paid",
        )

    def handle(self, *args: Any, id: str | None, count: int, wait: bool, **options: Any) -> None:  # noqa: A002
        ids = _ids(id, count)
        try:
            asyncio.run(self._run(ids, wait))
        except KeyboardInterrupt:
            raise CommandError(
                "Stopped. Workflows that were started go on.", returncode=130
            ) from None

    async def _run(self, ids: list[str], wait: bool) -> None:
        temporal = client.Temporal()
        try:
            await temporal.client()
        except client.Unreachable as error:
            raise CommandError(
                f"{error} Start it with `make up`, or name another in TEMPORAL_ADDRESS."
            ) from error

        async def start(expense_id: str) -> None:
            payload = services.start_payload(expense_id)
            outcome = await temporal.start_workflow(**payload, exist_ok=False)
            if outcome is not Outcome.DELIVERED:
                raise CommandError(
                    f"There is a workflow {contracts.expense_workflow_id(expense_id)} already. "
                    "Choose another ID, or leave it out."
                )

        try:
            await _each(ids, start, "Starting")
        except client.Unreachable as error:
            raise CommandError(f"{error} Some may have been started; see the list.") from error
        if len(ids) == 1:
            self.stdout.write(f"Started {contracts.expense_workflow_id(ids[0])}.")
        else:
            self.stdout.write(f"Started {len(ids)} expenses, {ids[0]} to {ids[-1]}.")
        page = reverse("admin:expenses_expense_changelist")
        self.stdout.write(f"Decide at {settings.EXPENSES_SITE_URL}{page}")
        if wait:
            await self._wait(temporal, ids)

    async def _wait(self, temporal: client.Temporal, ids: list[str]) -> None:
        ends: dict[str, str] = {}

        async def end(expense_id: str) -> None:
            workflow_id = contracts.expense_workflow_id(expense_id)
            try:
                ends[expense_id] = await inspection.result_of(temporal, workflow_id) or "not paid"
            except inspection.WorkflowFailed as error:
                ends[expense_id] = f"failed: {error}"

        self.stdout.write("Waiting for the decision; Ctrl-C stops the waiting only.")
        await _each(ids, end, "Deciding")
        for expense_id in ids:
            self.stdout.write(
                ends[expense_id] if len(ids) == 1 else f"{expense_id} {ends[expense_id]}"
            )
        if any(text.startswith("failed") for text in ends.values()):
            raise CommandError("Not every workflow completed.")


def _ids(first: str | None, count: int) -> list[str]:
    if count < 1:
        raise CommandError("--count takes a whole number from 1.")
    name = f"exp_{uuid.uuid4().hex[:8]}" if first is None else first
    ids = [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]
    if not all(map(is_opaque_id, ids)):
        raise CommandError(f"The ID is not usable: an id has {ID_RULE}.")
    try:
        there = Expense.objects.filter(expense_id__in=ids).order_by("expense_id").first()
    except DatabaseError as error:
        raise CommandError(f"The database is not ready ({error}). Run `make up` first.") from error
    if there is not None:
        raise CommandError(
            f"There is an expense {there.expense_id} already. Choose another ID, or leave it out."
        )
    return ids


async def _each(ids: Iterable[str], work: Callable[[str], Awaitable[None]], label: str) -> None:
    """Do `work` for each id, several at a time, with a progress bar for more than one id."""
    ids = list(ids)
    slots = asyncio.Semaphore(AT_A_TIME)
    with Progress(console=Console(stderr=True), disable=len(ids) == 1) as progress:
        bar = progress.add_task(label, total=len(ids))

        async def run(expense_id: str) -> None:
            async with slots:
                await work(expense_id)
            progress.advance(bar)

        await asyncio.gather(*map(run, ids))
