"""What waits for delivery, and what became of the rest, for operators (requirements X6)."""

from typing import ClassVar

from django.contrib import admin

from access.admin import ReadOnlyAdmin
from outbox.models import Message


@admin.register(Message)
class MessageAdmin(ReadOnlyAdmin):
    list_display: ClassVar = ["key", "outcome", "created_at", "due_at", "attempts", "last_error"]
    list_filter: ClassVar = ["outcome", "kind"]
    search_fields: ClassVar = ["key"]
    ordering: ClassVar = ["-created_at"]
    show_full_result_count = False
    # Not the payload: it holds the encrypted token.
    fields: ClassVar = [*list_display, "kind", "settled_at"]
