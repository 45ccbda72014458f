"""The admin where people decide requests of every kind, and auditors read the audit trail."""

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet, Subquery
from django.db.models.expressions import Combinable
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import localize
from django.utils.text import capfirst
from django.utils.timesince import timesince
from unfold.decorators import display

from access.actors import Actor
from access.bounded_admin import ReadOnlyAdmin
from access.text import clean_text
from approvals import services
from approvals.models import AuditEntry, Route, Verdict
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


class DecidableAdmin(ReadOnlyAdmin):
    """The admin of one kind of request.

    People decide ticked rows on the list, and a single request on its page. The page also shows the
    audit trail and the state of the messages to the workflow.

    The model has `state`, `created_at`, `submitter`, `decision`, `workflow_id` and `money()`. A
    subclass sets the attributes below, annotates its queryset :func:`with_delivery`, and can add to
    `actions`, `buttons` and `trail`. Every action calls a service for each row
    (:meth:`for_each`), and the service refuses and audits what the person may not do.
    """

    subject: ClassVar[str]
    # The field with the request's own id, which the audit trail has too.
    id_field: ClassVar[str]
    # The state in which it waits for its decision.
    pending: ClassVar[str]
    decide_permission: ClassVar[str]
    # The report to the person where the service made no message.
    unsent: ClassVar = ""

    ordering: ClassVar = ["-created_at"]
    show_full_result_count = False
    list_disable_select_all = True
    actions: ClassVar = ["approve", "reject"]
    change_form_outer_before_template = "admin/approvals/decide.html"
    change_form_outer_after_template = "admin/approvals/trail.html"

    def decide(self, row: Any, **asked: Any) -> Message | None:
        """Call the service that decides, with `verdict`, `actor`, `route`, `reason` and `now`.

        Returns the message to the workflow, or None. Raises services.Refused or WrongState.
        """
        raise NotImplementedError

    def has_decide_permission(self, request: HttpRequest) -> bool:
        actor = Actor.of(request.user)  # type: ignore[arg-type]
        return services.may_decide(actor, permission=self.decide_permission)

    def to_field_allowed(self, request: HttpRequest, to_field: str) -> bool:
        # The outbox knows only the request's own id, and links to the page by it.
        allowed: bool = to_field == self.id_field or super().to_field_allowed(request, to_field)
        return allowed

    # Columns and fields

    @display(description="age", ordering="created_at")
    def age(self, row: Any) -> str:
        return timesince(row.created_at, depth=1)

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

    @display(description="submitter")
    def submitted_by(self, row: Any) -> str | None:
        """Show the name. The field would link to the user's page, which most people may not see."""
        return row.submitter.get_username() if row.submitter else None

    def decided_at(self, row: Any) -> Any:
        return row.decision and localize(row.decision.at)

    def reason(self, row: Any) -> Any:
        return row.decision and row.decision.reason

    def buttons(self, request: HttpRequest, row: Any) -> dict[str, str]:
        """Return the other actions that the page of `row` offers, with their labels."""
        return {}

    def trail(self, row: Any) -> list[TrailRow]:
        """Return the audit trail on the page of `row`, oldest first (requirements X5)."""
        return [
            TrailRow(
                entry.at,
                entry.get_event_display(),
                entry.actor,
                entry.get_route_display(),
                entry.reason,
            )
            for entry in services.trail(self.subject, getattr(row, self.id_field))
        ]

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
            if settings.TEMPORAL_UI_URL and row.workflow_id:
                context["run_url"] = (
                    f"{settings.TEMPORAL_UI_URL}/namespaces/{settings.TEMPORAL_NAMESPACE}"
                    f"/workflows/{quote(row.workflow_id, safe='')}"
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
        service = partial(self.decide, verdict=verdict)
        return self.for_each(request, queryset, service, done=verdict.label.capitalize())

    def for_each(
        self,
        request: HttpRequest,
        queryset: QuerySet[Any],
        service: Callable[..., Message | None],
        *,
        done: str,
    ) -> HttpResponse | None:
        """Call `service(row, actor=…, route=…, reason=…, now=…)` for each row, oldest first, and
        report what became of each."""
        try:
            reason = clean_text(request.POST.get("reason", ""), field="reason")
        except ValidationError as error:
            messages.error(request, error.messages[0])
            return None
        names: list[str] = []
        notices: list[Message] = []
        for row in queryset.order_by("created_at"):
            try:
                notice = service(
                    row,
                    actor=Actor.of(request.user),  # type: ignore[arg-type]
                    route=Route.ADMIN,
                    reason=reason,
                    now=timezone.now(),
                )
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
        return row.state == self.pending and services.may_decide(
            Actor.of(request.user),  # type: ignore[arg-type]
            permission=self.decide_permission,
            submitter_id=row.submitter_id,
            opened_by_id=getattr(row, "opened_by_id", None),
        )

    def _ask_reason(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Why are they rejected?" if queryset.count() > 1 else "Why is it rejected?",
            "rows": queryset.order_by("created_at"),
            "pending": self.pending,
        }
        return TemplateResponse(request, "admin/approvals/reject.html", context)


def with_delivery(requests: QuerySet[Any], keys: Iterable[Combinable]) -> QuerySet[Any]:
    """Annotate each request with the kind (`message`), `message_id` and `outcome` of its newest
    message with one of these keys."""
    newest = Message.objects.filter(key__in=keys).order_by("-created_at", "-pk")[:1]
    annotated: QuerySet[Any] = requests.annotate(
        message=Subquery(newest.values("kind")),
        message_id=Subquery(newest.values("pk")),
        outcome=Subquery(newest.values("outcome")),
    )
    return annotated


def _report(notices: list[Message]) -> str:
    outcomes = outbox.wait_for_report(notices)
    if not all(outcome is None or outcome in DONE for outcome in outcomes):
        return "Not every workflow could be notified; the Workflow column shows which."
    if None in outcomes:
        return "Queued; the workflow is notified automatically."
    return "Workflow notified." if len(notices) == 1 else "Workflows notified."
