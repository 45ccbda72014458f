"""Open access, and the other modes of EXPENSES_PROTOCOL_ACCESS, for the routes at the root
(requirements X8)."""

import re

from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpRequest
from rest_framework.exceptions import AuthenticationFailed

from access import actors, authentication

_LOOPBACK = ("127.0.0.1", "::1")
_LOCAL_HOSTS = ("localhost", "127.0.0.1")
# The headers that proxies add: Forwarded, Via, X-Forwarded-…, X-Real-IP, CF-Connecting-IP, ….
_FORWARDED = re.compile(r"HTTP_(VIA|.*FORWARDED.*|.*_IP)")


class NotServed(Exception):
    """The plain endpoints are switched off."""


class NotSignedIn(Exception):
    """The request names no valid user, and the access mode asks for one."""


class NotAllowed(Exception):
    """The signed-in user lacks the permission."""

    def __init__(self, actor: actors.Actor) -> None:
        self.actor = actor
        super().__init__(f"{actor.name} has no permission for this.")


def actor_of(request: HttpRequest, *, permission: str | None, cookies: bool) -> actors.Actor:
    """The actor of a request to a plain endpoint; see :func:`signed_in_or_local`.

    Raises NotServed if the plain endpoints are switched off.
    """
    if settings.EXPENSES_PROTOCOL_ACCESS == "off":
        raise NotServed
    request.get_host()  # DisallowedHost under a name that is not in ALLOWED_HOSTS
    return signed_in_or_local(request, permission=permission, cookies=cookies)


def signed_in_or_local(
    request: HttpRequest, *, permission: str | None, cookies: bool
) -> actors.Actor:
    """The actor of a request.

    The operation needs `permission`; None means that signing in is enough. `cookies` says whether
    a browser session counts. A request that names a user acts as that user, in every mode. Only an
    anonymous request to a local installation acts as `local`.

    Raises NotSignedIn or NotAllowed.
    """
    try:
        user = authentication.bearer_user(request)
    except AuthenticationFailed as error:
        raise NotSignedIn from error
    if user is None and cookies and isinstance(request.user, User):
        user = request.user
    if user is None:
        if is_local_installation(request):
            return actors.LOCAL
        raise NotSignedIn
    actor = actors.Actor.of(user)
    if permission and not actor.may(permission):
        raise NotAllowed(actor)
    return actor


def is_by_session(request: HttpRequest) -> bool:
    """Whether a signed-in browser sends this request, rather than a program with a token."""
    return "HTTP_AUTHORIZATION" not in request.META and request.user.is_authenticated


def is_local_installation(request: HttpRequest) -> bool:
    """Whether this site is in open mode and the request comes from its own machine."""
    return (
        settings.EXPENSES_PROTOCOL_ACCESS == "open"
        and request.META.get("REMOTE_ADDR") in _LOOPBACK
        and request.get_host().rsplit(":", 1)[0] in _LOCAL_HOSTS
        and not any(_FORWARDED.fullmatch(header) for header in request.META)
    )
