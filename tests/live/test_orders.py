"""Orders in the product that `manage.py up` runs: the commands and the samples' requests."""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.test_up import MANAGE, Up, curl
from tests.servers import eventually

# Requests as clients of the published order samples send them, except for the port.
SUBMIT = """\
curl -X POST http://localhost:8000/orders \\
  -H "Content-Type: application/json" \\
  -d '{
    "product_id": "SKU-001",
    "quantity": 2,
    "customer_id": "cust-42",
    "payment_method": "tok_visa"
  }'
"""
STATUS = "curl http://localhost:8000/orders/order-ord_abc123/status"
SNAPSHOT = "curl http://localhost:8000/engine/snapshot"
STOCKED = {
    "SKU-001": (25, "24.50"),
    "SKU-002": (10, "699.00"),
    "SKU-003": (50, "9.95"),
    "PROD-101": (100, "29.99"),
    "PROD-102": (100, "9.99"),
    "PROD-201": (100, "1299.99"),
    "PROD-202": (100, "299.99"),
    "SKU-1000": (100, "1000.00"),
    "SKU-1001": (100, "1000.01"),
}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("shop"))
    try:
        running.start()
        yield running
    finally:
        running.process.terminate()
        running.process.wait()


def run(up: Up, *arguments: str) -> tuple[int, str]:
    running = up.manage(*arguments)
    said, _ = running.communicate(timeout=60)
    return running.returncode, said


def asked(up: Up, command: str) -> Any:
    """Send a `curl` request of the samples to the port of this site."""
    here = command.replace("\\\n", "").replace(":8000", f":{up.ports[0]}")
    program, *arguments = shlex.split(here)
    assert program == "curl"
    return curl(arguments).raise_for_status().json()


def get(up: Up, path: str) -> Any:
    return up.http.get(path).raise_for_status().json()


def ended(up: Up, workflow_id: str) -> dict[str, Any]:
    """Return the status of the order once no step follows."""

    def status() -> dict[str, Any] | None:
        found: dict[str, Any] = get(up, f"/orders/{workflow_id}/status")
        return found if found["current_step"] is None else None

    return eventually(status) or {}


def stock(up: Up) -> dict[str, tuple[int, int]]:
    return {
        item["product_id"]: (item["available"], item["reserved"]) for item in get(up, "/inventory")
    }


def test_first_start_stocks_the_products(up: Up) -> None:
    """O7, O8: the products of the samples, of the examples and at the threshold."""
    found = {
        item["product_id"]: (item["available"], item["unit_price"])
        for item in get(up, "/inventory")
    }
    assert found == STOCKED


def test_small_order_completes_and_the_same_id_is_refused(up: Up) -> None:
    """O8: from another terminal, with the result. The same ID again is an error."""
    code, said = run(up, "startorder", "small", "--wait")
    assert code == 0
    first, *_ = said.splitlines()
    assert first == "Starting order workflow for Alice Smith, order ID: ORD-001, total: $89.95"
    result = said[said.index("Order Result: COMPLETED\n") :]
    for line in (
        "Status: completed",
        "Message: Order processed successfully",
        "  Transaction ID: TXN-[0-9A-F]{12}",
        "  Payment of \\$89.95 processed successfully",
        "  Reservation ID: RES-[0-9A-F]{12}",
        "  Reserved 2 item\\(s\\) successfully",
        "  Tracking Number: TRACK-[0-9A-F]{16}",
        "  Estimated Delivery: [0-9]{4}-[0-9]{2}-[0-9]{2}",
        "  Delivery scheduled to 123 Main St, Springfield, IL 62701",
    ):
        assert re.search(f"^{line}$", result, re.M), line
    assert ended(up, "order-workflow-ORD-001")["status"] == "completed"
    assert run(up, "startorder", "small", "--wait") == (
        1,
        "CommandError: There is an order ORD-001 already. Choose another with --id.\n",
    )


def test_large_order_completes_or_is_cancelled_by_the_printed_commands(up: Up) -> None:
    """O4, O8: the commands that `startorder` prints approve and reject."""
    code, said = run(up, "startorder", "large")
    assert code == 0
    assert "Amount: $1899.97\n" in said
    assert said.count("Workflow started and waiting for approval...") == 1
    [approve] = re.findall(r"^  \./manage\.py (decideorder .* approve)$", said, re.M)
    code, said = run(up, *shlex.split(approve), "High-value customer - approved")
    assert code == 0
    assert "✅ ORDER APPROVED\n" in said
    assert said.endswith(
        "\nWorkflow completed with status: completed\nMessage: Order processed successfully\n"
    )

    before = stock(up)
    code, said = run(up, "startorder", "large", "--id", "ORD-003")
    [reject] = re.findall(r"^  \./manage\.py (decideorder .* reject) \"REASON\"$", said, re.M)
    code, said = run(up, *shlex.split(reject), "Insufficient credit check")
    assert code == 0
    assert "❌ ORDER REJECTED\n" in said
    assert said.endswith(
        "Workflow completed with status: cancelled\nMessage: Insufficient credit check\n"
    )
    assert ended(up, "order-workflow-ORD-003")["approval_status"] == "rejected"
    assert stock(up) == before


