"""Scheme, host and client address of a request that came through a reverse proxy."""

import ipaddress
from typing import Any

from django.conf import settings
from django.core.exceptions import BadRequest
from django.http import HttpRequest
from django.utils.deprecation import MiddlewareMixin


class Middleware(MiddlewareMixin):
    """Take scheme, host and client address from the X-Forwarded-… headers of a trusted proxy.

    These headers are ignored if any other peer sends them. They stay in place, because open access
    refuses a request that carries one (requirements X8). This middleware comes first, so that all
    others see the client: redirects and absolute links, the origin check of CSRF, secure cookies
    and sign-in throttling need no settings of their own.

    Raises BadRequest for headers of a trusted proxy that cannot be read. Strangers cannot cause
    this, because only the values that our own proxies added are read.
    """

    def process_request(self, request: HttpRequest) -> None:
        if _is_trusted(request.META.get("REMOTE_ADDR", "")):
            _take_client(request.META)


def _is_trusted(peer: str) -> bool:
    try:
        address = ip_address(peer)
    except ValueError:  # a Unix socket has no address
        return False
    return any(address in network for network in settings.TRUSTED_PROXIES)


def _take_client(meta: dict[str, Any]) -> None:
    # WSGIRequest reads the scheme from wsgi.url_scheme, where the server stored it.
    for header, key in (
        ("HTTP_X_FORWARDED_PROTO", "wsgi.url_scheme"),
        ("HTTP_X_FORWARDED_HOST", "HTTP_HOST"),
        ("HTTP_X_FORWARDED_FOR", "REMOTE_ADDR"),
    ):
        if header not in meta:
            continue
        # Each proxy appends on the right, so values left of our own proxies' values are claims of
        # the client. A proxy that replaces the header leaves fewer values, all of them ours.
        values = [value.strip() for value in meta[header].split(",")]
        value = values[-min(settings.PROXY_HOPS, len(values))]
        if key == "wsgi.url_scheme":
            value = value.lower()
            if value not in ("http", "https"):
                raise BadRequest("The proxy's X-Forwarded-Proto is neither http nor https.")
        elif key == "REMOTE_ADDR":
            try:
                value = str(ip_address(value))
            except ValueError:
                raise BadRequest("The proxy's X-Forwarded-For holds no IP address.") from None
        meta[key] = value


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IP address. An IPv4 address that is mapped into IPv6 becomes IPv4.

    Raises ValueError.
    """
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address
