"""The defects that `make mutants` plants, each with the tests that are to catch it."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Defect:
    """In the file at `path`, `old`, which stands there once, becomes `new`; `tests` are to fail."""

    name: str
    path: str
    old: str
    new: str
    tests: str


DEFECTS: Final = (
    Defect(
        "a decision without compare-and-set",
        "expenses/services.py",
        "        if not Expense.objects.filter(pk=expense.pk, state=State.CREATED).update(\n",
        "        if not Expense.objects.filter(pk=expense.pk).update(\n",
        "tests/expenses/test_services.py",
    ),
    Defect(
        "an unconditional payment",
        "expenses/services.py",
        "        if not Expense.objects.filter(pk=expense.pk, state=State.APPROVED).update(\n",
        "        if not Expense.objects.filter(pk=expense.pk).update(\n",
        "tests/expenses/test_protocol.py",
    ),
    Defect(
        "no idempotency key at create",
        "expenses/services.py",
        "        if workflow_id is None or not same:\n",
        "        if same or not same:\n",
        "tests/expenses/test_protocol.py",
    ),
    Defect(
        "a callback of another workflow is stored",
        "expenses/services.py",
        "waiting.filter(Q(workflow_id=named) | Q(workflow_id__isnull=True)).update(\n",
        "waiting.filter(Q()).update(\n",
        "tests/expenses/test_protocol.py",
    ),
    Defect(
        "one's own expense may be approved",
        "approvals/services.py",
        "    if own or opened:\n",
        "    if opened:\n",
        "tests/expenses",
    ),
    Defect(
        "who created an expense over the protocol may approve it",
        "approvals/services.py",
        "    if own or opened:\n",
        "    if own:\n",
        "tests/expenses/test_services.py",
    ),
    Defect(
        "who carries requests may decide them",
        "approvals/services.py",
        "    if actor.carries:\n",
        "    if actor.carries and not actor.user:\n",
        "tests/expenses/test_services.py",
    ),
    Defect(
        "a session decides by GET",
        "expenses/protocol.py",
        "            self.asks = True\n",
        "            self.asks = False\n",
        "tests/expenses/test_protocol.py",
    ),
    Defect(
        "another site's Origin is not looked at",
        "access/cross_site.py",
        '("HTTP_ORIGIN", "HTTP_REFERER")',
        '("HTTP_REFERER",)',
        "tests/access/test_protocol_access.py",
    ),
    Defect(
        "an employee reads another's state",
        "expenses/protocol.py",
        '(request.query_params["id"], _visible_to(self.actor))',
        '(request.query_params["id"])',
        "tests/expenses/test_services.py",
    ),
    Defect(
        "a message handed over before its transaction commits",
        "outbox/services.py",
        "transaction.on_commit(lambda: deliverer.hand_over(message), robust=True)",
        "deliverer.hand_over(message)",
        "tests/outbox/test_deliverer.py",
    ),
    Defect(
        "no repair by ids where the token is of an earlier attempt",
        "outbox/client.py",
        "            return await self._complete_by_ids(address, value)\n",
        "            return Outcome.UNDELIVERABLE\n",
        "tests/outbox/test_client.py",
    ),
    Defect(
        "NOT_FOUND taken for delivered",
        "outbox/client.py",
        "            return await self._complete_by_ids(address, value)\n",
        "            return Outcome.DELIVERED\n",
        "tests/outbox/test_client.py",
    ),
    Defect(
        "ids alone name the activity, whatever its run",
        "outbox/client.py",
        "        if run_id == current.run_id:\n            return True\n",
        "        if run_id:\n            return True\n",
        "tests/outbox/test_client.py",
    ),
    Defect(
        "run id in the idempotency key",
        "worker/expenses/activities.py",
        'workflow_id=activity.info().workflow_id or "",\n                params',
        'workflow_id=activity.info().workflow_run_id or "",\n                params',
        "tests/worker",
    ),
    Defect(
        "a decision before the registration is not asked for",
        "worker/expenses/activities.py",
        '        if answer == "ERROR:INVALID_STATE":\n',
        '        if answer == "INVALID_STATE":\n',
        "tests/worker",
    ),
    Defect(
        "a server error ends the workflow",
        "worker/expenses/activities.py",
        "            if status in _PASSING_STATUS or status >= 500:\n",
        "            if status in _PASSING_STATUS:\n",
        "tests/worker",
    ),
    Defect(
        "retries that end",
        "worker/expenses/workflows.py",
        "    maximum_attempts=0,\n",
        "    maximum_attempts=2,\n",
        "tests/worker",
    ),
    Defect(
        "a repeated payment is refused",
        "expenses/services.py",
        "            if paid is None:\n",
        "            if paid is None or paid:\n",
        "tests/expenses/test_protocol.py",
    ),
    Defect(
        "settled before it is delivered",
        "outbox/delivery.py",
        "            due_at=lease_end(now)\n",
        '            due_at=lease_end(now), outcome="DELIVERED", settled_at=now\n',
        "tests/outbox/test_deliverer.py",
    ),
    Defect(
        "a lease that is not pushed forward",
        "outbox/delivery.py",
        "        one.due_at = end\n",
        "        one.due_at = now\n",
        "tests/outbox/test_simulation.py",
    ),
    Defect(
        "whoever comes last settles",
        "outbox/delivery.py",
        "    if message.outcome is not None or message.due_at != attempt.message.due_at:\n",
        "    if message.due_at is None:\n",
        "tests/outbox/test_simulation.py",
    ),
    Defect(
        "an error taken for delivered",
        "outbox/delivery.py",
        'Attempt(message, None, f"{type(error).__name__}; see the log.")',
        'Attempt(message, Outcome.DELIVERED, f"{type(error).__name__}; see the log.")',
        "tests/outbox/test_simulation.py",
    ),
    Defect(
        "a back-off without a cap",
        "outbox/delivery.py",
        "LONGEST_BACKOFF_SECONDS = 10.0\n",
        "LONGEST_BACKOFF_SECONDS = 1e4\n",
        "tests/outbox/test_simulation.py",
    ),
    Defect(
        "a decision before the start of its workflow is given up",
        "outbox/client.py",
        "        if description is None:\n            if not started:\n",
        "        if description is None:\n            if started is None:\n",
        "tests/outbox/test_client.py",
    ),
    Defect(
        "a retry that sends again what was delivered",
        "outbox/services.py",
        "    return messages.filter(Q(settled_at=None) | NEEDS_ATTENTION).update(\n",
        "    return messages.update(\n",
        "tests/outbox/test_admin.py",
    ),
    Defect(
        "what is under way taken for a difference",
        "outbox/reconciliation.py",
        "        return self.queued or now - self.since < GRACE\n",
        "        return now < self.since\n",
        "tests/expenses/test_reconciliation.py",
    ),
    Defect(
        "what another relay leased a moment later taken for free",
        "outbox/delivery.py",
        "    return now + 2 * RELAY_LEASE\n",
        "    return now + RELAY_LEASE\n",
        "tests/outbox/test_delivery.py",
    ),
    Defect(
        "a decision for the wait of another expense",
        "outbox/client.py",
        "            and list(scheduled.input.payloads) == wanted\n",
        "            and wanted\n",
        "tests/outbox/test_client.py",
    ),
    Defect(
        "an order decided without compare-and-set",
        "orders/services.py",
        "(pk=order.pk, state=State.PENDING, attempt=order.attempt).update(\n",
        "(pk=order.pk, attempt=order.attempt).update(\n",
        "tests/orders/test_services.py",
    ),
    Defect(
        "exactly the threshold needs an approval",
        "orders/services.py",
        "total > settings.ORDERS_APPROVAL_THRESHOLD",
        "total >= settings.ORDERS_APPROVAL_THRESHOLD",
        "tests/orders/test_services.py",
    ),
    Defect(
        "an order completed while it is undone",
        "orders/fulfilment.py",
        "        if this.filter(state=State.RUNNING, steps_begun=all_begun).update(\n",
        "        if this.filter(steps_begun=all_begun).update(\n",
        "tests/orders/test_fulfilment.py",
    ),
    Defect(
        "a charge after its refund",
        "orders/integrations/database.py",
        "        if charge.state == Charge.State.REFUNDED:\n",
        "        if charge.state == Charge.State.REFUNDED and charge.amount:\n",
        "tests/orders/test_integrations.py",
    ),
    Defect(
        "more reserved than there is",
        "orders/integrations/database.py",
        "            if not stock.filter(available__gte=item.quantity).update(\n",
        "            if not stock.update(\n",
        "tests/orders/test_integrations.py",
    ),
    Defect(
        "a released reservation that is counted twice",
        "orders/integrations/database.py",
        "            if made or not self._leave(reservation, Reservation.State.RELEASED):\n",
        "            if made or self._leave(reservation, Reservation.State.RELEASED) is None:\n",
        "tests/orders/test_integrations.py",
    ),
    Defect(
        "a retry under the key of the attempt that was undone",
        "orders/models.py",
        '        return f"{self.pk}:{attempt}"\n',
        '        return f"{self.pk}:{attempt and 1}"\n',
        "tests/orders/test_fulfilment.py",
    ),
    Defect(
        "a retry that joins the run that failed",
        "outbox/client.py",
        "        join = exist_ok and memo is None\n",
        "        join = exist_ok\n",
        "tests/outbox",
    ),
    Defect(
        "a step before the approval",
        "orders/fulfilment.py",
        "_WHEN.get(step, (State.RUNNING,))",
        "_WHEN.get(step, (State.RUNNING, State.PENDING))",
        "tests/orders/test_fulfilment.py",
    ),
)
