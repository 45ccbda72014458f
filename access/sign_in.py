"""Signing in and out. Both lead to a page that changes nothing, and attempts are limited."""

import ipaddress
import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote, unquote

from axes.handlers.proxy import AxesProxyHandler
from django.conf import settings
from django.contrib import admin
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import pluralize
from django.urls import Resolver404, get_script_prefix, resolve, reverse
from django.utils.crypto import constant_time_compare, salted_hmac
from django.utils.encoding import iri_to_uri
from unfold.forms import AuthenticationForm

from access import proxies

# Signing in may lead to these routes. Opening one changes nothing.
_PAGES: Final = {
    "list",
    "admin:index",
    "admin:app_list",
    "admin:password_change",
    "admin:orders_order_snapshot",
}
_MODEL_PAGES: Final = ("changelist", "change", "add", "history")
_KNOWN_BROWSER: Final = "known_browser"
_KNOWN_BROWSER_SECONDS: Final = 90 * 24 * 3600


def sign_in(request: HttpRequest) -> HttpResponse:
    """The admin's sign-in. It leads to the page that `next` names, or to the admin's index.

    `next` may name pages only. If it could name an action of the plain protocol, a link to the
    sign-in would make the person decide: the browser follows the redirect as a same-origin request.
    """
    response: HttpResponse = admin.site.login(request)
    if response.status_code == 302 and request.method == "POST":
        _succeeded(request, response)
    return _to_a_page(request, response)


def sign_out(request: HttpRequest) -> HttpResponse:
    """The admin's sign-out. Its `next` follows the rule of the sign-in."""
    return _to_a_page(request, admin.site.logout(request))


def _to_a_page(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    if response.status_code == 302:
        asked = request.POST.get(REDIRECT_FIELD_NAME, request.GET.get(REDIRECT_FIELD_NAME, ""))
        response["Location"] = page_at(asked) or reverse("admin:index")
    return response


def page_at(target: str) -> str | None:
    """The address of the page that `target` names, in this site's own spelling; None if it names
    no page.

    `target` must be an absolute path without a host, as the admin makes it. The path is decoded
    as the server does it, matched against the routes, and quoted again. The result has no dot
    segment, backslash or control character that a browser could resolve to another address.
    """
    path, _, query = target.partition("#")[0].partition("?")
    path = unquote(path)
    prefix = get_script_prefix()
    if not path.startswith(prefix) or {".", ".."} & set(path.split("/")):
        return None
    # A proxy that decodes twice, or takes these for separators, would see other segments.
    if any(odd in path for odd in "%\\;"):
        return None
    try:
        name = resolve("/" + path.removeprefix(prefix)).view_name
    except Resolver404:
        return None
    if name not in _PAGES and name not in _pages_of_models():
        return None
    return quote(path) + (f"?{iri_to_uri(query)}" if query else "")


def _pages_of_models() -> set[str]:
    return {
        f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}"
        for model in admin.site._registry
        for page in _MODEL_PAGES
    }


class SignInForm(AuthenticationForm):  # type: ignore[misc]
    """The admin's sign-in form. It also says when a person has to wait."""

    error_messages = {
        **AuthenticationForm.error_messages,
        "invalid_login": "The user name or the password is wrong. Both are case-sensitive.",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Django's form leaves the length to the browser, but the database refuses longer names.
        name = self.fields["username"]
        name.validators.append(MaxLengthValidator(name.max_length))

    def confirm_login_allowed(self, user: Any) -> None:
        """Raise ValidationError for an account that may not enter the admin.

        The password was right, so the message discloses nothing to strangers.
        """
        if user.is_active and not user.is_staff:
            raise ValidationError(
                "This account may not use these pages. Ask an administrator for the staff status."
            )
        super().confirm_login_allowed(user)

    def get_invalid_login_error(self) -> ValidationError:
        if self.request.axes_locked_out:
            minutes = math.ceil(settings.AXES_COOLOFF_TIME / timedelta(minutes=1))
            return ValidationError(
                f"Too many sign-ins have failed. Wait {minutes} minute{pluralize(minutes)} and try "
                "again."
            )
        error: ValidationError = super().get_invalid_login_error()
        return error


# django-axes calls the next three functions; settings.AXES_… name them.


def locked_out(
    request: HttpRequest, response: HttpResponse, credentials: Mapping[str, str]
) -> HttpResponse:
    """Answer 429 with the sign-in page, on which SignInForm says how long to wait."""
    response.status_code = 429
    response["Retry-After"] = str(round(settings.AXES_COOLOFF_TIME.total_seconds()))
    return response


def client_network(request: HttpRequest) -> str:
    """The address that a sign-in comes from; for IPv6 the network of one customer (/64)."""
    try:
        address = proxies.ip_address(request.META.get("REMOTE_ADDR", ""))
    except ValueError:
        return "::"  # a server on a local socket knows no address; its clients count as one
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((int(address), 64), strict=False).network_address)


def lockout_parameters(request: HttpRequest, credentials: Mapping[str, str] | None) -> list[str]:
    """The counters of failed sign-ins: by name, and by network.

    A browser in which this person has signed in before is not locked out by name. Otherwise a
    stranger could keep an approver out by failing on purpose every few minutes.
    """
    name = (credentials or {}).get("username", "")
    known = request.COOKIES.get(_KNOWN_BROWSER, "")
    if constant_time_compare(known, _mark(name)):
        return ["ip_address"]
    return ["username", "ip_address"]


def _succeeded(request: HttpRequest, response: HttpResponse) -> None:
    """Forget this person's failures from this network, and mark the browser as known."""
    assert isinstance(request.user, User)  # noqa: S101
    name = request.user.get_username()
    # Failures with other names still count. Otherwise a person could sign in to their own account
    # between attempts, and try the passwords of others without limit.
    AxesProxyHandler.reset_attempts(username=name, ip_address=client_network(request))
    request.session.clear_expired()
    response.set_cookie(
        _KNOWN_BROWSER,
        _mark(name),
        max_age=_KNOWN_BROWSER_SECONDS,
        path=request.path,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Strict",
    )


def _mark(name: str) -> str:
    """The value of the cookie in a browser where this person has signed in."""
    return salted_hmac("access.sign_in.known_browser", name, algorithm="sha256").hexdigest()
