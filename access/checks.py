"""The check of `manage.py check --deploy` for the access mode."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register


@register(Tags.security, deploy=True)
def protocol_is_not_open(**kwargs: Any) -> list[CheckMessage]:
    if settings.EXPENSES_PROTOCOL_ACCESS != "open":
        return []
    return [
        Error(
            "EXPENSES_PROTOCOL_ACCESS is open: everybody who reaches this site from its own "
            "machine, also through a proxy there, acts without signing in.",
            hint="Set EXPENSES_PROTOCOL_ACCESS to token or off.",
            id="access.E001",
        )
    ]
