"""REST errors as problem details (RFC 9457), in one format for every endpoint of the API."""

import json
import logging
from http import HTTPStatus
from typing import Any

from django.core.exceptions import (
    DisallowedHost,
    PermissionDenied,
    RequestDataTooBig,
    ValidationError,
)
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.log import log_response
from rest_framework import exceptions, views
from rest_framework.request import Request
from rest_framework.response import Response

from rest import unavailable

log = logging.getLogger(__name__)


class Conflict(exceptions.APIException):
    """The state of the record forbids the request."""

    status_code = HTTPStatus.CONFLICT
    default_code = "conflict"


class TooLarge(exceptions.APIException):
    """The body is larger than DATA_UPLOAD_MAX_MEMORY_SIZE."""

    status_code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default_code = "too_large"
    default_detail = "The body is too large; send less."


class TooMany(exceptions.APIException):
    """The person has reached a limit; the header Retry-After is `wait`, in seconds."""

    status_code = HTTPStatus.TOO_MANY_REQUESTS
    default_code = "too_many"

    def __init__(self, detail: str, *, wait: int) -> None:
        super().__init__(detail)
        self.wait = wait


def exception_handler(error: Exception, context: dict[str, Any]) -> Response:
    """Answer with `{"type", "title", "status", "detail", "code", "errors"?}` as
    application/problem+json, and log the refusal.

    `errors` maps each refused field to its messages.
    """
    if isinstance(error, ValidationError):
        error = exceptions.ValidationError({"detail": error.messages})
    elif isinstance(error, Http404):
        error = exceptions.NotFound("There is no such record, or you may not see it.")
    elif isinstance(error, PermissionDenied):
        error = exceptions.PermissionDenied("You have no permission for this.")
    elif isinstance(error, RequestDataTooBig):
        error = TooLarge()
    elif isinstance(error, DisallowedHost):
        error = exceptions.ParseError("The site is not served under this Host (ALLOWED_HOSTS).")
    elif isinstance(error, unavailable.ERRORS):
        unavailable.note(context["request"], error)
        error = unavailable.DatabaseUnavailable()
    response = views.exception_handler(error, context)
    if response is None:
        log.error("%r failed", context["request"].path, exc_info=error)
        error = exceptions.APIException("The request failed; it is in the site's log.")
        response = Response(status=error.status_code)
    status = HTTPStatus(response.status_code)
    problem: dict[str, Any] = {"type": "about:blank", "title": status.phrase, "status": status}
    if isinstance(error, exceptions.ValidationError):
        problem["detail"] = "Some fields are missing or wrong; see errors."
        problem["errors"] = response.data
        reason = json.dumps(response.data)
    else:
        problem["detail"] = reason = str(getattr(error, "detail", error))
    problem["code"] = getattr(error, "default_code", "error")
    response.data = problem
    response.content_type = "application/problem+json"
    log_refusal(context["request"]._request, response, reason)
    return response


def log_refusal(
    request: HttpRequest, response: HttpResponse, reason: str, *, record_id: str = ""
) -> None:
    """Log in one line that a request was refused and why (requirements E10).

    The path names the record; `record_id` does where the path does not. The query, the headers and
    the body may hold secrets, so the line has none of them. It replaces Django's line about the
    response, and Django escapes the control characters in it.
    """
    log_response(
        "%s %s%s refused: %s",
        request.method,
        request.path,
        f" ({record_id[:200]})" if record_id else "",
        reason[:500],
        response=response,
        request=request,
        logger=log,
        level="error" if response.status_code >= 500 else "warning",
    )


class UnknownPath(views.APIView):
    """Answers every path that the API does not have, in its one error format."""

    authentication_classes = ()
    permission_classes = ()

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        raise exceptions.NotFound("The API has no such path.")
