"""Orders at the approver's desk, the stock, and the records of the integrations."""

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.formats import localize
from django.utils.html import format_html_join
from django.utils.safestring import mark_safe
from django.utils.timesince import timeuntil
from unfold.decorators import display
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminTextInputWidget

from access.actors import Actor
from access.bounded_admin import BoundedAdmin, ReadOnlyAdmin, link
from access.text import TEXT_LENGTH
from approvals import money
from approvals import services as approvals
from approvals.admin import DecidableAdmin, TrailRow
from approvals.models import Route
from approvals.services import Act
from orders import services
from orders.models import Charge, Order, OrderStep, State, StockItem, WarehouseRecord

# Rows of each table on the snapshot page.
SHOWN: Final = 100
_LABELS = {
    State.PENDING: "warning",
    State.RUNNING: "info",
    State.COMPENSATING: "warning",
    State.COMPLETED: "success",
    State.CANCELLED: "danger",
    State.FAILED: "danger",
}


@admin.register(Order)
class OrderAdmin(DecidableAdmin):
    kind = services.KIND
    unsent = "The relay notifies or starts the workflow."
    list_display: ClassVar = [
        "order_id",
        "shown_state",
        "age",
        "money",
        "customer",
        "submitter",
        "time_left",
        "delivery",
    ]
    list_filter: ClassVar = ["state", ("approval", admin.EmptyFieldListFilter)]
    list_before_template = "admin/orders/order/links.html"
    # Ids are compared by code point, where `icontains` misses letters beyond ASCII; `contains`
    # finds them.
    search_fields: ClassVar = [
        "order_id",
        "order_id__contains",
        "workflow_id",
        "customer_id",
        "customer_name",
    ]
    actions: ClassVar = [*DecidableAdmin.actions, "cancel", "retry"]
    fieldsets: ClassVar = [
        (None, {"fields": ["order_id", "state", "ordered", "money", "submitted_by", "created_at"]}),
        ("Customer", {"fields": [*services.CUSTOMER_FIELDS]}),
        (
            "Decision and end",
            {"fields": ["decision", "reason", "time_left", "failure_reason", "ended_at"]},
        ),
        ("Workflow", {"fields": ["workflow_id", "attempt", "delivery"]}),
    ]
    readonly_fields: ClassVar = [name for _, part in fieldsets for name in part["fields"]]

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Order | None = None) -> bool:
        permissions = ("orders.view_order", services.DECIDE, services.SUBMIT)
        return any(map(request.user.has_perm, permissions))

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(services.OPERATE)

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        # For the action on the list. The service checks that a submitter cancels only their own.
        return self.has_operate_permission(request) or request.user.has_perm(services.SUBMIT)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Order]:
        return self.with_delivery(
            services.visible_to(Actor.of(request.user))  # type: ignore[arg-type]
        )

    @display(description="state", ordering="state", label=_LABELS)
    def shown_state(self, order: Order) -> tuple[str, str]:
        return order.state, State(order.state).label

    def ordered(self, order: Order) -> str:
        return format_html_join(
            mark_safe("<br>"),
            "{} of {} ({}) at {}",
            [
                (line.quantity, line.name, line.product_id, line.unit_price)
                for line in order.lines.all()
            ],
        )

    # Orders without an approval have a submitter and a total, too.

    @display(description="submitter")
    def submitted_by(self, order: Order) -> str | None:
        return order.submitter.get_username() if order.submitter else None

    @display(description="total", ordering="total")
    def money(self, order: Order) -> str:
        return order.money()

    @display(description="customer", ordering="customer_name")
    def customer(self, order: Order) -> str:
        return order.customer_name or order.customer_id

    @display(description="time left")
    def time_left(self, order: Order) -> str | None:
        """Return the time until the approval times out, once the workflow waits."""
        if order.state != State.PENDING or order.expires_at is None:
            return None
        return timeuntil(order.expires_at) if order.expires_at > timezone.now() else "none"

    def buttons(self, request: HttpRequest, row: Order) -> dict[str, str]:
        offered = {}
        if services.may_cancel(row, Actor.of(request.user)):  # type: ignore[arg-type]
            offered["cancel"] = "Cancel the order"
        if row.state == State.FAILED and self.has_operate_permission(request):
            offered["retry"] = "Retry"
        return offered

    def trail(self, row: Order) -> list[TrailRow]:
        """Return the audit trail with each step and each undo (requirements O5, X5)."""
        steps = [
            TrailRow(step.at, _step(step), "workflow", "workflow", step.message)
            for step in row.steps.all()
        ]
        return sorted([*super().trail(row), *steps], key=lambda entry: entry.at)

    @admin.action(description="Cancel", permissions=["cancel"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Order]) -> HttpResponse | None:
        return self.for_each(request, queryset, services.cancel_order, done="Cancelled")

    @admin.action(description="Retry", permissions=["operate"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Order]) -> HttpResponse | None:
        return self.for_each(request, queryset, services.retry_order, done="Retried")

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        shown = request.user.has_perms(services.SNAPSHOT_PERMISSIONS)
        context = {**(extra_context or {}), "may_see_snapshot": shown}
        response: HttpResponse = super().changelist_view(request, context)
        return response

    def get_urls(self) -> list[URLPattern]:
        snapshot = self.admin_site.admin_view(self.snapshot_view)
        return [path("snapshot/", snapshot, name="orders_order_snapshot"), *super().get_urls()]

    def snapshot_view(self, request: HttpRequest) -> HttpResponse:
        """Show orders, stock, payments and warehouse, read one after another."""
        if not request.user.has_perms(services.SNAPSHOT_PERMISSIONS):
            raise PermissionDenied
        found = services.snapshot()
        inventory = ("product_id", "name", "unit_price", "available", "reserved")
        payments = ("charge_id", "amount", "status", "payment_method")
        warehouse = ("order_id", "product_id", "quantity", "status")
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Snapshot",
            "states": _states(),
            "tables": [
                ("Inventory", _table(found.inventory, inventory)),
                ("Orders, the newest", _orders(found.orders[:SHOWN])),
                ("Payments, the newest", _table(found.payments[:SHOWN], payments)),
                ("Warehouse, the newest", _table(found.warehouse[:SHOWN], warehouse)),
            ],
        }
        return TemplateResponse(request, "admin/orders/order/snapshot.html", context)


