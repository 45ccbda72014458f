"""The base of REST views that serve both `/api/v1/` and the root, where older clients ask."""

from typing import ClassVar

from django.contrib.auth.models import User
from rest_framework import exceptions, permissions
from rest_framework.request import Request
from rest_framework.views import APIView

from access import cross_site, open_access
from access.actors import Actor


class ActorView(APIView):
    """A view that knows its actor: `self.actor`, once `initial` has run.

    Under `/api/v1/` the actor is the user who signed in, by token or by session with CSRF. With
    `as_view(at_root=True)` EXPENSES_PROTOCOL_ACCESS applies instead (requirements X8):

    - A request that names a user acts as that user. A session counts for reading only, because the
      root asks for no CSRF token.
    - In mode `open`, an anonymous request to a local installation may do everything.
    - In mode `off` the answer is 404.
    - A request of another site changes nothing.

    Refusals are problem details with status 401, 403 or 404. This class only requires a sign-in;
    each view checks `self.actor.may(…)` for more.
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
    # DRF's request would run the authenticators of /api/v1/ for its user.
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
        # The cause says what is wrong with an Authorization header.
        raise error.__cause__ or exceptions.NotAuthenticated() from None
