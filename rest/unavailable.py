"""While the database does not answer, requests that need it are answered with 503: a client knows
that nothing happened, or that asking again tells what did."""

import logging
from collections.abc import Callable
from typing import Final

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from rest_framework.exceptions import APIException

log = logging.getLogger(__name__)

# A server that is down, a lock that was not had in time, a connection that broke.
ERRORS: Final = (OperationalError, InterfaceError)
RETRY_SECONDS: Final = 2


class DatabaseUnavailable(APIException):
    """What REST answers."""

    status_code = 503
    default_code = "database_unavailable"
    default_detail = "The database does not answer; send the request again."
    wait = RETRY_SECONDS


class Middleware:
    """Answers for the views that do not speak REST."""

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
    """Log it in a line: it comes with each request."""
    reason = str(error).partition("\n")[0]
    log.error("%r: the database does not answer: %s", request.path, reason)
