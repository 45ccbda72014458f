"""The approver's side: what waits, its decision, and what became of it."""

import uuid
from typing import Any, ClassVar
from urllib.parse import quote

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import ValidationError
from django.db.models import OuterRef, QuerySet, Subquery, Value
from django.db.models.functions import Concat
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import localize
from django.utils.timesince import timesince
from unfold.decorators import action, display

from access.actors import Actor
from access.admin import ReadOnlyAdmin
from access.text import clean_text
from approvals import services as approvals
from approvals.models import VERDICT_OF_VERB, Route, Verdict
from expenses import services
from expenses.models import Expense, LedgerEntry, State
from outbox import handlers
from outbox import services as outbox
from outbox.models import Message, Outcome

_NOTIFIED = (Outcome.DELIVERED, Outcome.ALREADY_COMPLETED)


class SubmitForm(forms.ModelForm):  # type: ignore[type-arg]
    """A person names an amount; only the plain protocol creates expenses without one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in {"amount", "currency"} & set(self.fields):
            self.fields[name].required = True


@admin.register(Expense)
class ExpenseAdmin(ReadOnlyAdmin):
    form = SubmitForm
    list_display: ClassVar = [
        "expense_id",
        "shown_state",
        "age",
        "money",
        "merchant",
        "submitter",
        "delivery",
    ]
    list_filter: ClassVar = ["state", "currency"]
    list_select_related: ClassVar = ["submitter"]
    # The second finds what folding the case misses where ids are compared by code point.
    search_fields: ClassVar = ["expense_id", "expense_id__contains", "merchant", "description"]
    ordering: ClassVar = ["-created_at"]
    show_full_result_count = False
    list_disable_select_all = True
    actions: ClassVar = ["approve", "reject", "withdraw"]
    fieldsets: ClassVar = [
        (None, {"fields": ["expense_id", "state", "money", "submitter", "created_at"]}),
        ("Details", {"fields": ["merchant", "category", "description", "incurred_on"]}),
        ("Decision and payment", {"fields": ["decision", "decided_at", "reason", "paid_at"]}),
        ("Workflow", {"fields": ["workflow_id", "delivery", "registered_at"]}),
    ]
    add_fields: ClassVar = ["expense_id", *services.Details.__dataclass_fields__]
    change_form_outer_before_template = "admin/expenses/expense/decide.html"
    change_form_outer_after_template = "admin/expenses/expense/trail.html"

    # Who sees and does what; the rule for a decision itself is in approvals.services.

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Expense | None = None) -> bool:
        return request.user.has_perm("expenses.view_expense") or request.user.has_perm(
            services.SUBMIT
        )

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return request.user.has_perm(services.SUBMIT)

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(services.DECIDE)

    def has_submit_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(services.SUBMIT)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Expense]:
        keys = [
            Concat(Value(key("")), OuterRef("expense_id"))
            for key in (services.start_key, services.decision_key)
        ]
        newest = Message.objects.filter(key__in=keys).order_by("-pk")[:1]
        expenses = services.visible_to(request.user).select_related("callback")  # type: ignore[arg-type]
        return expenses.annotate(
            message=Subquery(newest.values("kind")),
            message_id=Subquery(newest.values("pk")),
            outcome=Subquery(newest.values("outcome")),
        )

    # What is shown.

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

    @display(description="age", ordering="created_at")
    def age(self, expense: Expense) -> str:
        return timesince(expense.created_at, depth=1)

    @display(description="amount", ordering="amount")
    def money(self, expense: Expense) -> str:
        return expense.money()

    @display(
        description="workflow",
        label={
            "started": "info",
            "notified": "success",
            "queued": "warning",
            "conflict": "danger",
            "undeliverable": "danger",
        },
    )
    def delivery(self, expense: Any) -> str | None:
        """What became of the newest message to its workflow: its start, or the decision."""
        if not expense.message:
            return None
        if expense.outcome is None:
            return "queued"
        if expense.outcome in _NOTIFIED:
            return "started" if expense.message == handlers.START_WORKFLOW else "notified"
        return "conflict" if expense.outcome == Outcome.CONFLICT else "undeliverable"

    def decided_at(self, expense: Expense) -> Any:
        return expense.decision and localize(expense.decision.at)

    def reason(self, expense: Expense) -> Any:
        return expense.decision and expense.decision.reason

    def paid_at(self, expense: Expense) -> Any:
        return expense.payment and localize(expense.payment.paid_at)

    def registered_at(self, expense: Expense) -> Any:
        return localize(expense.callback.registered_at) if hasattr(expense, "callback") else None

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return (
            [] if obj is None else [name for _, part in self.fieldsets for name in part["fields"]]
        )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fieldsets if obj else [(None, {"fields": self.add_fields})]

    def to_field_allowed(self, request: HttpRequest, to_field: str) -> bool:
        # What knows just the expense's own id links by it.
        allowed: bool = to_field == "expense_id" or super().to_field_allowed(request, to_field)
        return allowed

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        expense = kwargs.get("obj")
        if expense is not None:
            waiting = expense.state == State.CREATED
            context |= {
                "title": "Expense",
                "trail": approvals.trail(services.SUBJECT, expense.expense_id),
                "may_decide": waiting
                and approvals.may_decide(
                    _actor(request), permission=services.DECIDE, submitter_id=expense.submitter_id
                ),
                "may_withdraw": waiting and expense.submitter_id == request.user.pk,
            }
            if expense.message_id and request.user.has_perm("outbox.view_message"):
                context["delivery_url"] = reverse(
                    "admin:outbox_message_change", args=[expense.message_id]
                )
            if settings.TEMPORAL_UI_URL and expense.workflow_id:
                context["run_url"] = (
                    f"{settings.TEMPORAL_UI_URL}/namespaces/{settings.TEMPORAL_NAMESPACE}"
                    f"/workflows/{quote(expense.workflow_id, safe='')}"
                )
        response: HttpResponse = super().render_change_form(request, context, *args, **kwargs)
        return response

    # What is done: each translates, calls one service a row, and reports.

    def save_model(self, request: HttpRequest, obj: Expense, form: Any, change: bool) -> None:
        details = {name: form.cleaned_data[name] for name in services.Details.__dataclass_fields__}
        submitted = services.submit_expense(
            obj.expense_id,
            details=services.Details(**details),
            actor=_actor(request),
            route=Route.ADMIN,
            now=timezone.now(),
        )
        obj.pk = submitted.pk

    @action(description="Approve", permissions=["decide"])
    def approve(self, request: HttpRequest, queryset: QuerySet[Expense]) -> HttpResponse | None:
        return self._decide(request, queryset, Verdict.APPROVED)

    @action(description="Reject", permissions=["decide"])
    def reject(self, request: HttpRequest, queryset: QuerySet[Expense]) -> HttpResponse | None:
        return self._decide(request, queryset, Verdict.REJECTED)

    @action(description="Withdraw my own", permissions=["submit"])
    def withdraw(self, request: HttpRequest, queryset: QuerySet[Expense]) -> HttpResponse | None:
        return self._decide(request, queryset, Verdict.WITHDRAWN)

    def add_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            response: HttpResponse = super().add_view(request, *args, **kwargs)
        except services.AlreadyExists as error:
            # Somebody took the id between the form's check and the insert.
            messages.error(request, str(error))
            response = HttpResponseRedirect(request.get_full_path())
        return response

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        # Django drops an action that it did not offer; here it is refused, and audited (X3).
        verb = request.POST.get("action", "")
        if (
            verb in ("approve", "reject")
            and self.has_view_permission(request)
            and not self.has_decide_permission(request)
        ):
            ticked = filter(_is_uuid, request.POST.getlist(ACTION_CHECKBOX_NAME))
            self._decide(
                request, self.get_queryset(request).filter(pk__in=ticked), VERDICT_OF_VERB[verb]
            )
            return HttpResponseRedirect(request.get_full_path())
        response: HttpResponse = super().changelist_view(request, *args, **kwargs)
        return response

    def _decide(
        self, request: HttpRequest, queryset: QuerySet[Expense], verdict: Verdict
    ) -> HttpResponse | None:
        try:
            reason = clean_text(request.POST.get("reason", ""), field="reason")
        except ValidationError as error:
            messages.error(request, error.messages[0])
            return None
        decided: list[Expense] = []
        notices: list[Message] = []
        for expense in queryset.order_by("created_at"):
            try:
                notice = services.decide_expense(
                    expense,
                    verdict=verdict,
                    actor=_actor(request),
                    route=Route.ADMIN,
                    reason=reason,
                    now=timezone.now(),
                )
            except services.AlreadyDecided as error:
                messages.warning(request, f"Skipped: {error}")
            except approvals.ReasonMissing:
                return self._ask_reason(request, queryset)
            except approvals.Refused as error:
                messages.error(request, f"Skipped: {expense}. {error}")
            else:
                decided.append(expense)
                notices += [notice] if notice else []
        if decided:
            names = ", ".join(map(str, decided[:5]))
            if len(decided) > 5:
                names += f" and {len(decided) - 5} more"
            report = _report(notices)
            messages.success(request, f"{verdict.label.capitalize()}: {names}. {report}")
        return None

    def _ask_reason(self, request: HttpRequest, queryset: QuerySet[Expense]) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Why are they rejected?" if queryset.count() > 1 else "Why is it rejected?",
            "expenses": queryset.order_by("created_at"),
        }
        return TemplateResponse(request, "admin/expenses/expense/reject.html", context)


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


def _report(notices: list[Message]) -> str:
    if not notices:
        return "No workflow waits yet; it is told when it asks."
    outcomes = outbox.wait_for_report(notices)
    if not all(outcome is None or outcome in _NOTIFIED for outcome in outcomes):
        return "Not every workflow could be notified; the Workflow column shows which."
    if None in outcomes:
        return "Queued: Temporal is unreachable, it will be notified."
    return "Workflow notified." if len(notices) == 1 else "Workflows notified."


def _actor(request: HttpRequest) -> Actor:
    return Actor.of(request.user)  # type: ignore[arg-type]


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
