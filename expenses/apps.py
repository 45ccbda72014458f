from django.apps import AppConfig
from django.contrib.admin.utils import quote
from django.urls import reverse


class ExpensesConfig(AppConfig):
    name = "expenses"
    verbose_name = "Expenses"

    def ready(self) -> None:
        from expenses import reconciliation, services
        from outbox import subjects
        from outbox.reconciliation import COMPARISONS

        COMPARISONS["expenses"] = reconciliation.COMPARISON
        for prefix, words in services.MESSAGES.items():
            subjects.register(prefix, words=words, url=_page_of, permission="expenses.view_expense")


def _page_of(expense_id: str) -> str:
    """The admin's page of an expense, by its own id."""
    return reverse(
        "admin:expenses_expense_change",
        args=[quote(expense_id)],
        query={"_to_field": "expense_id"},
    )
