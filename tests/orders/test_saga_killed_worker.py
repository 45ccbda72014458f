"""A worker that is killed in any step: another one ends each order as if nothing had happened."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from orders import fulfilment
from orders.models import Order
from tests.orders.conftest import Shop
from tests.worker.sites import eventually
from worker import contracts

# How an order comes to the step, and how it ends.
SMALL: tuple[dict[str, str], str] = ({"customer_email": "alice@example.com"}, "completed")
LARGE = ({"product_id": "SKU-1001"}, "completed")
FAILING = ({"fail_at": "warehouse"}, "failed")
STEPS = {
    contracts.AWAIT_APPROVAL: LARGE,
    contracts.SETTLE_APPROVAL: LARGE,
    contracts.CHECK_INVENTORY: SMALL,
    contracts.RESERVE_INVENTORY: SMALL,
    contracts.PROCESS_PAYMENT: SMALL,
    contracts.UPDATE_WAREHOUSE: SMALL,
    contracts.COMPLETE_ORDER: SMALL,
    contracts.SEND_CONFIRMATION: SMALL,
    contracts.BEGIN_COMPENSATION: FAILING,
    contracts.REVERT_WAREHOUSE: FAILING,
    contracts.REFUND_PAYMENT: FAILING,
    contracts.RELEASE_INVENTORY: FAILING,
    contracts.CLOSE_ORDER: FAILING,
}


class Standstill:
    """The site stands still in one step of each order, before or after it carried it out, until
    the worker is killed; what it stood in then goes on at the very end."""

    def __init__(self) -> None:
        self.steps: dict[tuple[str, str], str] = {}
        self.reached: set[tuple[str, str]] = set()
        self.killed = threading.Event()
        self.released = threading.Event()
        self.under_way = 0
        self._lock = threading.Lock()
        self._carry_out = fulfilment.carry_out

    def __call__(self, order: Order, step: str, *asked: Any) -> Any:
        here = (str(order.pk), step)
        when = "" if self.killed.is_set() else self.steps.get(here, "")
        if not when:
            return self._carry_out(order, step, *asked)
        with self._lock:
            self.under_way += 1
        try:
            if when == "before":
                self._stand(here)
            answer = self._carry_out(order, step, *asked)
            if when == "after":
                self._stand(here)
            return answer
        finally:
            with self._lock:
                self.under_way -= 1

    def _stand(self, here: tuple[str, str]) -> None:
        # Meanwhile its connection serves others.
        connections.close_all()
        self.reached.add(here)
        assert self.released.wait(100)


@contextlib.contextmanager
def worker_process(shop: Shop, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`manage.py runworker`, with shorter times; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.launch", "runworker"],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "EXPENSES_SITE_URL": shop.url,
            "FAULTS_DIR": str(folder),
        },
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


async def test_worker_killed_in_a_step_leaves_one_effect(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O2, O5, X1, X2: killed with kill -9 in every step and every undo, before the site has carried
    it out and after: nothing is lost, and nothing is done twice."""
    standstill = Standstill()
    monkeypatch.setattr(fulfilment, "carry_out", standstill)
    ends = {}
    for when in ("before", "after"):
        for step, (asked, end) in STEPS.items():
            workflow_id = await shop.order(**asked)
            order = await Order.objects.aget(workflow_id=workflow_id)
            standstill.steps[str(order.pk), step] = when
            ends[workflow_id] = (step, end)
    large = [one for one, (step, _) in ends.items() if STEPS[step] is LARGE]
    async with shop.relayed():
        with worker_process(shop, tmp_path):
            for workflow_id in large:
                await shop.started(workflow_id)
                await shop.workflow(workflow_id).signal(contracts.APPROVE_ORDER, "good customer")
            await eventually(lambda: standstill.reached == set(standstill.steps))
            standstill.killed.set()
        with worker_process(shop, tmp_path):
            for workflow_id, (_, end) in ends.items():
                assert (await shop.ended(workflow_id))["status"] == end
            standstill.released.set()
            await eventually(lambda: not standstill.under_way)
            await shop.at_rest()
