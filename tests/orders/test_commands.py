"""`manage.py startorder` and `decideorder`: what a person reads, and how they end."""

import asyncio
import io
import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.management import CommandError, call_command
from django.db import connections
from django.utils import timezone

from access import groups
from approvals.models import Approval, AuditEntry, Route, Verdict
from orders import base_command
from orders.models import Order, State, StockItem
from tests import factories
from tests.conftest import Unchanged
from tests.orders.conftest import Shop
from tests.orders.integrations import FAULTS, refused

MANAGE = Path(__file__).resolve().parents[2] / "manage.py"
RULE = "=" * 70
APPROVED = f"""\
{RULE}
✅ ORDER APPROVED
{RULE}
Order ID: ORD-002
Reason: High-value customer - approved
{RULE}
The workflow will now proceed with payment and fulfillment.
"""


@pytest.fixture(autouse=True)
def _local(settings: Any, monkeypatch: pytest.MonkeyPatch, transactional_db: None) -> None:
    """An installation as `up` makes one: with an employee and an approver."""
    settings.EXPENSES_SITE_URL = "http://site"
    settings.LOCAL_EMPLOYEE, settings.LOCAL_APPROVER = "employee", "approver"
    factories.user(groups.EMPLOYEE, username="employee")
    factories.user(groups.APPROVER, username="approver")
    monkeypatch.setattr(base_command, "POLL_SECONDS", 0.02)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_command, "PATIENCE_SECONDS", 0.1)


def run(*arguments: str, output: io.StringIO | None = None) -> tuple[int, str]:
    """Exit code of a command and what it says."""
    output = output or io.StringIO()
    try:
        call_command(*arguments, stdout=output)
    except CommandError as error:
        return error.returncode, output.getvalue() + str(error)
    except SystemExit as end:
        return int(str(end.code)), output.getvalue()
    return 0, output.getvalue()


async def running(*arguments: str, output: io.StringIO | None = None) -> tuple[int, str]:
    """The same beside a shop, in a thread of its own; a confirmation may come before the end.

    Each of these orders has an id of its own: Temporal knows those of the other tests.
    """

    def alone() -> tuple[int, str]:
        try:
            return run(*arguments, output=output)
        finally:
            connections.close_all()

    code, said = await asyncio.to_thread(alone)
    return code, said.replace("✓ Send confirmation: Confirmation sent\n", "")


async def says(output: io.StringIO, text: str) -> None:
    async with asyncio.timeout(40):
        while text not in output.getvalue():
            await asyncio.sleep(0.02)


def places(order_id: str) -> str:
    return (
        f"  http://site/admin/orders/order/{order_id}/change/"
        "?_to_field=order_id\n"
        f"  curl http://site/orders/order-workflow-{order_id}/status\n"
    )


# Orders that are carried out.


async def test_small_order_prints_each_step_and_the_result(shop: Shop) -> None:
    """O8: the sample's output, with a line for each step."""
    async with shop.worked():
        code, said = await running("startorder", "small", "--wait")
        await shop.ended("order-workflow-ORD-001")
        await shop.at_rest()
    for name, size in (("TXN", 12), ("RES", 12), ("TRACK", 16)):
        said = re.sub(f"{name}-[0-9A-F]{{{size}}}\n", f"{name}-X\n", said)
    arrives = (timezone.now() + timedelta(days=3)).date()
    assert code == 0
    assert (
        said
        == f"""\
Starting order workflow for Alice Smith, order ID: ORD-001, total: $89.95
Waiting for workflow to complete...
✓ Check inventory: All items are available
✓ Reserve inventory: Reserved 2 item(s) successfully
✓ Process payment: Payment of $89.95 processed successfully
✓ Update warehouse: Delivery scheduled

{RULE}
Order Result: COMPLETED
{RULE}
Order ID: ORD-001
Status: completed
Message: Order processed successfully

Payment:
  Transaction ID: TXN-X
  Payment of $89.95 processed successfully

Inventory:
  Reservation ID: RES-X
  Reserved 2 item(s) successfully

Delivery:
  Tracking Number: TRACK-X
  Estimated Delivery: {arrives}
  Delivery scheduled to 123 Main St, Springfield, IL 62701
{RULE}
"""
    )
    order = await Order.objects.select_related("submitter").aget()
    assert (order.customer_email, order.submitter.username) == ("alice@example.com", "employee")
    submitted = await AuditEntry.objects.aget(event="submitted")
    assert (submitted.actor, submitted.route) == ("employee", Route.COMMAND)


