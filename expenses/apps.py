from django.apps import AppConfig


class ExpensesConfig(AppConfig):
    name = "expenses"
    verbose_name = "Expenses"

    def ready(self) -> None:
        from access import groups

        groups.grant_after_migrate(
            self,
            {
                groups.EMPLOYEE: ("submit_expense",),
                groups.APPROVER: ("view_expense", "decide_expense"),
                groups.FINANCE: ("view_expense", "view_ledgerentry"),
                groups.AUDITOR: ("view_expense", "view_ledgerentry"),
                groups.OPERATOR: ("view_expense",),
                groups.WORKER: ("carry_expense",),
            },
        )
