"""A check of `manage.py check`: the integrations that the settings name can be imported."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.utils.module_loading import import_string

SETTINGS = ("ORDERS_INVENTORY", "ORDERS_PAYMENTS", "ORDERS_WAREHOUSE", "ORDERS_MAILER")


@register
def integrations_can_be_imported(**kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for setting in SETTINGS:
        path = getattr(settings, setting)
        try:
            import_string(path)
        except ImportError as error:
            hint = "Name a class with the methods of the protocol in orders.integrations."
            found.append(Error(f"{setting} is {path!r}: {error}", hint=hint, id="orders.E001"))
    return found
