"""The routes of orders: at the root, as the sample's clients expect them, and under `/api/v1/`."""

from django.urls import URLPattern, include, path

from orders import api
from rest.paths import REF, route

_CHARGE = r"(?P<charge_id>[^/]{1,100})"


def _routes(*, at_root: bool) -> list[URLPattern]:
    return [
        route(address, view.as_view(at_root=at_root))
        for address, view in (
            ("orders", api.OrdersView),
            (rf"orders/{REF}", api.OrderView),
            (rf"orders/{REF}/status", api.StatusView),
            (rf"orders/{REF}/(?P<verb>approve|reject)", api.DecideView),
            (rf"orders/{REF}/cancel", api.CancelView),
            (rf"orders/{REF}/retry", api.RetryView),
            (rf"orders/{REF}/audit", api.AuditView),
            ("inventory", api.InventoryView),
            ("warehouse", api.WarehouseView),
            ("engine/snapshot", api.SnapshotView),
        )
    ]


urlpatterns = [
    path(
        "api/v1/",
        include(
            [
                *_routes(at_root=False),
                # Under /api/v1/ the name `payments` is the ledger of expenses.
                route("charges", api.ChargesView.as_view()),
                route(f"charges/{_CHARGE}", api.ChargeView.as_view()),
            ]
        ),
    ),
    *_routes(at_root=True),
    route(f"payments/{_CHARGE}", api.ChargeView.as_view(at_root=True)),
    # The worker's, where it finds the expense protocol as well.
    route(rf"orders/{REF}/steps/(?P<step>[a-z_]+)", api.StepView.as_view(at_root=True)),
]
