"""The pages in a real browser (requirements E2, X3, X5, X6)."""

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from playwright.sync_api import Browser, Page, expect, sync_playwright

from access import groups
from approvals import services as approvals
from approvals.models import Approval, Verdict
from expenses.models import Expense, State
from orders import models as orders
from outbox.models import Message
from temporal.outcomes import Outcome
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        missing = "no Chromium (Debian: apt-get install chromium): the browser tests did not run"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    # Playwright's loop runs in this thread, where Django would refuse the database.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield chromium
        chromium.close()
    del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture(params=["light", "dark"])
def page(request: Any, browser: Browser, live_server: Any) -> Iterator[Page]:
    """A page of a signed-in approver. An error in the browser's console fails the test."""
    approver = factories.user(groups.APPROVER, username="ada", password="pass-of-ada")
    assert approver.check_password("pass-of-ada")
    context = browser.new_context(color_scheme=request.param, base_url=live_server.url)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text)
            if message.type == "error" and "400 (Bad Request)" not in message.text
            else None
        ),
    )
    page.goto("/admin/login/")
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill("pass-of-ada")
    page.get_by_role("button", name="Log in").click()
    yield page
    context.close()
    assert complaints == []


def state(expense_id: str) -> str:
    return Expense.objects.get(expense_id=expense_id).state


def test_open_list_follows_changes_and_decides(page: Page) -> None:
    """E2, X3: rows change on the open page without a reload. A click approves. A rejection first
    asks for a reason."""
    for expense_id in ("lunch", "taxi", "train"):
        factories.expense(expense_id)
    page.goto("/list")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(3)
    expect(page.get_by_role("button", name="APPROVE lunch")).to_have_css(
        "background-color", "rgb(76, 175, 80)"
    )
    expect(page.get_by_role("button", name="REJECT lunch")).to_have_css(
        "background-color", "rgb(244, 67, 54)"
    )

    page.evaluate("window.loadedOnce = true")
    approvals.decide(Approval.objects.get(reference="train"), Verdict.APPROVED, factories.act())
    expect(rows.nth(2)).to_contain_text("APPROVED", timeout=10_000)
    expect(rows.nth(2).get_by_role("button")).to_have_count(0)
    assert page.evaluate("window.loadedOnce") is True

    page.get_by_role("button", name="APPROVE lunch").click()
    expect(rows.nth(0)).to_contain_text("APPROVED")
    page.get_by_role("button", name="REJECT taxi").click()
    expect(page.get_by_role("heading", name="Reject taxi?")).to_be_visible()
    assert state("taxi") == State.CREATED
    page.get_by_role("textbox").fill("no receipt")
    page.get_by_role("button", name="REJECT").click()
    expect(rows.nth(1)).to_contain_text("REJECTED")
    entry = Approval.objects.get(reference="taxi").entry
    assert entry is not None
    assert (entry.actor, entry.route, entry.reason) == ("ada", "page", "no receipt")


def test_link_to_a_decision_asks_and_a_click_decides(page: Page) -> None:
    """E3, X8: a link to a decision shows the expense and asks a signed-in person. No button has
    the focus, so that a key that is held down from another page decides nothing."""
    employee = factories.user(groups.EMPLOYEE, username="emil")
    for expense_id in ("lunch", "taxi"):
        factories.expense(expense_id, submitter=employee)
    page.goto("/action?type=approve&id=lunch")
    expect(page.get_by_role("heading", name="Approve lunch?")).to_be_visible()
    expect(page.get_by_text("12.50 EUR, Café, submitted by emil")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Approve lunch?")).to_be_visible()
    assert state("lunch") == State.CREATED
    page.get_by_role("button", name="APPROVE").press("Enter")
    expect(page.locator("tbody tr").nth(0)).to_contain_text("APPROVED")

    page.goto("/action?type=reject&id=taxi")
    page.get_by_label("Why is it rejected?").fill("no receipt")
    assert state("taxi") == State.CREATED
    page.get_by_role("button", name="REJECT").click()
    expect(page.locator("tbody tr").nth(1)).to_contain_text("REJECTED")


def test_admin_decides_and_shows_the_trail(page: Page) -> None:
    """X3, X5: tick, choose, run. The admin asks for a missing reason. The page of the expense shows
    who decided, when, by which route and why."""
    employee = factories.user(groups.EMPLOYEE, username="emil")
    for expense_id in ("lunch", "taxi"):
        factories.expense(expense_id, submitter=employee)
    page.goto("/admin/expenses/expense/?o=1")
    expect(page.get_by_role("row")).to_have_count(3)
    page.locator("input.action-select").nth(0).check()
    page.locator("select[name=action]").select_option("approve")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_text("Approved: lunch.")).to_be_visible()
    assert state("lunch") == State.APPROVED

    page.get_by_role("link", name="taxi").click()
    page.get_by_role("button", name="Reject").click()
    expect(page.get_by_role("heading", name="Why is it rejected?")).to_be_visible()
    page.get_by_role("textbox").fill("no receipt")
    page.get_by_role("button", name="Reject").click()
    expect(page.get_by_text("Rejected: taxi.")).to_be_visible()
    page.get_by_role("link", name="taxi").click()
    trail = page.get_by_role("table").last
    expect(trail.get_by_role("row")).to_have_count(3)
    expect(trail).to_contain_text(re.compile(r"submitted\s+emil\s+plain protocol"))
    expect(trail).to_contain_text(re.compile(r"rejected\s+ada\s+admin\s+no receipt"))
    expect(page.get_by_role("button", name="Approve")).to_have_count(0)


