from django.apps import AppConfig
from django.contrib.admin.utils import quote
from django.urls import reverse


class OrdersConfig(AppConfig):
    name = "orders"
    verbose_name = "Orders"

    def ready(self) -> None:
        from orders import checks, reconciliation, services  # noqa: F401
        from outbox import subjects
        from outbox.reconciliation import COMPARISONS

        COMPARISONS["orders"] = reconciliation.COMPARISON
        for key, words in services.MESSAGES:
            subjects.register(key(""), words=words, url=_page_of, permission="orders.view_order")


def _page_of(order_id: str) -> str:
    """The admin's page of an order, by its own id."""
    return reverse(
        "admin:orders_order_change", args=[quote(order_id)], query={"_to_field": "order_id"}
    )
