"""What every answer carries for browsers: its headers, and visible marks for invisible text."""

import re
from collections.abc import Callable
from typing import Final

from django.http import HttpRequest, HttpResponse

from access.text import mark_invisible

# The product asks the browser for none of its devices.
PERMISSIONS_POLICY: Final = ", ".join(
    f"{feature}=()"
    for feature in (
        "accelerometer",
        "camera",
        "display-capture",
        "geolocation",
        "gyroscope",
        "magnetometer",
        "microphone",
        "midi",
        "payment",
        "publickey-credentials-get",
        "screen-wake-lock",
        "serial",
        "usb",
        "xr-spatial-tracking",
    )
)
# Tags with their attributes, and what is not read as text: the content of forms' text areas, which
# the next POST would store, scripts and styles.
_MARKUP: Final = re.compile(
    r"(<(script|style|textarea)\b.*?</\2\s*>|<(?:[^<>\"']|\"[^\"]*\"|'[^']*')*>)", re.S | re.I
)


class Middleware:
    """Keep answers out of caches, and show on pages what would be invisible.

    An answer that says nothing else of caching is `no-store`: nearly all of them are personal.
    Static files say something else. On HTML pages, bidirectional and zero-width characters are
    shown as marks such as ‹U+202E›, so that a text looks like what it holds (requirements X8).
    The values of form fields stay as they are: a form that is saved again stores no mark.
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
    if response.content.isascii():  # nearly every page of the list
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
