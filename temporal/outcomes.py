"""How a delivery to Temporal can end."""

from django.db.models import TextChoices


class Outcome(TextChoices):
    """How a delivery ended. A message without an outcome is tried again, without a limit."""

    DELIVERED = "DELIVERED", "delivered"
    ALREADY_COMPLETED = "ALREADY_COMPLETED", "already there, with the same value"
    OBSOLETE = "OBSOLETE", "superseded or no longer needed"
    CONFLICT = "CONFLICT", "completed elsewhere with another value"
    UNDELIVERABLE = "UNDELIVERABLE", "nobody waits for it any more"
    DEAD = "DEAD", "its address cannot be read"
