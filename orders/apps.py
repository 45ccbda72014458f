from django.apps import AppConfig
from django.contrib.admin.utils import quote
from django.urls import reverse


class OrdersConfig(AppConfig):
    name = "orders"
    verbose_name = "Orders"

    def ready(self) -> None:
        from access import groups
        from orders import checks, reconciliation, services  # noqa: F401
        from outbox import subjects
        from outbox.reconciliation import COMPARISONS

        COMPARISONS["orders"] = reconciliation.COMPARISON
        seen = ("view_order", "view_stockitem", "view_charge", "view_warehouserecord")
        groups.grant_after_migrate(
            self,
            {
                groups.EMPLOYEE: ("submit_order",),
                groups.APPROVER: ("view_order", "decide_order"),
                groups.FINANCE: seen,
                groups.AUDITOR: seen,
                groups.OPERATOR: (*seen, "operate_order", "add_stockitem", "change_stockitem"),
                groups.WORKER: ("submit_order", "carry_order"),
            },
        )
        for key, words in services.MESSAGES:
            subjects.register(key(""), words=words, url=_page_of, permission="orders.view_order")


def _page_of(order_id: str) -> str:
    """The admin's page of an order, by its own id."""
    return reverse(
        "admin:orders_order_change", args=[quote(order_id)], query={"_to_field": "order_id"}
    )
