"""Bearer tokens: knox, hashed at rest, with the rights of their user."""

from django.contrib.auth.models import User
from django.http import HttpRequest
from django.utils import timezone
from knox.auth import TokenAuthentication
from knox.crypto import hash_token
from knox.models import AuthToken
from rest_framework.exceptions import AuthenticationFailed


class BearerAuthentication(TokenAuthentication):  # type: ignore[misc]
    """`Authorization: Bearer <token>`; the prefix is set in REST_KNOX.

    Looks the hash up in one query; knox's own reads all tokens of the user at each request,
    deletes expired ones while it reads, and fails on a token that is not UTF-8.
    """

    def authenticate_credentials(self, token: bytes) -> tuple[User, AuthToken]:
        try:
            digest = hash_token(token.decode("ascii"))
        except ValueError:
            raise AuthenticationFailed("This is not a token.") from None
        found = AuthToken.objects.filter(digest=digest).select_related("user").first()
        if found is None or (found.expiry and found.expiry < timezone.now()):
            raise AuthenticationFailed("The token is unknown or has expired; ask for a new one.")
        if not found.user.is_active:
            raise AuthenticationFailed("The user of this token is not active.")
        return found.user, found


def bearer_user(request: HttpRequest) -> User | None:
    """The user of the request's bearer token; None when it carries no Authorization header.

    Raises AuthenticationFailed for a header that names no valid token.
    """
    if "HTTP_AUTHORIZATION" not in request.META:
        return None
    found = BearerAuthentication().authenticate(request)
    if found is None:
        raise AuthenticationFailed("The Authorization header carries no bearer token.")
    user: User = found[0]
    return user
