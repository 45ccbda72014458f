"""`manage.py startorder`: submit an order, an example or one from a file, and follow it (O8)."""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from approvals import services as approvals
from approvals.models import Route
from orders import commands, integrations, services
from orders.api import SubmissionSerializer
from orders.models import Order, OrderStep, State
from outbox import services as outbox
from worker import contracts

EXAMPLES: Final = {
    "small": {
        "order_id": "ORD-001",
        "customer_id": "CUST-001",
        "customer_name": "Alice Smith",
        "customer_email": "alice@example.com",
        "shipping_address": "123 Main St, Springfield, IL 62701",
        "payment_method": "tok_visa",
        "lines": [
            {"product_id": "PROD-101", "quantity": 2},
            {"product_id": "PROD-102", "quantity": 3},
        ],
    },
    "large": {
        "order_id": "ORD-002",
        "customer_id": "CUST-002",
        "customer_name": "Bob Johnson",
        "customer_email": "bob@example.com",
        "shipping_address": "456 Oak Ave, Chicago, IL 60601",
        "payment_method": "tok_mastercard",
        "lines": [
            {"product_id": "PROD-201", "quantity": 1},
            {"product_id": "PROD-202", "quantity": 2},
        ],
    },
}
_UNITS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


class Command(commands.OrderCommand):
    help = (
        "Submit an order and have its workflow order-workflow-<order id> started: an example, of "
        "which `large` needs an approval, or the one in a JSON file, which is like the body of "
        "POST /orders. Prices are those of the stock. Exit code: 0 it was started or, with --wait, "
        "completed or cancelled; 1 it could not be submitted, or it failed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("example", nargs="?", choices=EXAMPLES, help="an example order")
        what.add_argument("--file", type=Path, metavar="ORDER.JSON", help="an order of your own")
        parser.add_argument("--id", dest="order_id", help="another order id than the example's")
        parser.add_argument(
            "--wait",
            action="store_true",
            help="tell each step, through the approval too, and the result; Ctrl-C stops the "
            "waiting only",
        )
        super().add_arguments(parser)

    def handle(
        self,
        *args: Any,
        example: str | None,
        file: Path | None,
        order_id: str | None,
        wait: bool,
        username: str | None,
        **options: Any,
    ) -> None:
        wanted = _read(file) if file else EXAMPLES[str(example)]
        if order_id is not None and isinstance(wanted, dict):
            wanted = {**wanted, "order_id": order_id}
        order = _submit(wanted, username)
        self.say(
            f"Starting order workflow for {order.customer_name or order.customer_id}, "
            f"order ID: {order.order_id}, total: {order.money()}"
        )
        if order.needs_approval:
            self._tell_how_to_decide(order, username)
        if not wait:
            self._tell_start(order)
            return
        self.say("Waiting for workflow to complete...")
        self.follow(order)
        self.say()
        self.box(f"Order Result: {order.state.upper()}", *_result(order))
        if order.state == State.FAILED:
            sys.exit(1)

    def _tell_how_to_decide(self, order: Order, username: str | None) -> None:
        decide = f"  ./manage.py decideorder {shlex.quote(order.order_id)}"
        somebody = " --as USERNAME" if username else ""
        self.say()
        self.box(
            "⚠️  ORDER REQUIRES APPROVAL",
            f"Order ID: {order.order_id}",
            f"Amount: {order.money()}",
            "",
            "To approve this order, run:",
            f"{decide} approve{somebody}",
            "",
            "To reject this order, run:",
            f'{decide} reject "REASON"{somebody}',
            "",
            "Or decide on its page:",
            f"  {commands.page(order)}",
        )
        self.say(f"Workflow will wait up to {_duration(order.approval_seconds)} for a decision.")

    def _tell_start(self, order: Order) -> None:
        """Wait until the workflow is started, or tell why it is not."""
        end = time.monotonic() + commands.PATIENCE_SECONDS
        while outbox.waiting([services.start_key(order.order_id)]) and time.monotonic() < end:
            time.sleep(commands.POLL_SECONDS)
        if outbox.waiting([services.start_key(order.order_id)]):
            self.say(f"{commands.why_it_stands(order)} Then it is started by itself.")
        elif commands.was_refused(order):
            raise CommandError(commands.why_it_stands(order))
        elif order.needs_approval:
            self.say("Workflow started and waiting for approval...")
        else:
            self.say(f"Workflow {order.workflow_id} started.")
        self.say(f"See how it goes:\n{commands.places(order)}")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{file} is not JSON: {error}.") from error


def _submit(wanted: Any, username: str | None) -> Order:
    body = SubmissionSerializer(data=wanted)
    if not body.is_valid():
        raise CommandError("\n".join(_faults(body.errors)))
    details = dict(body.validated_data)
    actor = commands.actor_named(username)
    if not actor.may(services.SUBMIT):
        raise CommandError(f"{actor.name} may not submit orders; ask for the Employee group.")
    fail_at = details.pop("fail_at")
    if fail_at and settings.EXPENSES_PROTOCOL_ACCESS != "open":
        raise CommandError("fail_at: Failures are injected in the local mode only; leave it out.")
    order_id = details.pop("order_id", None) or services.new_order_id()
    workflow_id = details.pop("workflow_id", None) or contracts.command_workflow_id(order_id)
    lines = details.pop("lines")
    try:
        return services.submit_order(
            order_id,
            workflow_id=workflow_id,
            items=[integrations.Item(**line) for line in lines],
            details=services.Details(**details),
            actor=actor,
            route=Route.COMMAND,
            now=timezone.now(),
            fail_at=fail_at,
        )
    except approvals.TooManySubmissions as error:
        raise CommandError(str(error)) from error
    except services.NotOrderable as error:
        raise CommandError(
            f"{error} The stock is at {settings.EXPENSES_SITE_URL}/admin/orders/stockitem/; "
            "`make up` adds the products of the examples."
        ) from error
    except services.AlreadyExists as error:
        if error.field == "order_id":
            raise CommandError(
                f"There is an order {order_id} already. Choose another with --id."
            ) from error
        raise CommandError(str(error)) from error


def _faults(errors: Any, where: str = "") -> Iterator[str]:
    """A line for each fault that the serializer found, which names its field."""
    if isinstance(errors, dict):
        for name, below in errors.items():
            inner = f"[{name}]" if isinstance(name, int) else f".{name}" if where else str(name)
            yield from _faults(below, where if name == "non_field_errors" else where + inner)
    else:
        yield from (f"{where}: {error}" if where else str(error) for error in errors)


def _result(order: Order) -> Iterator[str]:
    yield f"Order ID: {order.order_id}"
    yield f"Status: {order.state}"
    yield f"Message: {commands.message_of(order)}"
    steps = order.steps.filter(attempt=order.attempt)
    if order.state == State.COMPLETED:
        done = {step.name: step for step in steps}
        payment = done[contracts.PROCESS_PAYMENT]
        yield "\nPayment:"
        yield f"  Transaction ID: {payment.result['charge_id']}"
        yield f"  {payment.message}"
        inventory = done[contracts.RESERVE_INVENTORY]
        yield "\nInventory:"
        yield f"  Reservation ID: {inventory.result['reservation_id']}"
        yield f"  {inventory.message}"
        delivery = done[contracts.UPDATE_WAREHOUSE]
        yield "\nDelivery:"
        yield f"  Tracking Number: {delivery.result['tracking_number']}"
        yield f"  Estimated Delivery: {delivery.result['estimated_delivery']}"
        to = f" to {order.shipping_address}" if order.shipping_address else ""
        yield f"  {delivery.message}{to}"
        return
    undone = steps.filter(status=OrderStep.Status.COMPENSATED)
    yield "\nUndone:" if undone else "\nNothing was charged."
    yield from (f"  {step.message}" for step in undone)


def _duration(seconds: int) -> str:
    size, unit = next((size, unit) for size, unit in _UNITS if seconds % size == 0)
    return f"{seconds // size} {unit}{'' if seconds == size else 's'}"
