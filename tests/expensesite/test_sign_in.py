"""Signing in leads to pages, and its session stays with this site."""

import pytest
from django.test import Client

from access import groups
from expenses.models import Expense, State
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("leads", "to"),
    [
        ("/action?type=approve&id=exp-1", "/admin/"),
        ("/create?id=new", "/admin/"),
        ("//elsewhere.example/", "/admin/"),
        ("", "/admin/"),
        ("/list?q=exp", "/list?q=exp"),
        ("/admin/expenses/expense/", "/admin/expenses/expense/"),
    ],
)
def test_sign_in_leads_to_a_page(client: Client, leads: str, to: str) -> None:
    """X8: a link to the sign-in with an action as its `next` decides nothing. Over plain HTTP the
    session cookie is not sent with what other sites ask for."""
    factories.expense("exp-1")
    factories.user(groups.APPROVER, username="ada", password="pass-of-ada")
    form = {"username": "ada", "password": "pass-of-ada", "next": leads}
    answer = client.post("/admin/login/", form, follow=True)
    assert answer.redirect_chain == [(to, 302)]
    assert answer.status_code == 200
    assert Expense.objects.get().state == State.CREATED
    assert client.cookies["sessionid"]["samesite"] == "Strict"
