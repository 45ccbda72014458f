"""The REST API of expenses, for programs (requirements E12). JSON; errors are problem details.

With `Prefer: wait=N` a request is answered once the expense is settled (paid, rejected or
withdrawn), or after N seconds; a submission or a decision whose expense is not settled by then gets
202. Without the header the answer comes at once.

A path names an expense by its UUID or by its expense id. The UUID comes first
(:func:`rest.paths.find`).
"""

import uuid
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Final

from django.db.models import QuerySet
from django.utils import timezone
from rest_framework import exceptions, generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from access.text import validate_opaque_id
from access.views import ActorView
from approvals import services as approvals
from approvals.api import (
    AuditEntrySerializer,
    DecisionField,
    decide,
    refusals_as_problems,
)
from approvals.models import Approval, AuditEntry, Route
from expenses import services
from expenses.models import Expense, LedgerEntry, State
from rest import idempotency, prefer
from rest.paging import CursorPages
from rest.paths import find
from rest.problems import Conflict

# Nothing more happens to an expense in one of these states.
_SETTLED: Final = (State.REJECTED, State.WITHDRAWN, State.COMPLETED)


class ExpenseSerializer(serializers.ModelSerializer[Expense]):
    amount = serializers.DecimalField(source="approval.amount", max_digits=14, decimal_places=2)
    currency = serializers.CharField(source="approval.currency")
    category = serializers.CharField(source="approval.category")
    submitter = serializers.SlugRelatedField[Any](
        source="approval.submitter", slug_field="username", read_only=True
    )
    decision = DecisionField(source="approval")
    paid_at = serializers.DateTimeField(source="payment.paid_at", default=None)

    class Meta:
        model = Expense
        fields = (
            "id",
            "expense_id",
            "state",
            "amount",
            "currency",
            "merchant",
            "category",
            "description",
            "incurred_on",
            "submitter",
            "workflow_id",
            "created_at",
            "decision",
            "paid_at",
        )


class SubmissionSerializer(serializers.ModelSerializer[Expense]):
    """The body of a submission. Only the plain protocol creates expenses without an amount."""

    amount = serializers.DecimalField(max_digits=14, decimal_places=2, min_value=Decimal("0.01"))
    currency = serializers.CharField(validators=Approval._meta.get_field("currency").validators)
    category = serializers.CharField(max_length=100, required=False, allow_blank=True)
    # Not the model's field: a taken id is a conflict, not a fault of the body.
    expense_id = serializers.CharField(
        required=False, trim_whitespace=False, validators=[validate_opaque_id]
    )

    class Meta:
        model = Expense
        fields = ("expense_id", *services.ExpenseDetails.__dataclass_fields__)


class PaymentSerializer(serializers.ModelSerializer[LedgerEntry]):
    expense_id = serializers.CharField(source="expense.expense_id")

    class Meta:
        model = LedgerEntry
        fields = ("expense_id", "amount", "currency", "paid_at")


class _ExpenseView(ActorView):
    """A view that answers about expenses which the actor sees."""

    def find(self, ref: str) -> Expense:
        return find(services.visible_to(self.actor), ref, "expense_id")

    def answer(self, request: Request, expense: Expense, status: HTTPStatus) -> Response:
        """Answer with the expense and `status`, or with 202 where the client waited in vain."""
        expense, came = _waited(request, expense)
        return Response(ExpenseSerializer(expense).data, status if came else HTTPStatus.ACCEPTED)


class ExpensesView(_ExpenseView, generics.ListAPIView[Expense]):
    """`GET` lists expenses, newest first; `?state=` and `?expense_id=` filter. `POST` submits an
    expense."""

    serializer_class = ExpenseSerializer
    pagination_class = CursorPages

    def get_queryset(self) -> QuerySet[Expense]:
        filters = {
            name: self.request.query_params[name].replace("\0", "\ufffd")
            for name in ("state", "expense_id")
            if name in self.request.query_params
        }
        return services.visible_to(self.actor).filter(**filters).order_by("-created_at", "-id")

    def post(self, request: Request) -> Response:
        if not self.actor.may(services.SUBMIT):
            raise exceptions.PermissionDenied(
                "You may not submit expenses; ask for the Employee group."
            )
        serializer = SubmissionSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        submission = serializer.validated_data
        key = request.headers.get("Idempotency-Key", "")
        chosen = submission.pop("expense_id", None)
        expense_id = chosen or self._id_for(key)
        details = services.ExpenseDetails(**submission)
        act = approvals.Act(self.actor, Route.REST, timezone.now())
        try:
            with refusals_as_problems():
                services.submit_expense(expense_id, details=details, act=act)
            status = HTTPStatus.CREATED
        except services.ExpenseExists as error:
            # With a key, the answer to an identical repeat is the expense of the first request.
            if not key or not services.is_submitted(expense_id, details, self.actor):
                text = idempotency.KEY_REUSED if key and not chosen else str(error)
                raise Conflict(text) from error
            status = HTTPStatus.OK
        expense = services.visible_to(self.actor).get(expense_id=expense_id)
        response = self.answer(request, expense, status)
        response["Location"] = f"/api/v1/expenses/{response.data['id']}/"
        return response

    def _id_for(self, key: str) -> str:
        """Make an expense id for a submission without one: always the same for a person and key,
        so that a repeated request meets the expense of the first."""
        unique = idempotency.digest(self.actor.user, key) if key else uuid.uuid4().hex
        return f"exp_{unique[:20]}"


class ExpenseView(_ExpenseView):
    """`GET` an expense; with `Prefer: wait=N`, once it is settled."""

    def get(self, request: Request, ref: str) -> Response:
        expense, _ = _waited(request, self.find(ref))
        return Response(ExpenseSerializer(expense).data)


class DecideView(_ExpenseView):
    """`POST …/approve`, `…/reject`, `…/withdraw` with `{"reason"}`; with `Prefer: wait=N`, answered
    once an approved expense is paid. Asking again for the verdict that was taken succeeds."""

    def post(self, request: Request, ref: str, verb: str) -> Response:
        seen = services.visible_to(self.actor)
        expense = decide(self, services.KIND, ref, "expense_id", verb, Route.REST, seen)
        return self.answer(request, _reread(expense), HTTPStatus.OK)


class AuditView(_ExpenseView, generics.ListAPIView[AuditEntry]):
    """The audit trail of an expense, oldest first, for everybody who sees the expense (X5)."""

    serializer_class = AuditEntrySerializer
    pagination_class = CursorPages

    def get_queryset(self) -> QuerySet[AuditEntry]:
        return approvals.trail(services.KIND.name, self.find(self.kwargs["ref"]).expense_id)


class PaymentsView(ActorView, generics.ListAPIView[LedgerEntry]):
    """The ledger, newest first: one row for each paid expense."""

    serializer_class = PaymentSerializer
    pagination_class = CursorPages

    def get_queryset(self) -> QuerySet[LedgerEntry]:
        if not self.actor.may("expenses.view_ledgerentry"):
            raise exceptions.PermissionDenied(
                "You may not see the ledger; ask for the Finance group."
            )
        return LedgerEntry.objects.select_related("expense").order_by("-paid_at", "-id")


def _reread(expense: Expense) -> Expense:
    return services.with_approval().get(pk=expense.pk)


def _waited(request: Request, expense: Expense) -> tuple[Expense, bool]:
    return prefer.wait_until(
        request, expense, settled=lambda expense: expense.state in _SETTLED, reread=_reread
    )
