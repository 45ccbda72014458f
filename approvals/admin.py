"""The admin where people decide requests of every kind, and auditors read the audit trail."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import F, OuterRef, QuerySet, Subquery, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Concat
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import localize
from django.utils.text import capfirst
from django.utils.timesince import timesince
from unfold.decorators import display

from access.actors import Actor
from access.bounded_admin import ReadOnlyAdmin, link
from access.text import clean_text
from approvals import services
from approvals.kinds import KINDS, Kind
from approvals.models import Approval, AuditEntry, Route, Verdict
from outbox import handlers
from outbox import services as outbox
from outbox.models import DONE, Message
from temporal.outcomes import Outcome


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    list_display: ClassVar = ["at", "subject", "subject_id", "event", "actor", "route", "reason"]
    list_filter: ClassVar = ["event", "route"]
    search_fields: ClassVar = ["subject_id", "actor"]
    # `by` is left out: it would link to the user's page, which most people may not see.
    fields: ClassVar = list_display
    ordering: ClassVar = ["-at"]
    show_full_result_count = False


class TrailRow(NamedTuple):
    """A line of the audit trail on a request's page."""

    at: datetime
    what: str
    who: str
    route: str
    why: str


def trail(subject: str, subject_id: str) -> list[TrailRow]:
    """Return the audit trail of a request for its page, oldest first."""
    return [
        TrailRow(
            entry.at,
            entry.get_event_display(),
            entry.actor,
            entry.get_route_display(),
            entry.reason,
        )
        for entry in services.trail(subject, subject_id)
    ]


def _actor(request: HttpRequest) -> Actor:
    return Actor.of(request.user)  # type: ignore[arg-type]


