from django.apps import AppConfig


class ExpensesConfig(AppConfig):
    name = "expenses"
    verbose_name = "Expenses"

    def ready(self) -> None:
        from expenses import models, reconciliation, services
        from outbox import subjects
        from outbox.reconciliation import COMPARISONS

        COMPARISONS["expenses"] = reconciliation.COMPARISON
        for prefix, words in services.MESSAGES.items():
            subjects.register(prefix, words=words, model=models.Expense, own_id="expense_id")
