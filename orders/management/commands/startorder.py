"""`manage.py startorder`: submit an example order or one from a file, and follow it (O8)."""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.core.management.base import CommandError, CommandParser

from approvals import services as approvals
from orders import base_command, services
from orders.api import SubmissionSerializer
from orders.models import Order, OrderStep, State
from outbox import services as outbox
from worker import contracts

EXAMPLE_ORDERS: Final = {
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


class Command(base_command.OrderCommand):
    help = (
        "Submit an order and start its workflow order-workflow-<order id>. The order is an "
        "example, of which `large` needs an approval, or the content of a JSON file, like the body "
        "of POST /orders. The prices are the stock's. Exit code: 0 if the order was started or, "
        "with --wait, completed or cancelled; 1 if it could not be submitted, or failed."
    )

    local_role = "employee"

    def add_arguments(self, parser: CommandParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("example", nargs="?", choices=EXAMPLE_ORDERS, help="an example order")
        what.add_argument("--file", type=Path, metavar="ORDER.JSON", help="an order of your own")
        parser.add_argument("--id", dest="order_id", help="an order id instead of the example's")
        parser.add_argument(
            "--wait",
            action="store_true",
            help="print each step and the result, also after an approval; Ctrl-C stops only the "
            "waiting",
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
        wanted = _read(file) if file else EXAMPLE_ORDERS[str(example)]
        if order_id is not None and isinstance(wanted, dict):
            wanted = {**wanted, "order_id": order_id}
        order = self._submit(wanted, username)
        self.say(
            f"Starting order workflow for {order.customer_name or order.customer_id}, "
            f"order ID: {order.order_id}, total: {order.sample_money()}"
        )
        if order.approval_id:
            self._say_how_to_decide(order)
        if not wait:
            self._say_start(order)
            return
        self.say("Waiting for workflow to complete...")
        self.follow(order)
        self.say()
        self.box(f"Order Result: {order.state.upper()}", *_result(order))
        if order.state == State.FAILED:
            sys.exit(1)

    def _submit(self, wanted: Any, username: str | None) -> Order:
        body = SubmissionSerializer(data=wanted)
        if not body.is_valid():
            raise CommandError("\n".join(_faults(body.errors)))
        act = self.act(username)
        try:
            services.check_may_submit(act.actor)
            return services.submit_order(
                body.submission(),
                act,
                may_inject_failure=settings.FAULT_INJECTION,
            )
        except (approvals.NotPermitted, approvals.TooManySubmissions) as error:
            raise CommandError(str(error)) from error
        except services.IdInUse as error:
            if error.field != "order_id":
                raise CommandError(str(error)) from error
            raise CommandError(
                f"There is an order {wanted['order_id']} already. Choose another with --id."
            ) from error
        except services.NotSubmitted as error:
            hint = (
                f" The stock is at {settings.EXPENSES_SITE_URL}/admin/orders/stockitem/; `make up` "
                "adds the products of the examples."
            )
            raise CommandError(
                f"{error}{hint}" if error.field == "lines" else f"{error.field}: {error}"
            ) from error

    def _say_how_to_decide(self, order: Order) -> None:
        decide = f"  ./manage.py decideorder {shlex.quote(order.order_id)}"
        somebody = "" if settings.LOCAL_APPROVER else " --as USERNAME"
        self.say()
        self.box(
            "⚠️  ORDER REQUIRES APPROVAL",
            f"Order ID: {order.order_id}",
            f"Amount: {order.sample_money()}",
            "",
            "To approve this order, run:",
            f"{decide} approve{somebody}",
            "",
            "To reject this order, run:",
            f'{decide} reject "REASON"{somebody}',
            "",
            "Or decide on its page:",
            f"  {base_command.page(order)}",
        )
        self.say(f"Workflow will wait up to {_duration(order.approval_seconds)} for a decision.")

    def _say_start(self, order: Order) -> None:
        """Wait until the workflow is started, or print why it is not."""
        end = time.monotonic() + base_command.PATIENCE_SECONDS
        start = [services.KIND.key("start", order.order_id)]
        while outbox.waiting(start) and time.monotonic() < end:
            time.sleep(base_command.POLL_SECONDS)
        if outbox.waiting(start):
            self.say(f"{base_command.why_it_waits(order)} The start is delivered automatically.")
        elif base_command.was_refused(order):
            raise CommandError(base_command.why_it_waits(order))
        elif order.approval_id:
            self.say("Workflow started and waiting for approval...")
        else:
            self.say(f"Workflow {order.workflow_id} started.")
        self.say(f"Follow the order here:\n{base_command.places(order)}")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{file} is not JSON: {error}.") from error


def _faults(errors: Any, where: str = "") -> Iterator[str]:
    """Yield a line for each fault that the serializer found, with the name of the field."""
    if isinstance(errors, dict):
        for name, below in errors.items():
            inner = f"[{name}]" if isinstance(name, int) else f".{name}" if where else str(name)
            yield from _faults(below, where if name == "non_field_errors" else where + inner)
    else:
        yield from (f"{where}: {error}" if where else str(error) for error in errors)


def _result(order: Order) -> Iterator[str]:
    yield f"Order ID: {order.order_id}"
    yield f"Status: {order.state}"
    yield f"Message: {base_command.message_of(order)}"
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
        target = f" to {order.shipping_address}" if order.shipping_address else ""
        yield f"  {delivery.message}{target}"
        return
    undone = steps.filter(status=OrderStep.Status.COMPENSATED)
    yield "\nUndone:" if undone else "\nNothing was charged."
    yield from (f"  {step.message}" for step in undone)


def _duration(seconds: int) -> str:
    size, unit = next((size, unit) for size, unit in _UNITS if seconds % size == 0)
    return f"{seconds // size} {unit}{'' if seconds == size else 's'}"
