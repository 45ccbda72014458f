from django.apps import AppConfig


class OrdersConfig(AppConfig):
    name = "orders"
    verbose_name = "Orders"

    def ready(self) -> None:
        from orders import checks, models, reconciliation, services  # noqa: F401
        from outbox import subjects
        from outbox.reconciliation import COMPARISONS

        COMPARISONS["orders"] = reconciliation.COMPARISON
        for prefix, words in services.MESSAGES.items():
            subjects.register(prefix, words=words, model=models.Order, own_id="order_id")