def test_requests_of_the_samples_get_the_documented_answers(up: Up) -> None:
    """O7: the requests of the samples, word for word except the port."""
    assert asked(up, "curl http://localhost:8000/health") == {"status": "ok"}
    before = stock(up)["SKU-001"]
    started = asked(up, SUBMIT)
    assert re.fullmatch("ord_[0-9a-f]{12}", started["order_id"])
    workflow_id = f"order-{started['order_id']}"
    assert started == {
        "workflow_id": workflow_id,
        "order_id": started["order_id"],
        "status": "started",
    }
    ended(up, workflow_id)
    status = asked(up, STATUS.replace("order-ord_abc123", workflow_id))
    assert (status["status"], status["failure_reason"]) == ("completed", None)

    snapshot = asked(up, SNAPSHOT)
    [order] = [one for one in snapshot["orders"] if one["workflow_id"] == workflow_id]
    assert (order["status"], order["total"]) == ("completed", "49.00")
    assert stock(up)["SKU-001"] == (before[0] - 2, 0)
    charge_id = status["results"]["process_payment"]["charge_id"]
    [charge] = [one for one in snapshot["payments"] if one["charge_id"] == charge_id]
    assert get(up, f"/payments/{charge_id}") == charge
    assert (charge["status"], charge["amount"]) == ("charged", "49.00")
    [sent] = [one for one in snapshot["warehouse"] if one["order_id"] == started["order_id"]]
    assert (sent["status"], sent["product_id"], sent["quantity"]) == ("applied", "SKU-001", 2)
    # The single addresses answer the same.
    assert (snapshot["inventory"], snapshot["warehouse"]) == (
        get(up, "/inventory"),
        get(up, "/warehouse"),
    )
    assert {one["workflow_id"] for one in get(up, "/orders")} >= {
        workflow_id,
        "order-workflow-ORD-001",
    }

    own = SUBMIT.replace('"tok_visa"', '"tok_visa", "workflow_id": "optional-client-provided-id"')
    started = asked(up, own)
    assert started["workflow_id"] == "optional-client-provided-id"
    body = json.loads(shlex.split(own)[-1])
    assert up.http.post("/orders", json=body).status_code == 409
    assert ended(up, "optional-client-provided-id")["status"] == "completed"


def test_order_goes_on_after_ctrl_c_and_after_its_reader_leaves(up: Up) -> None:
    """O8: Ctrl-C and a closed pipe cause no traceback, and the order continues."""
    waiting = up.manage("startorder", "large", "--id", "left", "--wait")
    eventually(lambda: any(one["order_id"] == "left" for one in get(up, "/orders")))
    eventually(lambda: get(up, "/orders/order-workflow-left")["expires_at"])
    waiting.send_signal(signal.SIGINT)
    said, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert said.endswith("\nCommandError: Stopped. The order goes on.\n")
    assert get(up, "/orders/order-workflow-left/status")["status"] == "pending"
    assert run(up, "decideorder", "left", "approve", "--no-wait")[0] == 0
    assert ended(up, "order-workflow-left")["status"] == "completed"

    command = shlex.join([sys.executable, str(MANAGE), "startorder", "small", "--id", "unread"])
    piped = subprocess.run(
        ["sh", "-c", f"{command} --wait | head -n 1"],
        env=up.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert piped.stdout.startswith("Starting order workflow for Alice Smith, order ID: unread")
    assert (piped.stdout.count("\n"), piped.stderr) == (1, "")
    assert ended(up, "order-workflow-unread")["status"] == "completed"


def test_injected_failure_nets_to_zero(up: Up) -> None:
    """O5, O6: with FAIL_AT in the environment of `up`, each order fails and nets to zero."""
    before, charged = stock(up), get(up, "/engine/snapshot")["payments"]
    up.process.terminate()
    up.process.wait(timeout=60)
    up.start(
        FAIL_AT="warehouse",
        ORDERS_APPROVAL_THRESHOLD="2000",
        ORDERS_APPROVAL_SECONDS="40",
        ORDERS_SIGNAL_DECISIONS="0",
        ORDERS_SIGNAL_LIMIT="2500",
    )
    assert stock(up) == before  # a second start stocks nothing
    workflow_id = asked(up, SUBMIT)["workflow_id"]
    code, said = run(up, "startorder", "small", "--id", "ORD-004", "--wait")
    assert code == 1
    assert "Order Result: FAILED\n" in said
    assert "Message: injected failure at warehouse\n" in said

    status = ended(up, workflow_id)
    assert (status["status"], status["failure_reason"]) == (
        "failed",
        "injected failure at warehouse",
    )
    undone = [one["step"] for one in status["events"] if one["status"] == "compensated"]
    assert undone == [
        "revert_warehouse",
        "refund_payment_by_idempotency_key",
        "release_inventory",
    ]
    snapshot = get(up, "/engine/snapshot")
    assert stock(up) == before
    new = [one for one in snapshot["payments"] if one not in charged]
    assert sorted((one["status"], one["amount"]) for one in new) == [
        ("refunded", "49.00"),
        ("refunded", "89.95"),
    ]
    orders = {"ORD-004", status["order_id"]}
    sent = {one["status"] for one in snapshot["warehouse"] if one["order_id"] in orders}
    assert sent == {"reverted"}


def test_settings_of_up_hold_in_another_terminal(up: Up) -> None:
    """O1, O3: the site's threshold and window apply to an order from the command line, and the
    settings for signals are kept too."""
    kept = (up.directory / "settings.env").read_text().splitlines()
    assert {"ORDERS_SIGNAL_DECISIONS='0'", "ORDERS_SIGNAL_LIMIT='2500'"} <= set(kept)
    file = up.directory / "order.json"
    for order_id, quantity in (("at-2000", 2), ("above-2000", 3)):
        lines = [{"product_id": "SKU-1000", "quantity": quantity}]
        wanted = {"order_id": order_id, "lines": lines, "customer_id": "c", "payment_method": "p"}
        file.write_text(json.dumps(wanted))
        code, said = run(up, "startorder", "--file", str(file))
        assert code == 0
        assert ("Workflow will wait up to 40 seconds" in said) == (quantity == 3)
