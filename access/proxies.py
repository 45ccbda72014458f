"""Who calls when a reverse proxy stands before the site: scheme, host and client address."""

import ipaddress
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Middleware:
    """Take scheme, host and client address from the X-Forwarded-… headers of a trusted proxy.

    From any other peer these headers count for nothing. They are left in place, since open access
    refuses a request that carries one (requirements X8). This is the first middleware, so that
    every other one sees the client: redirects and absolute links, the origin check of CSRF, secure
    cookies and sign-in throttling need no setting of their own.

    Raises BadRequest for headers of a trusted proxy that cannot be read. Strangers cannot cause
    this, because only the values that our own proxies added are read.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if _is_trusted(request.META.get("REMOTE_ADDR", "")):
            _believe(request.META)
        return self._get_response(request)


def _is_trusted(peer: str) -> bool:
    if not settings.TRUSTED_PROXIES:
        return False
    try:
        address = _address(peer)
    except ValueError:  # a Unix socket has no address
        return False
    return any(address in network for network in settings.TRUSTED_PROXIES)


def _believe(meta: dict[str, Any]) -> None:
    # WSGIRequest reads the scheme where the server put it.
    for header, key in (
        ("HTTP_X_FORWARDED_PROTO", "wsgi.url_scheme"),
        ("HTTP_X_FORWARDED_HOST", "HTTP_HOST"),
        ("HTTP_X_FORWARDED_FOR", "REMOTE_ADDR"),
    ):
        if header not in meta:
            continue
        # Each proxy appends to the right. What is left of our own proxies' values is the client's
        # word. A proxy that replaces the header leaves fewer values, all of them ours.
        values = [value.strip() for value in meta[header].split(",")]
        value = values[-min(settings.PROXY_HOPS, len(values))]
        if key == "wsgi.url_scheme":
            value = value.lower()
            if value not in ("http", "https"):
                raise BadRequest("The proxy's X-Forwarded-Proto is neither http nor https.")
        elif key == "REMOTE_ADDR":
            try:
                value = str(_address(value))
            except ValueError:
                raise BadRequest("The proxy's X-Forwarded-For holds no IP address.") from None
        meta[key] = value


def _address(text: str) -> _Address:
    """The IP address; of an IPv4 one that is mapped into IPv6, the IPv4 one. Raises ValueError."""
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address
