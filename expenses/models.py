"""Expenses, their callback addresses, and the ledger of payments."""

import uuid
from typing import ClassVar

from django.db import models
from django.db.models import Q

from access.text import TEXT_LENGTH, OpaqueIdField, validate_opaque_id
from approvals.models import AppendOnlyModel, Approval, Money
from temporal import addresses


class State(models.TextChoices):
    """The lifecycle (requirements E1): CREATED → APPROVED | REJECTED | WITHDRAWN, and APPROVED →
    COMPLETED. There is no other transition.

    The database refuses a state that the approval's verdict and the ledger do not give
    (expensesite.guards).
    """

    CREATED = "CREATED", "created"
    APPROVED = "APPROVED", "approved"
    REJECTED = "REJECTED", "rejected"
    WITHDRAWN = "WITHDRAWN", "withdrawn"
    COMPLETED = "COMPLETED", "completed"


class LedgerEntry(Money, AppendOnlyModel):
    """A payment. An expense has at most one, so nothing is paid twice (requirements X2)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    expense = models.OneToOneField(
        "expenses.Expense", on_delete=models.PROTECT, related_name="payment"
    )
    paid_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "ledger"
        indexes = [models.Index(fields=["-paid_at", "-id"], name="ledger_newest_first")]
        constraints = Money.Meta.constraints

    def __str__(self) -> str:
        return f"payment of {self.expense_id}"


class Expense(models.Model):
    """An expense, from its creation to its payment. The plain protocol gives it only an id.

    Its approval has the submitter, the amount, the category and the decision.
    """

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
    approval = models.OneToOneField(Approval, on_delete=models.PROTECT)
    merchant = models.CharField(max_length=200, blank=True)
    description = models.TextField(blank=True, max_length=TEXT_LENGTH)
    incurred_on = models.DateField(null=True, blank=True)
    created_at = models.DateTimeField()

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
            models.CheckConstraint(name="expense_state_known", condition=Q(state__in=State.values)),
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