class DecidableAdmin(ReadOnlyAdmin):
    """The admin of requests that somebody decides.

    People decide ticked rows on the list, and a single request on its page. The page also shows the
    audit trail and the state of the messages to the workflow.

    The model may have `workflow_id`. A subclass sets `kind`, annotates its queryset
    :meth:`with_delivery`, and can add to `actions`, `buttons` and `trail`. Every action calls a
    service for each row (:meth:`for_each`), and the service refuses and audits what the person may
    not do.
    """

    kind: ClassVar[Kind]
    # The report to the person where the service made no message.
    unsent: ClassVar = ""
    # The field with the time of the submission.
    began: ClassVar = "created_at"

    ordering: ClassVar[Any] = ["-created_at"]
    show_full_result_count = False
    list_disable_select_all = True
    actions: ClassVar = ["approve", "reject"]
    change_form_outer_before_template = "admin/approvals/decide.html"
    change_form_outer_after_template = "admin/approvals/trail.html"

    def approval(self, row: Any) -> Approval | None:
        """Return the approval of the row; None where it needs none."""
        approval: Approval | None = row.approval
        return approval

    def decide(self, row: Any, verdict: Verdict, act: services.Act) -> Message | None:
        """Decide the row. Raises what services.decide and services.approval_of raise."""
        return services.decide(services.approval_of(self.kind, row, verdict, act), verdict, act)

    def message_keys(self) -> list[Combinable]:
        """Return the keys of the messages about a row of the queryset."""
        return [
            Concat(Value(self.kind.prefix(message)), OuterRef(self.kind.own_id))
            for message in self.kind.messages
        ]

    def with_delivery(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Annotate each row with the kind (`message`), `message_id` and `outcome` of its newest
        message."""
        found = Message.objects.filter(key__in=self.message_keys())
        newest = found.order_by("-created_at", "-pk")[:1]
        annotated: QuerySet[Any] = rows.annotate(
            message=Subquery(newest.values("kind")),
            message_id=Subquery(newest.values("pk")),
            outcome=Subquery(newest.values("outcome")),
        )
        return annotated

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return services.may_decide(_actor(request), self.kind)

    def to_field_allowed(self, request: HttpRequest, to_field: str) -> bool:
        # The outbox knows only the request's own id, and links to the page by it.
        allowed: bool = to_field == self.kind.own_id or super().to_field_allowed(request, to_field)
        return allowed

    # Columns and fields

    @display(description="age", ordering="created_at")
    def age(self, row: Any) -> str:
        return timesince(getattr(row, self.began), depth=1)

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
    def delivery(self, row: Any) -> str | None:
        """Show what became of the newest message to the workflow, its start or the decision."""
        if not row.message:
            return None
        if row.outcome is None:
            return "queued"
        if row.outcome in DONE:
            return "started" if row.message == handlers.START_WORKFLOW else "notified"
        return "conflict" if row.outcome == Outcome.CONFLICT else "undeliverable"

    @display(description="submitter", ordering="approval__submitter__username")
    def submitted_by(self, row: Any) -> str | None:
        """Show the name. The field would link to the user's page, which most people may not see."""
        approval = self.approval(row)
        return approval.submitter.get_username() if approval and approval.submitter else None

    @display(description="amount", ordering="approval__amount")
    def money(self, row: Any) -> str:
        approval = self.approval(row)
        return approval.money() if approval else ""

    def decision(self, row: Any) -> str | None:
        entry, approval = self._decision(row), self.approval(row)
        if entry is None:
            return approval.get_verdict_display() if approval and approval.verdict else None
        return f"{entry.get_event_display()} by {entry.actor}"

    def decided_at(self, row: Any) -> Any:
        entry = self._decision(row)
        return localize(entry.at) if entry else None

    def reason(self, row: Any) -> str | None:
        entry = self._decision(row)
        return entry.reason if entry else None

    def _decision(self, row: Any) -> AuditEntry | None:
        approval = self.approval(row)
        return approval.decision if approval else None

    def buttons(self, request: HttpRequest, row: Any) -> dict[str, str]:
        """Return the other actions that the page of `row` offers, with their labels."""
        return {}

    def trail(self, row: Any) -> list[TrailRow]:
        """Return the audit trail on the page of `row`, oldest first (requirements X5)."""
        return trail(self.kind.name, getattr(row, self.kind.own_id))

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        row = kwargs.get("obj")
        if row is not None:
            context |= {
                "title": capfirst(self.opts.verbose_name),
                "trail": self.trail(row),
                "may_decide": self._may_decide(request, row),
                "buttons": self.buttons(request, row),
            }
            if row.message_id and request.user.has_perm("outbox.view_message"):
                context["delivery_url"] = reverse(
                    "admin:outbox_message_change", args=[row.message_id]
                )
            workflow_id = getattr(row, "workflow_id", None)
            if settings.TEMPORAL_UI_URL and workflow_id:
                context["run_url"] = (
                    f"{settings.TEMPORAL_UI_URL}/namespaces/{settings.TEMPORAL_NAMESPACE}"
                    f"/workflows/{quote(workflow_id, safe='')}"
                )
        response: HttpResponse = super().render_change_form(request, context, *args, **kwargs)
        return response

    # The actions. The decorator is Django's: Unfold's answers 403 before the service can audit.

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Return the actions that the person is offered. A POST has every action, so that its
        service refuses and audits an action that was not offered (X3)."""
        if request.method == "POST":
            return {name: self.get_action(name) for name in self.actions}
        offered: dict[str, Any] = super().get_actions(request)
        return offered

    @admin.action(description="Approve", permissions=["decide"])
    def approve(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.decide_each(request, queryset, Verdict.APPROVED)

    @admin.action(description="Reject", permissions=["decide"])
    def reject(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        # Asked before any row is rejected, so that each refusal is audited once.
        unstated = not request.POST.get("reason", "").strip()
        if unstated and any(self._may_decide(request, row) for row in queryset):
            return self._ask_reason(request, queryset)
        return self.decide_each(request, queryset, Verdict.REJECTED)

    def decide_each(
        self, request: HttpRequest, queryset: QuerySet[Any], verdict: Verdict
    ) -> HttpResponse | None:
        return self.for_each(
            request,
            queryset,
            lambda row, act: self.decide(row, verdict, act),
            done=verdict.label.capitalize(),
        )

    def for_each(
        self,
        request: HttpRequest,
        queryset: QuerySet[Any],
        service: Callable[[Any, services.Act], Message | None],
        *,
        done: str,
    ) -> HttpResponse | None:
        """Call the service for each row, oldest first, and report what became of each."""
        try:
            reason = clean_text(request.POST.get("reason", ""), field="reason")
        except ValidationError as error:
            messages.error(request, error.messages[0])
            return None
        names: list[str] = []
        notices: list[Message] = []
        for row in queryset.order_by(self.began):
            act = services.Act(_actor(request), Route.ADMIN, timezone.now(), reason)
            try:
                notice = service(row, act)
            except services.WrongState as error:
                messages.warning(request, f"Skipped: {error}")
            except services.Refused as error:
                messages.error(request, f"Skipped: {row}. {error}")
            else:
                names.append(str(row))
                notices += [notice] if notice else []
        if names:
            listed = ", ".join(names[:5])
            if len(names) > 5:
                listed += f" and {len(names) - 5} more"
            report = _report(notices) if notices else self.unsent
            messages.success(request, f"{done}: {listed}. {report}")
        return None

    def _may_decide(self, request: HttpRequest, row: Any) -> bool:
        approval = self.approval(row)
        return (
            approval is not None
            and approval.verdict is None
            and services.may_decide(_actor(request), KINDS[approval.kind], approval)
        )

    def _ask_reason(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Why are they rejected?" if queryset.count() > 1 else "Why is it rejected?",
            "rows": [
                (row, self.money(row), self.approval(row)) for row in queryset.order_by(self.began)
            ],
        }
        return TemplateResponse(request, "admin/approvals/reject.html", context)


@admin.register(Approval)
class ApprovalAdmin(DecidableAdmin):
    """What waits for the person, of every kind."""

    began: ClassVar = "opened_at"
    list_display: ClassVar = [
        *("reference", "kind", "title", "money", "category", "submitted_by", "age", "expires_at"),
    ]
    list_filter: ClassVar = ["kind", "currency"]
    sortable_by: ClassVar = ["reference", "kind", "expires_at"]
    search_fields: ClassVar = ["search_text__contains"]
    ordering: ClassVar[Any] = [F("expires_at").asc(nulls_last=True), "opened_at", "id"]
    fields: ClassVar = [
        *("kind", "page", "title", "money", "category", "submitted_by", "opened_at"),
        *("expires_at", "decision", "decided_at", "reason", "delivery"),
    ]
    readonly_fields: ClassVar = fields

    def approval(self, row: Approval) -> Approval:
        return row

    def decide(self, row: Approval, verdict: Verdict, act: services.Act) -> Message | None:
        return services.decide(row, verdict, act)

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return any(services.may_decide(_actor(request), kind) for kind in KINDS.values())

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_decide_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_decide_permission(request)

    def to_field_allowed(self, request: HttpRequest, to_field: str) -> bool:
        return to_field == "id"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Approval]:
        """Return what waits for the person, for the list, and otherwise every approval that the
        person sees, so that a refused decision is audited."""
        approvals = services.visible_to(_actor(request))
        match, person = request.resolver_match, _actor(request).user
        if request.method == "GET" and match and "object_id" not in match.kwargs and person:
            return Approval.objects.waiting_for(person).select_related("submitter")
        return self.with_delivery(approvals)

    def message_keys(self) -> list[Combinable]:
        key = Message._meta.get_field("key")
        parts = OuterRef("kind"), Value("-decision:"), OuterRef("reference")
        return [Concat(*parts, output_field=key)]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        return super().get_search_results(request, queryset, search_term.casefold())

    @display(description="request")
    def page(self, row: Approval) -> str:
        return link(KINDS[row.kind].page(row.reference), row.reference)

    def trail(self, row: Approval) -> list[TrailRow]:
        return trail(row.kind, row.reference)


def _report(notices: list[Message]) -> str:
    outcomes = outbox.wait_for_report(notices)
    if not all(outcome is None or outcome in DONE for outcome in outcomes):
        return "Not every workflow could be notified; the Workflow column shows which."
    if None in outcomes:
        return "Queued; the workflow is notified automatically."
    return "Workflow notified." if len(notices) == 1 else "Workflows notified."
