"""A session ends when its person has done nothing for SESSION_COOKIE_AGE."""

from typing import Final

from django.contrib.auth import SESSION_KEY
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.deprecation import MiddlewareMixin

# A session is stored again at most this often.
RENEWAL_SECONDS: Final = 300
_RENEWED_AT: Final = "renewed_at"


class Middleware(MiddlewareMixin):
    """Extend the session of a signed-in person who does something.

    This comes after Django's SessionMiddleware, which stores the session and renews the cookie.
    """

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        session = request.session
        # A program's request has not read the session, so it is not read here either.
        if session.accessed and SESSION_KEY in session and _is_act(request):
            now = int(timezone.now().timestamp())
            if now - session.get(_RENEWED_AT, 0) >= RENEWAL_SECONDS:
                session[_RENEWED_AT] = now
        return response


def _is_act(request: HttpRequest) -> bool:
    """Whether a person made this request, rather than a script of an open page.

    Browsers send Sec-Fetch-Mode only over HTTPS and on localhost. So the list page marks its
    automatic requests with X-Background.
    """
    return (
        request.headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
        and "X-Background" not in request.headers
    )
