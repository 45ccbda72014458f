"""`/.well-known/security.txt` (RFC 9116): the contact for reports of a weakness."""

from datetime import timedelta

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe


@csrf_exempt  # so that another method is 405 and not 403
@require_safe
def security_txt(request: HttpRequest) -> HttpResponse:
    """Answer anybody with SECURITY_CONTACT."""
    # The contact is read at each request, so the file never expires in practice.
    expires = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(
        days=180
    )
    lines = (
        f"Contact: {settings.SECURITY_CONTACT}",
        f"Expires: {expires.isoformat()}",
        "Preferred-Languages: en",
    )
    return HttpResponse("\n".join((*lines, "")), "text/plain; charset=utf-8")