@pytest.mark.parametrize("wait", [[], ["--wait"]])
async def test_conflicting_workflow_ends_the_command_with_1(shop: Shop, wait: list[str]) -> None:
    """O8: nobody waits for an order whose workflow cannot start, because Temporal has another
    workflow under its id that the records do not know."""
    name = f"ORD-008{len(wait)}"
    async with shop.worked():
        await shop.ended(await shop.order(workflow_id=f"order-workflow-{name}"))
        await Order.objects.aupdate(workflow_id="forgotten")
        code, said = await running("startorder", "small", "--id", name, *wait)
    assert code == 1
    assert said.endswith(
        f"The start of {name} was not delivered: completed elsewhere with another value. "
        "`./manage.py reconcile` shows what can be done."
    )


async def test_large_order_prints_how_to_decide_it(shop: Shop) -> None:
    """O8: it says how to decide it, and returns once it is started; the approval is followed to
    the end."""
    async with shop.worked():
        code, said = await running("startorder", "large")
        assert code == 0
        assert (
            said
            == f"""\
Starting order workflow for Bob Johnson, order ID: ORD-002, total: $1899.97

{RULE}
⚠️  ORDER REQUIRES APPROVAL
{RULE}
Order ID: ORD-002
Amount: $1899.97

To approve this order, run:
  ./manage.py decideorder ORD-002 approve

To reject this order, run:
  ./manage.py decideorder ORD-002 reject "REASON"

Or decide on its page:
{places("ORD-002").splitlines()[0]}
{RULE}
Workflow will wait up to 5 minutes for a decision.
Workflow started and waiting for approval...
Follow the order here:
{places("ORD-002")}"""
        )
        approve = ("decideorder", "ORD-002", "approve", "High-value customer - approved")
        code, said = await running(*approve)
        assert code == 0
        assert (
            said
            == f"""\
{APPROVED}\
✓ Check inventory: All items are available
✓ Reserve inventory: Reserved 2 item(s) successfully
✓ Process payment: Payment of $1899.97 processed successfully
✓ Update warehouse: Delivery scheduled

Workflow completed with status: completed
Message: Order processed successfully
"""
        )
        await shop.ended("order-workflow-ORD-002")
        await shop.at_rest()
    approval = await Approval.objects.select_related("entry").aget()
    decided = (approval.verdict, approval.entry.actor, approval.entry.route)
    assert decided == (Verdict.APPROVED, "approver", Route.COMMAND)


async def test_rejected_order_prints_that_nothing_was_charged(shop: Shop) -> None:
    """O4, O8: by its workflow id too. Who waits for the order reads that nothing was charged."""
    async with shop.worked():
        output = io.StringIO()
        waiting = asyncio.create_task(
            running("startorder", "large", "--id", "ORD-003", "--wait", output=output)
        )
        await says(output, "Waiting for workflow to complete...")
        await shop.waiting("order-workflow-ORD-003")
        code, said = await running(
            "decideorder", "order-workflow-ORD-003", "reject", "Insufficient credit check"
        )
        assert code == 0
        assert (
            said
            == f"""\
{RULE}
❌ ORDER REJECTED
{RULE}
Order ID: ORD-003
Reason: Insufficient credit check
{RULE}
The workflow will now end; nothing is charged.

Workflow completed with status: cancelled
Message: Insufficient credit check
"""
        )
        code, said = await waiting
        await shop.ended("order-workflow-ORD-003")
        await shop.at_rest()
    assert code == 0
    assert said.endswith(f"""\
Waiting for workflow to complete...

{RULE}
Order Result: CANCELLED
{RULE}
Order ID: ORD-003
Status: cancelled
Message: Insufficient credit check

Nothing was charged.
{RULE}
""")


async def test_order_that_nobody_decides_prints_that_it_timed_out(
    shop: Shop, settings: Any
) -> None:
    """O4, O8: nobody decides."""
    settings.ORDERS_APPROVAL_SECONDS = 1
    async with shop.worked():
        code, said = await running("startorder", "large", "--id", "ORD-004", "--wait")
    assert code == 0
    assert "Workflow will wait up to 1 second for a decision.\n" in said
    assert "Order Result: CANCELLED\n" in said
    assert "Message: approval timed out\n" in said


