"""The base class of the commands for orders, with what both print."""

import io
import logging
import math
import os
import shlex
import sys
import time
from typing import Any, Final
from urllib.parse import quote

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError
from django.utils import timezone

from access import commands
from access.actors import Actor
from approvals.models import Route
from approvals.services import Act
from orders import services
from orders.models import FINAL, Order, OrderStep, State
from outbox import services as outbox
from outbox.models import NEEDS_ATTENTION, Message
from temporal.base_command import TemporalCommand

POLL_SECONDS: Final = 0.2
# When nothing is recorded for so long, the command prints why.
PATIENCE_SECONDS: Final = 10.0
RULE: Final = "=" * 70
_MARKS: Final = {
    OrderStep.Status.COMPLETED: "✓",
    OrderStep.Status.FAILED: "✗",
    OrderStep.Status.COMPENSATED: "↩",
}


class OrderCommand(TemporalCommand):
    """Prints its progress line by line. An error that the person can fix is one sentence, with exit
    code 1. On an installation made by `up` it acts as the user of `local_role`, which the setting
    LOCAL_… names."""

    local_role: str

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--as",
            dest="username",
            metavar="USERNAME",
            help="act as this user, with their rights; required except on an installation made by "
            f"`make up`, where you act as its {self.local_role} without it",
        )

    def run_from_argv(self, argv: list[str]) -> None:
        logging.disable(logging.INFO)  # the command prints the same itself
        if isinstance(sys.stdout, io.TextIOWrapper):  # the console may lack ✓ and ↩
            sys.stdout.reconfigure(errors="replace")
        try:
            super().run_from_argv(argv)
        except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except DatabaseError as error:
            cause = str(error).partition("\n")[0]
            raise CommandError(
                f"The database is not ready ({cause}). Run `make up` first."
            ) from error
        except KeyboardInterrupt:
            raise CommandError("Stopped. The order goes on.", returncode=130) from None

    def act(self, username: str | None, reason: str = "") -> Act:
        """Return what the user of this name asks for now; without a name, the user of the local
        installation. Raises CommandError."""
        if username is None:
            username = getattr(settings, f"LOCAL_{self.local_role.upper()}")
        if not username:
            raise CommandError("Say as whom you act, with --as USERNAME.")
        actor = Actor.of(commands.active_user(username))
        return Act(actor, Route.COMMAND, timezone.now(), reason)

    def say(self, text: str = "") -> None:
        self.stdout.write(text)
        self.stdout.flush()

    def box(self, title: str, *lines: str) -> None:
        self.say("\n".join((RULE, title, RULE, *lines, RULE)))

    def follow(self, order: Order, *, seconds: float = math.inf) -> bool:
        """Print each step of `order` when it is recorded, and the reason when nothing is recorded
        for 10 s. Return whether within `seconds` the order has ended and its messages are
        delivered; `order` is up to date then.

        Raises CommandError where Temporal does not start its workflow.
        """
        end = time.monotonic() + seconds
        seen_before, moved_at, printed = None, time.monotonic(), ""
        last = 0
        while True:
            order.refresh_from_db()
            for step in order.steps.filter(attempt=order.attempt, pk__gt=last):
                name = step.name.replace("_", " ").capitalize()
                self.say(f"{_MARKS[OrderStep.Status(step.status)]} {name}: {step.message}")
                last = step.pk
            waiting = outbox.waiting(services.KIND.keys(order.order_id))
            if order.state in FINAL and not waiting:
                return True
            if was_refused(order):
                raise CommandError(why_it_waits(order))
            now = time.monotonic()
            if now >= end:
                return False
            seen = (order.state, order.expires_at, last, waiting)
            if seen != seen_before:
                seen_before, moved_at, printed = seen, now, ""
            elif now - moved_at >= PATIENCE_SECONDS and (why := why_it_waits(order)) != printed:
                printed = why
                self.say(why)
            time.sleep(POLL_SECONDS)


def was_refused(order: Order) -> bool:
    """Return whether Temporal refused to start the workflow of the order."""
    start = Message.objects.filter(NEEDS_ATTENTION, key=services.KIND.key("start", order.order_id))
    return start.exists()


def why_it_waits(order: Order) -> str:
    """Return why nothing happens to an order that has not ended, and what to do; "" while it waits
    for its decision."""
    messages = Message.objects.filter(key__in=services.KIND.keys(order.order_id))
    waiting = messages.filter(settled_at=None).order_by("created_at").first()
    if waiting is not None:
        cause = waiting.last_error or "Is a relay running (`./manage.py relay`)?"
        return f"The {waiting} waits for its delivery. {cause}"
    failed = messages.filter(NEEDS_ATTENTION).first()
    if failed is not None:
        return (
            f"The {failed} was not delivered: {failed.get_outcome_display()}. "
            "`./manage.py reconcile` shows what can be done."
        )
    if order.state == State.PENDING and order.expires_at and order.expires_at > timezone.now():
        return ""
    return (
        "The workflow waits for a worker. Is one running (`./manage.py runworker`)? "
        "The worker's log shows what fails."
    )


def places(order: Order) -> str:
    """Return where a person can follow the order: two lines."""
    site = settings.EXPENSES_SITE_URL
    # No route takes an id with a slash.
    ref = order.pk if "/" in order.workflow_id else quote(order.workflow_id, safe="")
    status = shlex.quote(f"{site}/orders/{ref}/status")
    return f"  {page(order)}\n  curl {status}"


def page(order: Order) -> str:
    """Return the address of the order's page in the admin."""
    return settings.EXPENSES_SITE_URL + services.KIND.page(order.order_id)


def message_of(order: Order) -> str:
    """Return the result of an order that has ended, as a sentence."""
    return str(order.failure_reason) or "Order processed successfully"
