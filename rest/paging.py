"""Lists in pages; each page links to the next and the previous page (requirements E12)."""

from typing import Any

from django.db.models import QuerySet
from rest_framework import exceptions, serializers
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request


class CursorPages(CursorPagination):
    """Pages in the order of the queryset, which names a time first and the primary key last.

    `?page_size=` asks for up to 1,000 rows; a page has 100 without it.
    """

    page_size = 100
    page_size_query_param = "page_size"
    max_page_size = 1000

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: Any) -> tuple[str, ...]:
        return tuple(map(str, queryset.query.order_by))

    def decode_cursor(self, request: Request) -> Cursor | None:
        """Read the place in the list, a time in UTC.

        Raises NotFound for anything else. A time in year 1 can be in year 0 in UTC, which no
        database compares.
        """
        cursor = super().decode_cursor(request)
        if cursor is None or cursor.position is None:
            return cursor
        try:
            position = serializers.DateTimeField().run_validation(cursor.position)
        except exceptions.ValidationError:
            raise exceptions.NotFound(self.invalid_cursor_message) from None
        # The stubs expect a number.
        return cursor._replace(position=str(position))  # type: ignore[arg-type]
