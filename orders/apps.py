from django.apps import AppConfig


class OrdersConfig(AppConfig):
    name = "orders"
    verbose_name = "Orders"

    def ready(self) -> None:
        from approvals import kinds
        from orders import checks, reconciliation, services  # noqa: F401
        from outbox.reconciliation import COMPARISONS

        kinds.register(services.KIND)
        COMPARISONS["orders"] = reconciliation.COMPARISON
