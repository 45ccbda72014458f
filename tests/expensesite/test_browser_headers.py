"""Headers on every answer, and marks for invisible characters."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client, RequestFactory

from access import groups
from approvals import services as approvals
from expenses.models import Expense
from expensesite import browser_headers
from orders.models import StockItem
from tests import factories

pytestmark = pytest.mark.django_db

REVERSED = "paid \u202eRUE 9"
MARKED = "paid ‹U+202E›RUE 9"


@pytest.fixture
def admin(client: Client) -> Client:
    client.force_login(factories.user(username="root", is_superuser=True))
    return client


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/list", 200),
        ("/status?id=exp-1", 401),
        ("/admin/", 200),
        ("/admin/expenses/expense/", 200),
        ("/admin/login/", 302),
        ("/api/v1/expenses/", 200),
        ("/orders", 200),
        ("/nowhere", 404),
        ("/health", 200),
        ("/metrics", 200),
    ],
)
def test_every_answer_stays_out_of_caches(admin: Client, path: str, status: int) -> None:
    """X8: nobody finds a person's page in a cache or behind the Back button after signing out; no
    page may use a camera or a location."""
    answer = admin.get(path)
    assert answer.status_code == status
    assert "no-store" in answer.headers["Cache-Control"]
    assert "camera=()" in answer.headers["Permissions-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert answer.headers["X-Frame-Options"] == "DENY"


def test_static_files_are_cached(client: Client) -> None:
    """X11: browsers do not ask for them with each page."""
    answer = client.get("/static/expenses/page.css")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "max-age=60, public"


def html(body: str, content_type: str = "text/html; charset=utf-8") -> str:
    middleware = browser_headers.Middleware(lambda request: HttpResponse(body, content_type))
    return middleware(RequestFactory().get("/")).content.decode()


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (f"<p>{REVERSED}</p>", f"<p>{MARKED}</p>"),
        ("a\u200bb<br>c\u2067d", "a‹U+200B›b<br>c‹U+2067›d"),
        (
            "<input value=\"\u202e\" title='>\u202e'>\u202e",
            "<input value=\"\u202e\" title='>\u202e'>‹U+202E›",
        ),
        (
            '<a x-on:click="a > b" id="\u202e">\u202e</a>',
            '<a x-on:click="a > b" id="\u202e">‹U+202E›</a>',
        ),
        ("<textarea rows=3>\u202e</textarea>\u202e", "<textarea rows=3>\u202e</textarea>‹U+202E›"),
        ("<script>'\u202e'</script>\u202e", "<script>'\u202e'</script>‹U+202E›"),
        ("👩\u200d💻 ❤\ufe0f می\u200cروم", "👩\u200d💻 ❤\ufe0f می\u200cروم"),
        ("3 < 4 \u202e", "3 < 4 ‹U+202E›"),
    ],
    ids=ascii,
)
def test_invisible_characters_are_shown_as_marks(body: str, shown: str) -> None:
    """X8: in text, but not in the values of fields, which the next POST would store. The characters
    that shape an emoji or a Persian word stay."""
    assert html(body) == shown


def test_programs_get_what_is_stored() -> None:
    """E12: JSON and plain text have no marks."""
    for content_type in ("application/json", "text/plain; charset=utf-8"):
        assert html(REVERSED, content_type) == REVERSED


def test_texts_on_the_pages_are_marked(admin: Client) -> None:
    """X8: on the list, on the expense's page and in the audit trail."""
    submitter = factories.user(groups.EMPLOYEE, first_name=REVERSED)
    approver = factories.user(groups.APPROVER)
    expense = factories.expense("exp-1", submitter=submitter)
    Expense.objects.filter(pk=expense.pk).update(merchant=REVERSED, description=REVERSED)
    approvals.decide(
        expense.approval,
        factories.Verdict.REJECTED,
        factories.act(approver, reason=f"because {REVERSED}"),
    )
    for path in (
        "/admin/expenses/expense/",
        f"/admin/expenses/expense/{expense.pk}/change/",
        "/admin/approvals/auditentry/",
    ):
        page = admin.get(path).content.decode()
        assert MARKED in page
        assert "\u202e" not in page
    told = admin.get(f"/api/v1/expenses/{expense.pk}/", headers=factories.bearer(submitter))
    assert json.loads(told.content)["decision"]["reason"] == f"because {REVERSED}"


def test_a_form_saved_again_stores_no_mark(admin: Client) -> None:
    """X8: the mark is only on the page."""
    factories.stock()
    StockItem.objects.filter(product_id="SKU-001").update(name=REVERSED)
    item = StockItem.objects.get(product_id="SKU-001")
    path = f"/admin/orders/stockitem/{item.pk}/change/"
    form = admin.get(path).context["adminform"].form
    page = admin.get(path).content.decode()
    assert f'value="{REVERSED}"' in page
    posted: dict[str, Any] = {
        name: "" if (value := form[name].value()) is None else value for name in form.fields
    }
    assert admin.post(path, posted).status_code == 302
    assert StockItem.objects.get(pk=item.pk).name == REVERSED
    assert MARKED in admin.get("/admin/orders/stockitem/").content.decode()


def test_pages_without_people_hold_no_invisible_character(admin: Client) -> None:
    """X8: the templates have none of their own, so a mark always shows what somebody wrote."""
    User.objects.all()
    factories.expense("exp-1")
    for path in ("/list", "/admin/", "/admin/expenses/expense/", "/admin/auth/user/add/"):
        assert "‹U+" not in admin.get(path).content.decode()
