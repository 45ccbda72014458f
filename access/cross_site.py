"""Requests that another site made a browser send never change anything (requirements X8)."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.deprecation import MiddlewareMixin
from rest_framework import exceptions
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

REFUSAL = "Another site asked for this; nothing is done."


def is_cross_site(request: HttpRequest) -> bool:
    """Whether another site made the browser send this request, or the browser only prefetches.

    `Origin` and `Referer` must name this site by scheme, host and port, or one of
    CSRF_TRUSTED_ORIGINS. A request without these headers and without `Sec-Fetch-Site` comes from
    a program and is not cross-site.
    """
    header = request.META.get
    purposes = (header("HTTP_SEC_PURPOSE"), header("HTTP_PURPOSE"), header("HTTP_X_PURPOSE"))
    return (
        header("HTTP_SEC_FETCH_SITE", "none") not in ("same-origin", "none")
        or not all(_is_own(request, header(name)) for name in ("HTTP_ORIGIN", "HTTP_REFERER"))
        or any("prefetch" in (purpose or "") for purpose in purposes)
        or header("HTTP_X_MOZ") == "prefetch"
    )


def _is_own(request: HttpRequest, address: str | None) -> bool:
    if address is None:
        return True
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    origin = f"{parts.scheme}://{parts.netloc}".lower()
    own = f"{request.scheme}://{request.get_host()}".lower()
    return origin in (own, *settings.CSRF_TRUSTED_ORIGINS)


class NotCrossSite(BasePermission):
    """The permission of REST views: another site's request is refused unless it only reads."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if request.method not in SAFE_METHODS and is_cross_site(request._request):
            raise exceptions.PermissionDenied(REFUSAL)
        return True


class Middleware(MiddlewareMixin):
    """The same rule for the admin, the sign-in and every other view that is not a REST view.

    REST and protocol views refuse in their own format and order of answers.
    """

    def process_view(
        self, request: HttpRequest, view: Callable[..., HttpResponse], *_: object
    ) -> HttpResponse | None:
        answers_itself = getattr(view, "csrf_exempt", False)
        if answers_itself or request.method in SAFE_METHODS or not is_cross_site(request):
            return None
        return HttpResponse(f"{REFUSAL}\n", "text/plain; charset=utf-8", 403)
