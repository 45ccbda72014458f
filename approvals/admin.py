"""The audit trail, for auditors. A request's own page shows its part of it."""

from typing import ClassVar

from django.contrib import admin

from access.admin import ReadOnlyAdmin
from approvals.models import AuditEntry


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    list_display: ClassVar = ["at", "subject", "subject_id", "event", "actor", "route", "reason"]
    list_filter: ClassVar = ["event", "route"]
    search_fields: ClassVar = ["subject_id", "actor"]
    ordering: ClassVar = ["-at"]
    show_full_result_count = False
