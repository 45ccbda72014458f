"""The admin of messages: which wait for delivery, why, and how others ended (requirements X6)."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.views.main import SEARCH_VAR
from django.contrib.contenttypes.models import ContentType
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.defaultfilters import truncatechars
from django.utils import timezone
from django.utils.formats import localize
from django.utils.html import format_html
from django.utils.timesince import timesince
from unfold.decorators import action, display

from access.bounded_admin import OwnFiltersList, ReadOnlyAdmin
from outbox import metrics, relay, services, subjects
from outbox.models import ALARMING, DONE, NEEDS_ATTENTION, Message
from temporal.outcomes import Outcome

RETRY: Final = "outbox.retry_message"
# The query parameter that names one of the listings.
SHOW: Final = "show"


class Explanation(NamedTuple):
    """An outcome in words: its meaning, and what a person can do about it ("": nothing)."""

    badge: str
    meaning: str
    remedy: str = ""


EXPLANATIONS: dict[str | None, Explanation] = {
    None: Explanation(
        "waiting",
        "It is not delivered yet.",
        "Fix the cause shown in the last error; delivery retries automatically. Retry now tries "
        "immediately.",
    ),
    Outcome.DELIVERED: Explanation("delivered", "Temporal has it."),
    Outcome.ALREADY_COMPLETED: Explanation(
        "already there", "Temporal had it already, with the same value."
    ),
    Outcome.OBSOLETE: Explanation(
        "obsolete",
        "It was not needed any more: something newer replaced it, or its workflow had ended.",
    ),
    Outcome.CONFLICT: Explanation(
        "conflict",
        "It was completed elsewhere with another value, and the workflow went on with that value.",
        "Compare the record with its run in Temporal. If the record is right, reset the run to its "
        "start, then retry.",
    ),
    Outcome.UNDELIVERABLE: Explanation(
        "undeliverable",
        "Nobody waits for it any more: the workflow has ended, or Temporal does not know it.",
        "Look at its run in Temporal. If the workflow should go on, reset it or start it again: it "
        "gets the decision when it registers.",
    ),
    Outcome.DEAD: Explanation(
        "unreadable",
        "Temporal cannot read the stored address.",
        "Reset the run in Temporal to its start: it registers again and gets the decision.",
    ),
}
_LINK = '<a class="text-primary-600 underline dark:text-primary-500" href="{}">{}</a>'
_UNBROKEN = '<span class="whitespace-nowrap">{}</span>'
# What the list can show: the words of the link, and the messages.
_LISTINGS: dict[str, tuple[str, Callable[[QuerySet[Message]], QuerySet[Message]]]] = {
    "open": (
        "Open",
        # A union, since SQLite uses neither partial index for a disjunction of the two.
        lambda messages: messages.filter(
            pk__in=Message.objects.filter(settled_at=None)
            .values("pk")
            .union(Message.objects.filter(NEEDS_ATTENTION).values("pk"))
        ),
    ),
    "waiting": ("Waiting", lambda messages: messages.filter(settled_at=None)),
    "attention": ("Needs attention", lambda messages: messages.filter(NEEDS_ATTENTION)),
    "done": ("Done", lambda messages: messages.filter(outcome__in=DONE)),
    "all": ("All", lambda messages: messages),
}


class MessageList(OwnFiltersList):
    """Shows the open messages by default; a search looks at all messages."""

    def get_filters_params(self, params: Any = None) -> dict[str, Any]:
        found: dict[str, Any] = super().get_filters_params(params)
        return {name: value for name, value in found.items() if name != SHOW}

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> QuerySet[Message]:
        _, narrow = _LISTINGS[_shown(request)]
        return narrow(super().get_queryset(request, *args, **kwargs))


def _colour(outcome: str | None) -> str:
    if outcome is None:
        return "warning"
    return "success" if outcome in DONE else "danger"


def _shown(request: HttpRequest) -> str:
    default = "all" if request.GET.get(SEARCH_VAR) else "open"
    shown = request.GET.get(SHOW, default)
    return shown if shown in _LISTINGS else default


@admin.register(Message)
class MessageAdmin(ReadOnlyAdmin):
    list_display_links: ClassVar = ["message"]
    list_before_template = "admin/outbox/message/summary.html"
    # Another order would read every message in the table.
    sortable_by: ClassVar[list[str]] = []
    search_fields: ClassVar = ["key"]
    show_full_result_count = False
    list_disable_select_all = True
    actions: ClassVar = ["retry"]
    change_form_outer_before_template = "admin/outbox/message/explanation.html"
    # Not the payload: it holds the encrypted token.
    fieldsets: ClassVar = [
        (
            "Delivery",
            {"fields": ["last_error", "attempts", "next_try", "queued", "settled"]},
        ),
        ("Message", {"fields": ["key", "kind"]}),
    ]
    readonly_fields: ClassVar = [name for _, part in fieldsets for name in part["fields"]]

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(RETRY)

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        @display(description="about")
        def about(message: Message) -> str:
            subject = subjects.describe(message.key)
            url = _url(subject, request)
            name = truncatechars(subject.name, 40)
            return format_html(_LINK, url, name) if url else name

        return ["message", about, "badge", "age", "attempts", "next_try", "why"]

    def get_ordering(self, request: HttpRequest) -> list[str]:
        """The oldest open message first; of done and all messages, the newest first."""
        return ["-pk"] if _shown(request) in ("done", "all") else ["created_at", "pk"]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[MessageList]:
        return MessageList

    def message(self, message: Message) -> str:
        return format_html(_UNBROKEN, subjects.describe(message.key).words)

    @display(
        description="delivery",
        label={text.badge: _colour(outcome) for outcome, text in EXPLANATIONS.items()},
    )
    def badge(self, message: Message) -> str:
        return EXPLANATIONS[message.outcome].badge

    def age(self, message: Message) -> str:
        return timesince(message.created_at, depth=1)

    def queued(self, message: Message) -> str:
        return localize(message.created_at)

    def settled(self, message: Message) -> str | None:
        return localize(message.settled_at)

    def next_try(self, message: Message) -> str | None:
        if message.settled_at is not None:
            return None
        seconds = math.ceil((message.due_at - timezone.now()).total_seconds())
        return f"in {seconds} s" if seconds > 0 else "now"

    def why(self, message: Message) -> str:
        if message.outcome in ALARMING:
            return message.get_outcome_display()
        if message.outcome is None and not message.last_error:
            return "waits for its turn"
        return truncatechars(message.last_error, 80)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        attention = metrics.needing_attention()
        backlog = metrics.backlog()
        context = {
            "title": "Delivery",
            "backlog": backlog,
            "waiting": f"{metrics.LARGEST_COUNT:,} or more"
            if backlog.waiting == metrics.LARGEST_COUNT
            else backlog.waiting,
            "attention": sum(attention.values()),
            "alarming": [
                (EXPLANATIONS[outcome].badge, count)
                for outcome, count in attention.items()
                if count
            ],
            "listings": [(name, label) for name, (label, _) in _LISTINGS.items()],
            "shown": _shown(request),
        }
        response: HttpResponse = super().changelist_view(
            request, {**context, **(extra_context or {})}
        )
        return response

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        *args: Any,
        obj: Message,
        **kwargs: Any,
    ) -> HttpResponse:
        subject = subjects.describe(obj.key)
        context |= {
            "explanation": EXPLANATIONS[obj.outcome],
            "colour": _colour(obj.outcome),
            "subject": subject,
            "subject_url": _url(subject, request),
            "may_retry": self.has_retry_permission(request) and obj.outcome not in DONE,
            "retries": LogEntry.objects.filter(
                content_type=ContentType.objects.get_for_model(Message), object_id=obj.pk
            ).select_related("user"),
        }
        response: HttpResponse = super().render_change_form(
            request, context, *args, obj=obj, **kwargs
        )
        return response

    @action(description="Retry now", permissions=["retry"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Message]) -> HttpResponse | None:
        with transaction.atomic():
            # Deliveries settle in this order too, so that the two do not deadlock.
            chosen = list(queryset.order_by("pk").select_for_update())
            again = [message for message in chosen if message.outcome not in DONE]
            services.retry(queryset, now=relay.database_now())
            LogEntry.objects.log_actions(
                request.user.pk,  # type: ignore[arg-type]
                again,
                CHANGE,
                change_message="Retried.",
            )
        if again:
            messages.success(request, f"{len(again)} re-queued; the relay tries at once.")
        if done := len(chosen) - len(again):
            messages.info(request, f"{done} already done, left alone.")
        if chosen and "from_its_page" in request.POST:
            return redirect("admin:outbox_message_change", chosen[0].pk)
        return None


def _url(subject: subjects.Subject, request: HttpRequest) -> str:
    return subject.url if request.user.has_perm(subject.permission) else ""
