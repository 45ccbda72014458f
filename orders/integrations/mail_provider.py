"""Mail: the protocol, and the built-in mailer, which stores messages."""

from typing import Protocol

from orders.integrations import stored_once
from orders.models import Mail


class Mailer(Protocol):
    def send(self, key: str, *, recipient: str, subject: str, body: str) -> None:
        """Send a message. Raises Declined."""


class DatabaseMailer:
    """Messages are only stored. To send them, name another mailer in ORDERS_MAILER."""

    def send(self, key: str, *, recipient: str, subject: str, body: str) -> None:
        stored_once(Mail, key, recipient=recipient, subject=subject, body=body)
