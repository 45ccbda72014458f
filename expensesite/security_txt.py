"""`/.well-known/security.txt` (RFC 9116): whom to tell of a weakness of this installation."""

from datetime import timedelta

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe


@csrf_exempt  # another method is 405, with or without a token
@require_safe
def security_txt(request: HttpRequest) -> HttpResponse:
    """`GET`: the contact of SECURITY_CONTACT, for anybody."""
    # The contact is read at each request, so it is never out of date.
    expires = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(
        days=180
    )
    lines = (
        f"Contact: {settings.SECURITY_CONTACT}",
        f"Expires: {expires.isoformat()}",
        "Preferred-Languages: en",
    )
    return HttpResponse("\n".join((*lines, "")), "text/plain; charset=utf-8")
