"""REST views that stand both under `/api/v1/` and, for a seed's clients, at the root."""

from typing import ClassVar

from django.contrib.auth.models import User
from rest_framework import exceptions, permissions
from rest_framework.request import Request
from rest_framework.views import APIView

from access import cross_site, open_access
from access.actors import Actor


class ActorView(APIView):
    """A view that knows who asks: `self.actor`, once `initial` has run.

    Under `/api/v1/` that is whoever signed in, by token or by session with CSRF. With
    `as_view(at_root=True)` EXPENSES_PROTOCOL_ACCESS governs instead (design, Access): whoever
    names a user is judged as that user; a session counts for reading only, as no CSRF token is
    asked for; at a local installation the anonymous may do everything; switched off, there is
    nothing. What another site asks for changes nothing (requirements X8). Refusals are problem
    details: 401, 403, 404.

    Being signed in is all that is asked for here; each view asks `self.actor.may(…)` for more.
    """

    at_root: ClassVar[bool] = False
    actor: Actor

    def perform_authentication(self, request: Request) -> None:
        if self.at_root:
            self.actor = _actor_at_root(request)
        else:
            super().perform_authentication(request)

    def check_permissions(self, request: Request) -> None:
        if not self.at_root:
            super().check_permissions(request)
            assert isinstance(request.user, User)  # noqa: S101 (the default permission class)
            self.actor = Actor.of(request.user)


def _actor_at_root(request: Request) -> Actor:
    reads = request.method in permissions.SAFE_METHODS
    # Not DRF's request: its user is that of the authenticators.
    asked = request._request
    if not reads and cross_site.is_cross_site(asked):
        raise exceptions.PermissionDenied(cross_site.REFUSAL)
    try:
        return open_access.actor_of(asked, permission=None, cookies=reads)
    except open_access.NotServed:
        raise exceptions.NotFound(
            "EXPENSES_PROTOCOL_ACCESS is off here; use the same path under /api/v1/."
        ) from None
    except open_access.NotSignedIn as error:
        # What is wrong with the header, if there is one.
        raise error.__cause__ or exceptions.NotAuthenticated() from None
