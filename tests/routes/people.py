"""The people who send requests, and the records, which belong to somebody else."""

from dataclasses import dataclass
from typing import Any, Final

from django.contrib.auth.models import Group, User
from django.test import Client

from access import groups
from access.models import Token
from approvals.models import AuditEntry
from expenses.models import Expense
from expenses.models import State as ExpenseState
from orders.models import Charge, Order, StockItem, WarehouseRecord
from orders.models import State as OrderState
from outbox.models import Message
from tests import factories

ANONYMOUS: Final = "anonymous"
NOBODY: Final = "in no group"
ROOT: Final = "superuser"
# A route of the admin that is a regular expression: it matches addresses with dot segments.
DOTS: Final = r"admin/(?:[^/]*/)*\.{1,2}(?:/|$)"
ROLES: Final = (ANONYMOUS, NOBODY, *groups.NAMES, ROOT)


@dataclass(frozen=True)
class Records:
    """One record of each kind. None belongs to the person who sends the request."""

    expense: Expense
    approved: Expense
    paid: Expense
    order: Order
    message: Message

    def _ref(self, route: str) -> Any:
        if "approvals/" in route:
            return self.expense.approval_id
        return "theirs" if "expenses/" in route else self.order.pk

    def path(self, route: str) -> str:
        """Return an address of `route` that leads to these records."""
        ids = {
            "admin/auth/user/": User.objects.get(username="owner").pk,
            "admin/auth/group/": Group.objects.earliest("pk").pk,
            "admin/access/token/": Token.objects.get(user__username="owner").pk,
            "admin/outbox/message/": self.message.pk,
            "admin/approvals/approval/": self.expense.approval_id,
            "admin/approvals/auditentry/": AuditEntry.objects.earliest("pk").pk,
            "admin/expenses/expense/": self.expense.pk,
            "admin/expenses/ledgerentry/": self.paid.payment.pk,
            "admin/orders/order/": self.order.pk,
            "admin/orders/stockitem/": StockItem.objects.get(product_id="SKU-001").pk,
            "admin/orders/charge/": Charge.objects.get().pk,
            "admin/orders/warehouserecord/": WarehouseRecord.objects.get().pk,
        }
        row = next((pk for place, pk in ids.items() if route.startswith(place)), 1)
        values = {
            "<path:object_id>": row,
            "<id>": row,
            "<ref>": self._ref(route),
            "<verb>": "approve",
            "<step>": "check_inventory",
            "<charge_id>": Charge.objects.get().charge_id,
            "<job_id>": "expense_theirs",
            "<app_label>": "expenses",
            "<path:content_type_id>": 1,
            "<url>": "nonsense",
            DOTS: "admin/%2e%2e/action",
        }
        for name, value in values.items():
            route = route.replace(name, str(value))
        return f"/{route}"


def records() -> Records:
    owner = factories.user(groups.EMPLOYEE, username="owner")
    factories.token(owner)
    expense = factories.expense("theirs", submitter=owner)
    approved = factories.expense("approved", ExpenseState.APPROVED, submitter=owner)
    paid = factories.expense("paid", ExpenseState.COMPLETED, submitter=owner)
    factories.order("done", OrderState.COMPLETED, submitter=owner)
    order = factories.order("theirs", OrderState.PENDING, submitter=owner)
    return Records(expense, approved, paid, order, Message.objects.get(key="expense-start:theirs"))


def person(role: str) -> User | None:
    if role == ANONYMOUS:
        return None
    if role == ROOT:
        return factories.user(is_superuser=True)
    return factories.user(*([] if role == NOBODY else [role]))


def browser(user: User | None) -> Client:
    client = Client()
    if user:
        client.force_login(user)
    return client


def program(user: User | None) -> Client:
    return Client(headers=factories.bearer(user)) if user else Client()
