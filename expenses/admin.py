"""Expenses and the ledger in the admin."""

from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.formats import localize
from unfold.decorators import display
from unfold.widgets import UnfoldAdminDecimalFieldWidget, UnfoldAdminTextInputWidget

from access.actors import Actor
from access.bounded_admin import ReadOnlyAdmin
from approvals import services as approvals
from approvals.admin import DecidableAdmin
from approvals.models import Approval, Route, Verdict
from expenses import services
from expenses.models import Expense, LedgerEntry, State


def _field(name: str, widget: type[forms.Widget], **options: Any) -> forms.Field:
    field: Any = Approval._meta.get_field(name)
    made: forms.Field = field.formfield(widget=widget, validators=field.validators, **options)
    return made


class SubmitForm(forms.ModelForm):  # type: ignore[type-arg]
    """The form of a submission, with the fields that its approval keeps. It requires the amount,
    which only the plain protocol omits."""

    amount = _field("amount", UnfoldAdminDecimalFieldWidget, required=True)
    currency = _field("currency", UnfoldAdminTextInputWidget, required=True)
    category = _field("category", UnfoldAdminTextInputWidget)


class SeenCurrencies(admin.AllValuesFieldListFilter):
    """The currencies of the expenses that the person sees. Django offers those of all approvals."""

    def __init__(
        self, field: Any, request: HttpRequest, params: Any, model: Any, page: Any, field_path: str
    ) -> None:
        super().__init__(field, request, params, model, page, field_path)
        seen = page.get_queryset(request).order_by(field_path)
        self.lookup_choices = seen.values_list(field_path, flat=True).distinct()


@admin.register(Expense)
class ExpenseAdmin(DecidableAdmin):
    kind = services.KIND
    unsent = "No workflow waits yet; it gets the decision when it asks."
    form = SubmitForm
    list_display: ClassVar = [
        "expense_id",
        "shown_state",
        "age",
        "money",
        "merchant",
        "submitted_by",
        "delivery",
    ]
    list_filter: ClassVar = ["state", ("approval__currency", SeenCurrencies)]
    # Ids are compared by code point, where `icontains` misses letters beyond ASCII; `contains`
    # finds them.
    search_fields: ClassVar = ["expense_id", "expense_id__contains", "merchant", "description"]
    actions: ClassVar = [*DecidableAdmin.actions, "withdraw"]
    fieldsets: ClassVar = [
        (None, {"fields": ["expense_id", "state", "money", "submitted_by", "created_at"]}),
        ("Details", {"fields": ["merchant", "category", "description", "incurred_on"]}),
        ("Decision and payment", {"fields": ["decision", "decided_at", "reason", "paid_at"]}),
        ("Workflow", {"fields": ["workflow_id", "delivery", "registered_at"]}),
    ]
    add_fields: ClassVar = ["expense_id", *services.ExpenseDetails.__dataclass_fields__]

    # Permissions. The rule for a decision is in approvals.services.

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Expense | None = None) -> bool:
        permissions = ("expenses.view_expense", services.DECIDE, services.SUBMIT)
        return any(map(request.user.has_perm, permissions))

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return request.user.has_perm(services.SUBMIT)

    def has_withdraw_permission(self, request: HttpRequest) -> bool:
        own = Expense.objects.filter(approval__submitter_id=request.user.pk)
        return own.filter(state=State.CREATED).exists()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Expense]:
        expenses = services.visible_to(Actor.of(request.user))  # type: ignore[arg-type]
        return self.with_delivery(expenses.select_related("callback"))

    # Columns and fields

    @display(
        description="state",
        ordering="state",
        label={
            State.CREATED: "warning",
            State.APPROVED: "info",
            State.COMPLETED: "success",
            State.REJECTED: "danger",
        },
    )
    def shown_state(self, expense: Expense) -> tuple[str, str]:
        return expense.state, State(expense.state).label

    def category(self, expense: Expense) -> str:
        return str(expense.approval.category)

    def paid_at(self, expense: Expense) -> Any:
        return localize(expense.payment.paid_at) if hasattr(expense, "payment") else None

    def registered_at(self, expense: Expense) -> Any:
        return localize(expense.callback.registered_at) if hasattr(expense, "callback") else None

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return (
            [] if obj is None else [name for _, part in self.fieldsets for name in part["fields"]]
        )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fieldsets if obj else [(None, {"fields": self.add_fields})]

    def buttons(self, request: HttpRequest, row: Expense) -> dict[str, str]:
        actor = Actor.of(request.user)  # type: ignore[arg-type]
        return {"withdraw": "Withdraw"} if approvals.may_withdraw(actor, row.approval) else {}

    # Actions

    @admin.action(description="Withdraw my own", permissions=["withdraw"])
    def withdraw(self, request: HttpRequest, queryset: QuerySet[Expense]) -> HttpResponse | None:
        return self.decide_each(request, queryset, Verdict.WITHDRAWN)

    def save_model(self, request: HttpRequest, obj: Expense, form: Any, change: bool) -> None:
        details = {
            name: form.cleaned_data[name] for name in services.ExpenseDetails.__dataclass_fields__
        }
        submitted = services.submit_expense(
            obj.expense_id,
            details=services.ExpenseDetails(**details),
            act=approvals.Act(
                Actor.of(request.user),  # type: ignore[arg-type]
                Route.ADMIN,
                timezone.now(),
            ),
        )
        obj.pk = submitted.pk

    def add_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            response: HttpResponse = super().add_view(request, *args, **kwargs)
        except (services.ExpenseExists, approvals.TooManySubmissions) as error:
            # Another submission took the id after the form's check, or the limit is reached.
            messages.error(request, str(error))
            response = HttpResponseRedirect(request.get_full_path())
        return response


@admin.register(LedgerEntry)
class LedgerEntryAdmin(ReadOnlyAdmin):
    list_display: ClassVar = ["expense", "shown_money", "paid_at"]
    list_select_related: ClassVar = ["expense"]
    search_fields: ClassVar = ["expense__expense_id"]
    ordering: ClassVar = ["-paid_at"]
    show_full_result_count = False

    @display(description="amount", ordering="amount")
    def shown_money(self, entry: LedgerEntry) -> str:
        return entry.money()
