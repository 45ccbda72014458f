"""The answer 503 while the database does not answer. Nothing happened, or the client learns what
happened by sending the request again."""

import logging
from collections.abc import Callable
from typing import Final

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from rest_framework.exceptions import APIException

log = logging.getLogger(__name__)

# The server is down, a lock was not free in time, or the connection broke.
ERRORS: Final = (OperationalError, InterfaceError)
RETRY_SECONDS: Final = 2


class DatabaseUnavailable(APIException):
    """The answer of REST."""

    status_code = 503
    default_code = "database_unavailable"
    default_detail = "The database does not answer; send the request again."
    wait = RETRY_SECONDS


class Middleware:
    """Answers for views other than REST's."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, ERRORS):
            return None
        note(request, error)
        text = f"{DatabaseUnavailable.default_detail}\n"
        headers = {"Retry-After": str(RETRY_SECONDS)}
        return HttpResponse(text, "text/plain; charset=utf-8", 503, headers=headers)


def note(request: HttpRequest, error: Exception) -> None:
    """Log the failure in one line without a traceback, since every request causes one."""
    reason = str(error).partition("\n")[0]
    log.error("%r: the database does not answer: %s", request.path, reason)
