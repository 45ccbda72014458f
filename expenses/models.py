"""Expenses, their callback addresses, and the ledger of payments."""

import uuid
from decimal import Decimal
from typing import ClassVar

from django.conf import settings
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q

from access.text import TEXT_LENGTH, OpaqueIdField, validate_opaque_id
from approvals import money
from approvals.models import AppendOnlyModel, Decision
from temporal import addresses


class State(models.TextChoices):
    """The lifecycle (requirements E1): CREATED → APPROVED | REJECTED | WITHDRAWN, and APPROVED →
    COMPLETED. There is no other transition."""

    CREATED = "CREATED", "created"
    APPROVED = "APPROVED", "approved"
    REJECTED = "REJECTED", "rejected"
    WITHDRAWN = "WITHDRAWN", "withdrawn"
    COMPLETED = "COMPLETED", "completed"


class Money(models.Model):
    """An amount and its ISO 4217 currency. A request without an amount has neither."""

    amount = models.DecimalField(
        max_digits=12,
        decimal_places=2,
        null=True,
        blank=True,
        validators=[MinValueValidator(Decimal("0.01"))],
    )
    currency = models.CharField(
        max_length=3,
        blank=True,
        validators=[RegexValidator(r"\A[A-Z]{3}\Z", "Three capital letters of ISO 4217, as EUR.")],
    )

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


class LedgerEntry(Money, AppendOnlyModel):
    """A payment. An expense has at most one, so nothing is paid twice (requirements X2)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    expense = models.OneToOneField(
        "expenses.Expense", on_delete=models.PROTECT, related_name="ledger_entry"
    )
    paid_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "ledger"
        indexes = [models.Index(fields=["-paid_at", "-id"], name="ledger_newest_first")]
        constraints = Money.Meta.constraints

    def __str__(self) -> str:
        return f"payment of {self.expense_id}"


class Expense(Money):
    """An expense, from its creation to its payment. The plain protocol gives it only an id."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    expense_id = OpaqueIdField(
        "expense ID", max_length=100, unique=True, validators=[validate_opaque_id]
    )
    workflow_id = models.CharField(  # noqa: DJ001 (null: belongs to no workflow yet)
        "workflow ID", max_length=addresses.ID_LENGTH, null=True, blank=True, db_index=True
    )
    # The workflow was known at the creation, by key or by submission. A registration that names a
    # workflow later does not make it the owner.
    owns_workflow = models.BooleanField(default=False, editable=False)
    state = models.CharField(max_length=10, choices=State, default=State.CREATED, db_index=True)
    submitter = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT
    )
    # The user who created it over the plain protocol, and who may not decide it (requirements X3).
    opened_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        editable=False,
        on_delete=models.PROTECT,
        related_name="+",
        db_index=False,
    )
    merchant = models.CharField(max_length=200, blank=True)
    category = models.CharField(max_length=100, blank=True)
    description = models.TextField(blank=True, max_length=TEXT_LENGTH)
    incurred_on = models.DateField(null=True, blank=True)
    created_at = models.DateTimeField()
    decision = models.OneToOneField(Decision, null=True, blank=True, on_delete=models.PROTECT)
    payment = models.OneToOneField(
        LedgerEntry, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )

    class Meta:
        ordering: ClassVar = ["expense_id"]
        indexes = [models.Index(fields=["-created_at", "-id"], name="expense_newest_first")]
        permissions: ClassVar = [
            ("decide_expense", "Can approve and reject expenses"),
            ("carry_expense", "Can create, register and pay expenses over the plain protocol"),
            ("submit_expense", "Can submit expenses"),
        ]
        constraints = [
            models.CheckConstraint(name="expense_id_not_empty", condition=~Q(expense_id="")),
            # Another expense can use the workflow id again once the first one is settled.
            models.UniqueConstraint(
                name="workflow_owned_by_one_unsettled_expense",
                fields=["workflow_id"],
                condition=Q(owns_workflow=True, state__in=[State.CREATED, State.APPROVED]),
            ),
            models.CheckConstraint(
                name="expense_state_tied_to_decision_and_payment",
                condition=Q(state=State.CREATED, decision__isnull=True, payment__isnull=True)
                | Q(
                    state__in=[State.APPROVED, State.REJECTED, State.WITHDRAWN],
                    decision__isnull=False,
                    payment__isnull=True,
                )
                | Q(state=State.COMPLETED, decision__isnull=False, payment__isnull=False),
            ),
            *Money.Meta.constraints,
        ]

    def __str__(self) -> str:
        return str(self.expense_id)


class CallbackAddress(models.Model):
    """The address of the activity that waits for the decision; the newest registration wins.

    The token is encrypted. Its hash ensures that two expenses never share a token. The ids are the
    registered ones, else the ids inside the token.
    """

    expense = models.OneToOneField(
        Expense, primary_key=True, on_delete=models.CASCADE, related_name="callback"
    )
    token = models.TextField(help_text="Encrypted.")
    token_hash = models.CharField(max_length=64, unique=True)
    workflow_id = models.CharField(max_length=addresses.ID_LENGTH, blank=True)
    run_id = models.CharField(max_length=addresses.ID_LENGTH, blank=True)
    activity_id = models.CharField(max_length=addresses.ID_LENGTH, blank=True)
    registered_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "callback addresses"
        constraints = [
            models.UniqueConstraint(
                name="activity_has_one_expense",
                fields=["workflow_id", "run_id", "activity_id"],
                condition=~Q(workflow_id="") & ~Q(activity_id=""),
            )
        ]

    def __str__(self) -> str:
        return f"callback of {self.expense_id}"

    def sealed(self) -> dict[str, str]:
        """Return the address as an outbox message carries it."""
        return {
            "token": self.token,
            "workflow_id": self.workflow_id,
            "run_id": self.run_id,
            "activity_id": self.activity_id,
        }