async def test_failed_order_prints_what_was_undone_and_ends_with_1(shop: Shop) -> None:
    """O5, O8: the reason and what was undone; exit code 1."""
    async with shop.worked(fail_at="warehouse"):
        code, said = await running("startorder", "small", "--id", "ORD-001 again", "--wait")
        await shop.ended("order-workflow-ORD-001 again")
        await shop.at_rest()
    assert code == 1
    assert (
        said
        == f"""\
Starting order workflow for Alice Smith, order ID: ORD-001 again, total: $89.95
Waiting for workflow to complete...
✓ Check inventory: All items are available
✓ Reserve inventory: Reserved 2 item(s) successfully
✓ Process payment: Payment of $89.95 processed successfully
✓ Update warehouse: Delivery scheduled
✗ Update warehouse: injected failure at warehouse
↩ Revert warehouse: Delivery called off
↩ Refund payment by idempotency key: Payment refunded
↩ Release inventory: Reservation released

{RULE}
Order Result: FAILED
{RULE}
Order ID: ORD-001 again
Status: failed
Message: injected failure at warehouse

Undone:
  Delivery called off
  Payment refunded
  Reservation released
{RULE}
"""
    )


async def test_deciding_an_order_that_fails_later_ends_with_0(shop: Shop) -> None:
    """O8: the decision was taken, so it is no failure of the command."""
    async with shop.worked():
        assert (await running("startorder", "large", "--id", "ORD-005"))[0] == 0
        key = await shop.key("order-workflow-ORD-005")
        FAULTS.plan("charge", key, refused("The card was declined."))
        code, said = await running("decideorder", "ORD-005", "approve")
        await shop.ended("order-workflow-ORD-005")
        await shop.at_rest()
    assert code == 0
    assert f"Order ID: ORD-005\n{RULE}\n" in said
    assert said.endswith(
        "↩ Release inventory: Reservation released\n\n"
        "Workflow completed with status: failed\nMessage: The card was declined.\n"
    )


@pytest.mark.usefixtures("impatient")
async def test_waiting_prints_what_is_missing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """O8, X6: the command prints which process is missing: the relay, Temporal, the worker. The
    order is carried out when all of them run."""
    output = io.StringIO()
    waiting = asyncio.create_task(
        running("startorder", "small", "--id", "ORD-006", "--wait", output=output)
    )
    start = "The start of ORD-006 waits for its delivery. "
    await says(output, f"{start}Is a relay running (`./manage.py relay`)?\n")
    with monkeypatch.context() as down:
        down.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
        async with shop.relayed():
            await says(output, f"{start}Temporal at 127.0.0.1:1 does not answer.\n")
    async with shop.relayed():
        await says(
            output,
            "The workflow waits for a worker. Is one running (`./manage.py runworker`)? "
            "The worker's log shows what fails.\n",
        )
    async with shop.worked():
        code, said = await waiting
        await shop.ended("order-workflow-ORD-006")
        await shop.at_rest()
    assert code == 0
    assert "Order Result: COMPLETED\n" in said
    # Each is said once, however long it lasts.
    assert said.count(start) == 2


@pytest.mark.usefixtures("impatient")
async def test_order_without_a_relay_is_accepted(shop: Shop) -> None:
    """O8, X1: without a relay an order is accepted all the same."""
    code, said = await running("startorder", "small", "--id", "ORD-007")
    assert code == 0
    assert said.endswith(
        "The start of ORD-007 waits for its delivery. Is a relay running (`./manage.py relay`)? "
        f"The start is delivered automatically.\nFollow the order here:\n{places('ORD-007')}"
    )
    async with shop.worked():
        assert (await shop.ended("order-workflow-ORD-007"))["status"] == "completed"


