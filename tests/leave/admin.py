from typing import ClassVar

from django.contrib import admin

from access.bounded_admin import ReadOnlyAdmin
from tests.leave.models import Leave


@admin.register(Leave)
class LeaveAdmin(ReadOnlyAdmin):
    list_display: ClassVar = ["leave_id", "days", "granted"]
