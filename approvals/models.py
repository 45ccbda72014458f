"""Approvals and the audit trail.

Triggers of the database keep both as they were written (expensesite.guards).
"""

import uuid
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, ClassVar, NoReturn, Self

from django.conf import settings
from django.contrib.auth.models import User
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.db.models import F, Q

from access.actors import Actor
from access.text import ID_LENGTH, OpaqueIdField
from approvals import kinds, money


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
    # The request ended before a decision, as a cancelled order does.
    VOID = "VOID", "void"


# The names of the verdicts in forms and paths.
VERDICT_OF_VERB = {
    "approve": Verdict.APPROVED,
    "reject": Verdict.REJECTED,
    "withdraw": Verdict.WITHDRAWN,
}


class CurrencyField(models.CharField):  # type: ignore[type-arg]
    """An ISO 4217 code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("max_length", 3)
        kwargs.setdefault(
            "validators",
            [RegexValidator(r"\A[A-Z]{3}\Z", "Three capital letters of ISO 4217, as EUR.")],
        )
        super().__init__(*args, **kwargs)


class Money(models.Model):
    """An amount and its currency. A request without an amount has neither."""

    amount = models.DecimalField(
        max_digits=14,
        decimal_places=2,
        null=True,
        blank=True,
        validators=[MinValueValidator(Decimal("0.01"))],
    )
    currency = CurrencyField(blank=True)

    class Meta:
        abstract = True
        constraints: ClassVar = [
            models.CheckConstraint(
                name="%(class)s_amount_with_currency",
                condition=Q(amount__isnull=True, currency="")
                | Q(amount__isnull=False, amount__gt=0) & ~Q(currency=""),
            )
        ]

    def money(self) -> str:
        return money.text(self.amount, self.currency)


class AuditEntry(AppendOnlyModel):
    """An event in the life of a request, or a refused attempt: who did what, by which route, when
    and why.

    `actor` is the person's name at that time. `by` is null for the anonymous person of a local
    installation.
    """

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
    by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+"
    )
    actor = models.CharField(max_length=150)
    route = models.CharField(max_length=10, choices=Route)
    reason = models.TextField(blank=True)
    at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "audit entries"
        indexes = [
            models.Index(fields=["subject", "subject_id", "at"], name="audit_by_subject"),
            models.Index(fields=["-at"], name="audit_newest_first"),
            models.Index(
                fields=["by", "-at"], name="audit_submitted_by", condition=Q(event="submitted")
            ),
        ]
        constraints = [
            models.CheckConstraint(
                name="audit_rejection_has_reason", condition=~Q(event="rejected") | ~Q(reason="")
            ),
        ]

    def __str__(self) -> str:
        return f"{self.subject} {self.subject_id} {self.event} by {self.actor}"


class ApprovalQuerySet(models.QuerySet["Approval"]):
    def waiting_for(self, user: User) -> Self:
        """Return what the user may decide now, by the rule of approvals.services: first what
        expires soonest, then the oldest."""
        actor = Actor.of(user)
        names = [name for name, kind in kinds.KINDS.items() if actor.may(kind.permission)]
        waiting = self.filter(verdict=None, kind__in=[] if actor.carries else names)
        waiting = waiting.exclude(submitter=user)
        if settings.EXPENSES_PROTOCOL_ACCESS != "open":
            waiting = waiting.exclude(opened_by=user)
        return waiting.order_by(F("expires_at").asc(nulls_last=True), "opened_at", "id")


class Approval(Money):
    """What needs a person's yes, and the one verdict (requirements X1).

    `reference` is the id by which people know the request. `entry` is the audit entry that took the
    verdict: it alone says who, by which route, why and when. Nothing else changes after the opening
    but `expires_at` of an undecided approval.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=20)
    reference = OpaqueIdField(max_length=ID_LENGTH)
    submitter = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
    )
    # Who created the request over the plain protocol, and may not decide it (requirements X3).
    opened_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        db_index=False,
    )
    title = models.CharField(max_length=200, blank=True)
    category = models.CharField(max_length=100, blank=True)
    # What a search looks in, casefolded.
    search_text = models.TextField(blank=True, editable=False)
    opened_at = models.DateTimeField()
    # When the request expires undecided; null for never, or not yet known.
    expires_at = models.DateTimeField(null=True, blank=True)
    verdict = models.CharField(max_length=10, choices=Verdict, null=True, blank=True)  # noqa: DJ001
    entry = models.OneToOneField(
        AuditEntry, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )

    objects = models.Manager.from_queryset(ApprovalQuerySet)()

    class Meta:
        indexes = [
            models.Index(
                fields=["expires_at", "opened_at", "id"],
                name="approval_waiting",
                condition=Q(verdict__isnull=True),
            )
        ]
        constraints = [
            models.CheckConstraint(
                name="approval_verdict_tied_to_entry",
                condition=Q(verdict__isnull=True, entry__isnull=True)
                | Q(verdict__in=Verdict.values, entry__isnull=False),
            ),
            models.UniqueConstraint(
                name="one_undecided_approval",
                # In this order, SQLite does not prefer this index for what waits.
                fields=["reference", "kind"],
                condition=Q(verdict__isnull=True),
            ),
            *Money.Meta.constraints,
        ]

    def __str__(self) -> str:
        return str(self.reference)

    @property
    def decision(self) -> AuditEntry | None:
        """The entry of the decision; None where nobody decided, and for a VOID approval."""
        return None if self.verdict in (None, Verdict.VOID) else self.entry
