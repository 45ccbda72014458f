"""Decisions and the audit trail. Their rows are only ever inserted."""

import uuid
from collections.abc import Iterable
from typing import Any, NoReturn

from django.conf import settings
from django.db import models
from django.db.models import Q


class AppendOnly(Exception):
    """The row records a past event, so nothing changes or deletes it."""


class AppendOnlyQuerySet(models.QuerySet[Any]):
    def update(self, **kwargs: Any) -> NoReturn:
        raise AppendOnly(self.model.__name__)

    def delete(self) -> NoReturn:
        raise AppendOnly(self.model.__name__)

    def bulk_create(self, objs: Iterable[Any], *args: Any, **kwargs: Any) -> list[Any]:
        if args or kwargs.get("update_conflicts"):
            raise AppendOnly(self.model.__name__)
        return super().bulk_create(objs, **kwargs)


class AppendOnlyModel(models.Model):
    """A model whose rows are never changed or deleted."""

    objects = models.Manager.from_queryset(AppendOnlyQuerySet)()

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise AppendOnly(type(self).__name__)
        super().save(*args, **{**kwargs, "force_insert": True})

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AppendOnly(type(self).__name__)


class Route(models.TextChoices):
    """How a request reached the site."""

    ADMIN = "admin", "admin"
    PAGE = "page", "list page"
    PROTOCOL = "protocol", "plain protocol"
    REST = "rest", "REST API"
    COMMAND = "command", "command line"
    SIGNAL = "signal", "signal"
    WORKFLOW = "workflow", "workflow"


class Verdict(models.TextChoices):
    """How the wait for a decision ended."""

    APPROVED = "APPROVED", "approved"
    REJECTED = "REJECTED", "rejected"
    WITHDRAWN = "WITHDRAWN", "withdrawn"
    # Nobody decided while the approval window was open.
    EXPIRED = "EXPIRED", "expired"


# The names of the verdicts in forms and paths.
VERDICT_OF_VERB = {
    "approve": Verdict.APPROVED,
    "reject": Verdict.REJECTED,
    "withdraw": Verdict.WITHDRAWN,
}


class Act(AppendOnlyModel):
    """Who did something, by which route, when and why.

    `actor` is the person's name at that time. `by` is null for the anonymous person of a local
    installation.
    """

    by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+"
    )
    actor = models.CharField(max_length=150)
    route = models.CharField(max_length=10, choices=Route)
    reason = models.TextField(blank=True)
    at = models.DateTimeField()

    class Meta:
        abstract = True


class Decision(Act):
    """The one verdict on a request. The request refers to it (requirements X1)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    verdict = models.CharField(max_length=10, choices=Verdict)

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="decision_verdict_known", condition=Q(verdict__in=Verdict.values)
            ),
            models.CheckConstraint(
                name="decision_rejection_has_reason",
                condition=~Q(verdict=Verdict.REJECTED) | ~Q(reason=""),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_verdict_display()} by {self.actor}"


class AuditEntry(Act):
    """An event in the life of a request, or a refused attempt."""

    class Event(models.TextChoices):
        CREATED = "created", "created"
        SUBMITTED = "submitted", "submitted"
        REGISTERED = "registered", "callback registered"
        APPROVED = "approved", "approved"
        REJECTED = "rejected", "rejected"
        WITHDRAWN = "withdrawn", "withdrawn"
        EXPIRED = "expired", "expired"
        PAID = "paid", "paid"
        CANCELLED = "cancelled", "cancelled"
        RETRIED = "retried", "retried"
        COMPLETED = "completed", "completed"
        FAILED = "failed", "failed"
        ADJUSTED = "adjusted", "adjusted"
        REFUSED = "refused", "refused"

    subject = models.CharField(max_length=20, help_text="Kind of the request: expense, order.")
    subject_id = models.CharField(max_length=100)
    event = models.CharField(max_length=10, choices=Event)

    class Meta:
        verbose_name_plural = "audit entries"
        indexes = [
            models.Index(fields=["subject", "subject_id", "at"], name="audit_by_subject"),
            models.Index(fields=["-at"], name="audit_newest_first"),
            models.Index(
                fields=["by", "-at"], name="audit_submitted_by", condition=Q(event="submitted")
            ),
        ]

    def __str__(self) -> str:
        return f"{self.subject} {self.subject_id} {self.event} by {self.actor}"
