"""Headers for browsers on every answer, and visible marks for invisible characters on pages."""

import re
from collections.abc import Callable
from typing import Final

from django.http import HttpRequest, HttpResponse

from access.text import mark_invisible

# The product uses none of the browser's devices.
_DEVICES: Final = (
    "accelerometer camera display-capture geolocation gyroscope magnetometer microphone midi "
    "payment publickey-credentials-get screen-wake-lock serial usb xr-spatial-tracking"
)
PERMISSIONS_POLICY: Final = ", ".join(f"{device}=()" for device in _DEVICES.split())
# Tags with their attributes, scripts, styles, and text areas, whose content the next POST stores.
_MARKUP: Final = re.compile(
    r"(<(script|style|textarea)\b.*?</\2\s*>|<(?:[^<>\"']|\"[^\"]*\"|'[^']*')*>)", re.S | re.I
)


class Middleware:
    """Keep answers out of caches, and mark invisible characters on pages.

    Nearly all answers are personal, so an answer without a Cache-Control header gets `no-store`;
    static files have the header. On HTML pages bidirectional and zero-width characters show as
    marks such as ‹U+202E›, so that no text looks like another (requirements X8). The values of form
    fields have no marks, so a form that is saved again stores none.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self._get_response(request)
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("Permissions-Policy", PERMISSIONS_POLICY)
        if not response.streaming and response.headers.get("Content-Type", "").startswith(
            "text/html"
        ):
            _show_invisible(response)
        return response


def _show_invisible(response: HttpResponse) -> None:
    if response.content.isascii():  # true for nearly every page
        return
    page = response.content.decode()
    if mark_invisible(page) == page:
        return
    parts = _MARKUP.split(page)
    # Two groups: after each piece of text come the markup and the name of its element, or None.
    shown = [
        mark_invisible(part) if n % 3 == 0 else part for n, part in enumerate(parts) if n % 3 < 2
    ]
    response.content = "".join(shown).encode()