async def test_waiting_for_a_slow_order_ends_with_0(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O8: the waiting ends, the order goes on."""
    monkeypatch.setattr("orders.management.commands.decideorder.WAIT_SECONDS", 0.1)
    await sync_to_async(factories.order)(
        "ORD-010", State.PENDING, workflow_id="order-workflow-ORD-010"
    )
    reason = "High-value customer - approved"
    approved = APPROVED.replace("ORD-002", "ORD-010")
    said = f"{approved}The order goes on. Follow it here:\n{places('ORD-010')}"
    assert await running("decideorder", "ORD-010", "approve", reason) == (0, said)


# What is refused, without any other process.


@pytest.fixture
def _stocked(transactional_db: None) -> None:
    factories.stock()


@pytest.mark.usefixtures("_stocked")
class TestRefused:
    def test_taken_id_changes_nothing(self, unchanged: Unchanged) -> None:
        """O8: the same ID twice says so."""
        factories.order("ORD-001")
        factories.order("mine", workflow_id="order-workflow-other")
        with unchanged():
            assert run("startorder", "small") == (
                1,
                "There is an order ORD-001 already. Choose another with --id.",
            )
            assert run("startorder", "small", "--id", "mine") == (
                1,
                "There is an order mine already. Choose another with --id.",
            )
            assert run("startorder", "small", "--id", "other") == (
                1,
                "The workflow id order-workflow-other is in use. Choose another, or leave it out.",
            )

    def test_unknown_products_change_nothing(self, unchanged: Unchanged) -> None:
        """O8: a stock without the examples."""
        StockItem.objects.filter(product_id__startswith="PROD").delete()
        with unchanged():
            assert run("startorder", "small") == (
                1,
                "There is no product PROD-101, PROD-102. The stock is at "
                "http://site/admin/orders/stockitem/; `make up` adds the products of the examples.",
            )

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("{", "{file} is not JSON: Expecting property name enclosed in double quotes: "),
            ("[" * 100_000, "{file} is not JSON: maximum recursion depth exceeded"),
            ("[]", "Invalid data. Expected a dictionary, but got list."),
            (
                '{"quantity": "many", "product_id": "SKU-001", "payment_method": "tok_visa"}',
                "quantity: A valid integer is required.\ncustomer_id: This field is required.",
            ),
            (
                '{"lines": [{"product_id": "SKU-001", "quantity": 1}, {"product_id": " "}],'
                '"customer_id": "c", "payment_method": "p"}',
                "lines[1].product_id: An id has 1 to 100 characters, is not blank and has no "
                "control, bidirectional or zero-width characters.\n"
                "lines[1].quantity: This field is required.",
            ),
            (
                '{"product_id": "SKU-001", "customer_id": "c", "payment_method": "p"}',
                "quantity: This field is required, unless there are lines.",
            ),
        ],
        ids=["cut off", "deep", "list", "fields", "lines", "no quantity"],
    )
    def test_unusable_file_names_the_fault_and_changes_nothing(
        self, content: str, said: str, tmp_path: Path, unchanged: Unchanged
    ) -> None:
        """O8: the field at fault is named."""
        file = tmp_path / "order.json"
        file.write_text(content)
        with unchanged():
            code, refusal = run("startorder", "--file", str(file))
        assert code == 1
        assert refusal.startswith(said.replace("{file}", str(file)))

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        """O8."""
        said = f"{tmp_path}/none cannot be read: No such file or directory."
        assert run("startorder", "--file", f"{tmp_path}/none") == (1, said)

    @pytest.mark.parametrize("arguments", [[], ["small", "--file", "x"], ["medium"]])
    def test_one_example_or_one_file_is_needed(self, arguments: list[str]) -> None:
        """O8: one example, or a file."""
        code, said = run("startorder", *arguments)
        assert code == 1
        assert said.startswith("Error: ")

    @pytest.mark.usefixtures("impatient")
    def test_failure_is_injected_beside_a_local_installation_only(
        self, tmp_path: Path, unchanged: Unchanged, settings: Any
    ) -> None:
        """O6: `fail_at` needs FAULT_INJECTION, which `up` records in the open mode."""
        file = tmp_path / "order.json"
        order = {"product_id": "SKU-001", "quantity": 1, "customer_id": "c", "payment_method": "p"}
        file.write_text(json.dumps({**order, "fail_at": "payment"}))
        employee = factories.user(groups.EMPLOYEE, username="eve")
        command = ("startorder", "--file", str(file), "--as", employee.username)
        with unchanged():
            assert run(*command) == (
                1,
                "fail_at: Failures are injected in the local mode only; leave it out.",
            )
        settings.FAULT_INJECTION = True
        assert run(*command)[0] == 0
        assert Order.objects.get().fail_at == "payment"

    @pytest.mark.parametrize(
        "command", [("startorder", "small"), ("decideorder", "ORD-002", "approve")]
    )
    def test_named_user_acts_with_own_rights(
        self, command: tuple[str, ...], unchanged: Unchanged
    ) -> None:
        """X3: the named user acts with their own rights, and no more."""
        factories.order("ORD-002", State.PENDING)
        factories.user(groups.APPROVER, groups.EMPLOYEE, username="gone", is_active=False)
        factories.user(groups.AUDITOR, username="auditor")
        with unchanged():
            for names, said in (
                (["--as", "x"], "There is no user 'x'. Add one in the admin first."),
                (["--as", "gone"], "The user 'gone' is not active. Activate it in the admin."),
            ):
                assert run(*command, *names) == (1, said)
        with unchanged(refusals=command[0] == "decideorder"):
            code, said = run(*command, "--as", "auditor")
        assert code == 1
        assert said.startswith(("auditor may not submit orders", "auditor has no permission"))

    @pytest.mark.parametrize(
        "command", [("startorder", "large"), ("decideorder", "ORD-002", "approve")]
    )
    def test_who_acts_is_named_elsewhere(
        self, command: tuple[str, ...], unchanged: Unchanged, settings: Any
    ) -> None:
        """X3: only an installation made by `up` knows whose part its commands take."""
        settings.LOCAL_EMPLOYEE = settings.LOCAL_APPROVER = ""
        factories.order("ORD-002", State.PENDING)
        with unchanged():
            assert run(*command) == (1, "Say as whom you act, with --as USERNAME.")

    @pytest.mark.usefixtures("impatient")
    def test_elsewhere_the_commands_for_a_decision_name_somebody(self, settings: Any) -> None:
        """O8: as `decideorder` needs it there."""
        settings.LOCAL_EMPLOYEE = settings.LOCAL_APPROVER = ""
        code, said = run("startorder", "large", "--as", "employee")
        assert code == 0
        assert "  ./manage.py decideorder ORD-002 approve --as USERNAME\n" in said
        assert '  ./manage.py decideorder ORD-002 reject "REASON" --as USERNAME\n' in said

    @pytest.mark.usefixtures("impatient")
    def test_deciding_an_own_order_is_refused(self, unchanged: Unchanged) -> None:
        """X3: superusers neither, on the command line neither."""
        root = factories.user(username="root", is_superuser=True)
        assert run("startorder", "large", "--as", root.username, "--id", "own")[0] == 0
        with unchanged(refusals=1):
            assert run("decideorder", "own", "approve", "--as", root.username) == (
                1,
                "Nobody decides their own request; ask another approver.",
            )
        [entry] = AuditEntry.objects.filter(event="refused")
        assert (entry.actor, entry.route) == ("root", Route.COMMAND)

    def test_order_that_cannot_be_decided_prints_why(self, unchanged: Unchanged) -> None:
        """O3, O8: the sentence says what to do, or the state of the order."""
        factories.order("small")
        factories.order("ORD 2", State.PENDING)
        factories.order("approved", large=True)
        with unchanged():
            for arguments, said in (
                (
                    ["none", "approve"],
                    "There is no order 'none', by its order id or its workflow id.",
                ),
                (["small", "approve"], "small waits for no decision: it is running."),
                (
                    ["ORD 2", "reject"],
                    "A rejection needs a reason; say why. "
                    "./manage.py decideorder 'ORD 2' reject \"REASON\"",
                ),
                (
                    ["ORD 2", "reject", "x" * 2001],
                    "The reason has more than 2000 characters; shorten it.",
                ),
                (["approved", "reject", "no"], "approved was already approved by local."),
            ):
                assert run("decideorder", *arguments) == (1, said)
            # The same again: it is as was asked for.
            assert run("decideorder", "approved", "approve", "again") == (
                0,
                "approved was already approved by local.\n",
            )

    def test_undecodable_argument_is_one_sentence(self, unchanged: Unchanged) -> None:
        """O8: no database can compare a name whose bytes are not UTF-8."""
        factories.order("ORD-002", State.PENDING)
        name = "\udcff"
        with unchanged():
            assert run("decideorder", name, "approve") == (
                1,
                f"There is no order {name!r}, by its order id or its workflow id.",
            )
            for command in (("startorder", "small"), ("decideorder", "ORD-002", "approve")):
                said = f"There is no user {name!r}. Add one in the admin first."
                assert run(*command, "--as", name) == (1, said)

    def test_order_id_comes_before_workflow_id(self) -> None:
        """O8: one order's id may be another's workflow id."""
        factories.order("other", State.PENDING, workflow_id="same")
        factories.order("same", State.PENDING)
        assert run("decideorder", "same", "approve", "--no-wait")[0] == 0
        assert Order.objects.get(order_id="same").state == State.RUNNING
        assert Order.objects.get(order_id="other").state == State.PENDING


@pytest.mark.parametrize(
    "command", [("startorder", "small", "--as", "anna"), ("decideorder", "x", "approve")]
)
def test_missing_database_is_one_sentence(command: tuple[str, ...], tmp_path: Path) -> None:
    """O8: one sentence with the remedy, never a traceback."""
    environment = {
        "PATH": os.environ["PATH"],
        "SECRET_KEY": "s",
        "EXPENSES_FERNET_KEYS": "dGVzdHMtb25seS10ZXN0cy1vbmx5LXRlc3RzLW9ubHk=",
        "EXPENSES_PROTOCOL_ACCESS": "open",
        "EXPENSES_DATA_DIR": str(tmp_path),
    }
    ended = subprocess.run(
        [sys.executable, MANAGE, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("CommandError: The database is not ready (no such table: ")
    assert ended.stderr.endswith("Run `make up` first.\n")
    assert ended.stderr.count("\n") == 1
