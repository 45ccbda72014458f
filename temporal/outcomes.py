"""How a delivery to Temporal can end."""

from django.db.models import TextChoices


class Outcome(TextChoices):
    """How a delivery ended. Nothing else ends it: a message without an outcome is tried again."""

    DELIVERED = "DELIVERED", "delivered"
    ALREADY_COMPLETED = "ALREADY_COMPLETED", "already there, with the same value"
    CONFLICT = "CONFLICT", "completed elsewhere with another value"
    UNDELIVERABLE = "UNDELIVERABLE", "nobody waits for it any more"
    DEAD = "DEAD", "its address cannot be read"