class StockItemForm(forms.ModelForm):  # type: ignore[type-arg]
    """Adds or takes away pieces; never sets their number, which orders change at any moment."""

    pieces = forms.IntegerField(
        initial=0,
        min_value=-1_000_000,
        max_value=1_000_000,
        label="Pieces to add",
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="Negative to take some away.",
    )
    reason = forms.CharField(
        required=False,
        max_length=TEXT_LENGTH,
        label="Reason for the price",
        widget=UnfoldAdminTextInputWidget,
        help_text="Why the unit price or the currency changes; the audit trail keeps it.",
    )

    def changes_price(self) -> bool:
        return not {"unit_price", "currency"}.isdisjoint(self.changed_data)

    def clean(self) -> dict[str, Any] | None:
        cleaned: dict[str, Any] | None = super().clean()
        # A new product has no earlier price.
        if self.instance.pk and self.changes_price() and not self.cleaned_data.get("reason"):
            self.add_error("reason", services.PRICE_NEEDS_REASON)
        return cleaned

    def clean_pieces(self) -> int:
        pieces: int = self.cleaned_data["pieces"]
        if self.instance.available + pieces < 0:
            raise forms.ValidationError(
                f"Only {self.instance.available} pieces are available to take away."
            )
        return pieces


@admin.register(StockItem)
class StockItemAdmin(BoundedAdmin):
    form = StockItemForm
    list_display: ClassVar = ["product_id", "name", "price", "available", "reserved"]
    search_fields: ClassVar = ["product_id", "name"]
    ordering: ClassVar = ["product_id"]
    fields: ClassVar = ["product_id", "name", "unit_price", "currency", "pieces"]
    change_fields: ClassVar = [*fields[:-1], "reason", "available", "reserved", "pieces"]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # orders refer to the product

    def get_fields(self, request: HttpRequest, obj: StockItem | None = None) -> list[str]:
        return self.change_fields if obj else self.fields

    def get_readonly_fields(self, request: HttpRequest, obj: StockItem | None = None) -> list[str]:
        return ["product_id", "available", "reserved"] if obj else []

    @display(description="unit price", ordering="unit_price")
    def price(self, item: StockItem) -> str:
        return money.text(item.unit_price, item.currency)

    def save_model(self, request: HttpRequest, obj: StockItem, form: Any, change: bool) -> None:
        act = Act(
            Actor.of(request.user),  # type: ignore[arg-type]
            Route.ADMIN,
            timezone.now(),
            form.cleaned_data.get("reason", ""),
        )
        pieces = form.cleaned_data["pieces"]
        if not change:
            services.add_product(obj, act, pieces=pieces)
            return
        wanted = {name: getattr(obj, name) for name in ("name", "unit_price", "currency")}
        # The service compares the stored row with the row that the form has read.
        for name in wanted:
            setattr(obj, name, form.initial[name])
        services.change_product(obj, act, **wanted, pieces=pieces)

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            response: HttpResponse = super().changeform_view(request, *args, **kwargs)
        except approvals.WrongState as error:
            # Django has rolled its transaction back. The page shows the present values.
            messages.error(request, f"{error} Nothing was saved.")
            return HttpResponseRedirect(request.get_full_path())
        return response


@admin.register(Charge)
class ChargeAdmin(ReadOnlyAdmin):
    list_display: ClassVar = ["charge_id", "amount", "currency", "state", "payment_method", "at"]
    list_filter: ClassVar = ["state"]
    search_fields: ClassVar = ["charge_id", "key"]


@admin.register(WarehouseRecord)
class WarehouseRecordAdmin(ReadOnlyAdmin):
    list_display: ClassVar = ["order_id", "state", "shipment", "at"]
    list_filter: ClassVar = ["state"]
    search_fields: ClassVar = ["order_id", "shipment__tracking_number"]


def _step(step: OrderStep) -> str:
    name = step.name.replace("_", " ")
    return f"{name} {step.get_status_display()} (attempt {step.attempt})"


def _states() -> list[tuple[str, int]]:
    """Return the number of orders in each state."""
    found = dict(Order.objects.order_by().values_list("state").annotate(Count("pk")))
    return [(state.label, found.get(state, 0)) for state in State]


def _table(rows: list[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    return {
        "headers": [name.replace("_id", "").replace("_", " ") for name in names],
        "rows": [[row[name] for name in names] for row in rows],
    }


def _orders(orders: list[Order]) -> dict[str, Any]:
    return {
        "headers": ["order", "state", "total", "submitted", "why it ended"],
        "rows": [
            [
                link(reverse("admin:orders_order_change", args=[order.pk]), order),
                order.get_state_display(),
                order.money(),
                localize(order.created_at),
                order.failure_reason,
            ]
            for order in orders
        ],
    }
