"""Messages: the effects that leave the database, each written with the change that causes it."""

from concurrent.futures import Future

from django.db import models
from django.db.models import Q

from access.text import OpaqueIdField
from outbox import subjects
from temporal.outcomes import Outcome

# The effect did not happen, and a person has to look.
ALARMING = (Outcome.CONFLICT, Outcome.UNDELIVERABLE, Outcome.DEAD)
# The same as a condition: a disjunction, since SQLite uses no partial index for an IN.
NEEDS_ATTENTION = Q(*(("outcome", outcome) for outcome in ALARMING), _connector=Q.OR)
# The effect happened, or is no longer needed.
DONE = (Outcome.DELIVERED, Outcome.ALREADY_COMPLETED, Outcome.OBSOLETE)


class Message(models.Model):
    """One effect to deliver at least once.

    `due_at` is also the lease: a process that takes a message pushes `due_at` into the future
    before it delivers, so that a crash at any line leads to another attempt.
    """

    kind = models.CharField(max_length=40)
    # An opaque id, like the id in it, so that a search by id can use the index.
    key = OpaqueIdField(
        max_length=200,
        unique=True,
        help_text="The subject, such as order-start:ORD-1; one message per key.",
    )
    payload = models.JSONField()
    created_at = models.DateTimeField()
    due_at = models.DateTimeField()
    attempts = models.PositiveIntegerField(default=0)
    last_error = models.TextField(blank=True)
    outcome = models.CharField(max_length=20, choices=Outcome, null=True)  # noqa: DJ001
    settled_at = models.DateTimeField(null=True)

    # Set on the instance that this process delivers: the outcome once the attempt is settled, None
    # where another attempt follows.
    report: "Future[Outcome | None] | None" = None

    class Meta:
        permissions = [("retry_message", "Can retry a delivery")]
        constraints = [
            models.CheckConstraint(
                name="message_outcome_known",
                condition=Q(outcome__isnull=True) | Q(outcome__in=Outcome.values),
            ),
            models.CheckConstraint(
                name="message_settled_with_outcome",
                condition=Q(outcome__isnull=True, settled_at__isnull=True)
                | Q(outcome__isnull=False, settled_at__isnull=False),
            ),
        ]
        indexes = [
            models.Index(
                fields=["due_at"], name="message_due", condition=Q(settled_at__isnull=True)
            ),
            models.Index(
                fields=["created_at"], name="message_waiting", condition=Q(settled_at__isnull=True)
            ),
            models.Index(fields=["outcome"], name="message_attention", condition=NEEDS_ATTENTION),
        ]

    def __str__(self) -> str:
        return str(subjects.describe(self.key))
