from django.apps import AppConfig


class ExpensesConfig(AppConfig):
    name = "expenses"
    verbose_name = "Expenses"

    def ready(self) -> None:
        from approvals import kinds
        from expenses import reconciliation, services
        from outbox.reconciliation import COMPARISONS

        kinds.register(services.KIND)
        COMPARISONS["expenses"] = reconciliation.COMPARISON
