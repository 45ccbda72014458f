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
        "    if own:\n",
        "    if own and not actor.user:\n",
        "tests/expenses",
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
)