def test_operator_retries_one_message_and_the_rest_stays(page: Page) -> None:
    """X6: the page says which messages wait and why. A click retries, on the list and on the page
    of a message, and other messages stay unchanged."""
    User.objects.get(username="ada").groups.add(Group.objects.get(name=groups.OPERATOR))
    for expense_id in ("lunch", "taxi", "train"):
        address = factories.address(f"wf-{expense_id}")
        factories.expense(expense_id, State.APPROVED, callback=address)
    Message.objects.exclude(key="expense-decision:lunch").update(
        outcome=Outcome.UNDELIVERABLE, settled_at=factories.NOW
    )
    Message.objects.filter(outcome=None).update(last_error="Temporal does not answer in time.")
    page.goto("/admin/")
    page.get_by_role("link", name="Messages").first.click()
    summary = page.get_by_role("region", name="Summary")
    expect(summary).to_contain_text("Temporal does not answer in time.")
    expect(summary).to_contain_text("2 undeliverable")
    page.get_by_role("link", name="Needs attention").click()
    expect(page.get_by_role("row")).to_have_count(3)
    page.get_by_role("row").filter(has_text="taxi").locator("input.action-select").check()
    page.locator("select[name=action]").select_option("retry")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_text("1 re-queued; the relay tries at once.")).to_be_visible()
    expect(page.get_by_role("row")).to_have_count(2)

    page.get_by_role("row").filter(has_text="train").get_by_role("link", name="decision on").click()
    page.get_by_role("button", name="Retry now").click()
    expect(page.get_by_text("Retried by ada at")).to_be_visible()
    assert set(Message.objects.values_list("outcome", flat=True)) == {None}
    page.get_by_role("link", name="train", exact=True).click()
    expect(page.get_by_role("link", name="Delivery to the workflow")).to_be_visible()


def test_order_is_approved_and_a_failed_order_is_retried(page: Page) -> None:
    """O10, O7, X5: an approver decides an order on its page, which shows the lines, the steps and
    the undoes. The snapshot links to each order. The operator adds pieces to the stock."""
    User.objects.get(username="ada").groups.add(Group.objects.get(name=groups.OPERATOR))
    factories.order("ORD-1", orders.State.PENDING)
    factories.order("ORD-2", orders.State.FAILED)
    page.goto("/admin/orders/order/")
    page.get_by_role("link", name="ORD-1").click()
    expect(page.get_by_text("A cent above the threshold (SKU-1001) at 1000.01")).to_be_visible()
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_text("Approved: ORD-1.")).to_be_visible()

    page.get_by_role("link", name="Snapshot").click()
    expect(page.get_by_role("heading", name="Inventory")).to_be_visible()
    page.get_by_role("link", name="ORD-2").click()
    trail = page.get_by_role("table").last
    expect(trail).to_contain_text("refund payment by idempotency key compensated")
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_text("Retried: ORD-2.")).to_be_visible()
    states = orders.Order.objects.order_by("order_id").values_list("state", "attempt")
    assert list(states) == [("running", 1), ("running", 2)]

    page.get_by_role("link", name="Stock items").click()
    page.get_by_role("link", name="SKU-001").click()
    page.get_by_label("Pieces to add").fill("5")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("was changed successfully")).to_be_visible()
    assert orders.StockItem.objects.get(product_id="SKU-001").available == 30
