"""A session ends when its person has done nothing for SESSION_COOKIE_AGE."""

from collections.abc import Callable
from typing import Final

from django.contrib.auth import SESSION_KEY
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

# A session is stored again at most this often.
RENEWAL_SECONDS: Final = 300
_RENEWED_AT: Final = "renewed_at"


class Middleware:
    """Prolongs the session of a signed-in person who does something.

    Comes after Django's SessionMiddleware, which stores the session and sends the cookie again.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self._get_response(request)
        session = request.session
        # A request that has not read the session, as that of a program, does not read it here.
        if session.accessed and SESSION_KEY in session and _is_act(request):
            now = int(timezone.now().timestamp())
            if now - session.get(_RENEWED_AT, 0) >= RENEWAL_SECONDS:
                session[_RENEWED_AT] = now
        return response


def _is_act(request: HttpRequest) -> bool:
    """Whether a person asked for this, and not a script of an open page.

    Browsers tell the two apart only over HTTPS and on localhost, so the list page marks the
    requests by which it keeps itself up to date.
    """
    return (
        request.headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
        and "X-Background" not in request.headers
    )
