"""The routes of orders: at the root, as the sample's clients expect them, and under `/api/v1/`."""

from django.urls import URLPattern, URLResolver, include, re_path

from orders import api

_WORKFLOW = r"(?P<ref>[^/]{1,200})"


def _routes(*, at_root: bool) -> list[URLPattern | URLResolver]:
    return [
        re_path(route, view.as_view(at_root=at_root))
        for route, view in (
            (r"^orders/?$", api.OrdersView),
            (rf"^orders/{_WORKFLOW}/?$", api.OrderView),
            (rf"^orders/{_WORKFLOW}/status/?$", api.StatusView),
            (rf"^orders/{_WORKFLOW}/(?P<verb>approve|reject)/?$", api.DecideView),
            (rf"^orders/{_WORKFLOW}/cancel/?$", api.CancelView),
            (rf"^orders/{_WORKFLOW}/retry/?$", api.RetryView),
            (rf"^orders/{_WORKFLOW}/audit/?$", api.AuditView),
            (r"^inventory/?$", api.InventoryView),
            (r"^payments/(?P<charge_id>[^/]{1,100})/?$", api.ChargeView),
            (r"^warehouse/?$", api.WarehouseView),
            (r"^engine/snapshot/?$", api.SnapshotView),
        )
    ]


urlpatterns = [
    re_path(r"^api/v1/", include(_routes(at_root=False))),
    *_routes(at_root=True),
    # The worker's, where it finds the expense protocol as well.
    re_path(rf"^orders/{_WORKFLOW}/steps/(?P<step>[a-z_]+)/?$", api.StepView.as_view(at_root=True)),
]
