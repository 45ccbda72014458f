"""`manage.py decideorder`: approve or reject a pending order (requirements O8)."""

import shlex
from typing import Any, Final

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser
from django.db.models import Q

from access.text import ID_LENGTH, clean_text, is_opaque_id
from approvals import services as approvals
from approvals.models import VERDICT_OF_VERB, Verdict
from orders import base_command, services
from orders.models import Order

WAIT_SECONDS: Final = 60
_TITLES: Final = {
    Verdict.APPROVED: "✅ ORDER APPROVED",
    Verdict.REJECTED: "❌ ORDER REJECTED",
}
_FOLLOWS: Final = {
    Verdict.APPROVED: "The workflow will now proceed with payment and fulfillment.",
    Verdict.REJECTED: "The workflow will now end; nothing is charged.",
}


class Command(base_command.OrderCommand):
    help = (
        "Approve or reject a pending order, and print what happens to it for up to "
        f"{WAIT_SECONDS} s. A rejection needs a reason. Exit code: 0 if the order is decided as "
        "asked, by this or an earlier decision; otherwise 1."
    )

    local_role = "approver"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("order", help="the order id, or the workflow id")
        parser.add_argument("verb", choices=("approve", "reject"))
        parser.add_argument("reason", nargs="?", default="", help="why, in quotes")
        parser.add_argument(
            "--no-wait", action="store_true", help="decide, and do not wait for the result"
        )
        super().add_arguments(parser)

    def handle(
        self,
        *args: Any,
        order: str,
        verb: str,
        reason: str,
        no_wait: bool,
        username: str | None,
        **options: Any,
    ) -> None:
        verdict = VERDICT_OF_VERB[verb]
        found = _find(order)
        try:
            act = self.act(username, clean_text(reason, field="reason"))
            approval = approvals.approval_of(services.KIND, found, verdict, act)
            approvals.decide(approval, verdict, act)
        except ValidationError as error:
            raise CommandError(error.messages[0]) from error
        except approvals.ReasonMissing as error:
            somebody = f" --as {shlex.quote(username)}" if username else ""
            raise CommandError(
                f"{error} ./manage.py decideorder {shlex.quote(found.order_id)} reject "
                f'"REASON"{somebody}'
            ) from error
        except approvals.AlreadyDecided as error:
            if error.verdict != verdict:
                raise CommandError(str(error)) from error
            self.say(str(error))
            return
        except (approvals.Refused, approvals.WrongState) as error:
            raise CommandError(str(error)) from error
        found.refresh_from_db()
        why = [f"Reason: {act.reason}"] if act.reason else []
        self.box(_TITLES[verdict], f"Order ID: {found.order_id}", *why)
        self.say(_FOLLOWS[verdict])
        if no_wait:
            return
        if self.follow(found, seconds=WAIT_SECONDS):
            self.say(f"\nWorkflow completed with status: {found.state}")
            self.say(f"Message: {base_command.message_of(found)}")
        else:
            self.say(f"The order goes on. Follow it here:\n{base_command.places(found)}")


def _find(ref: str) -> Order:
    """Return the order with this order id, else the order with this workflow id. Raises
    CommandError."""
    # A workflow id is at most twice as long. No order has an id that a database cannot compare.
    orders = Order.objects.none()
    if is_opaque_id(ref, 2 * ID_LENGTH):
        orders = Order.objects.filter(Q(order_id=ref) | Q(workflow_id=ref))
    found = sorted(orders, key=lambda order: order.order_id != ref)
    if not found:
        raise CommandError(f"There is no order {ref!r}, by its order id or its workflow id.")
    return found[0]
