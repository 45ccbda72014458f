"""The REST API of expenses, for programs (requirements E12). JSON; errors are problem details.

A request with `Prefer: wait=N` is answered when the expense is settled (paid, rejected or
withdrawn), after N seconds at the latest: a submission or a decision then with 202. Without it, at
once.
"""

import re
import time
import uuid
from http import HTTPStatus
from typing import Any, Final

from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import Http404
from django.shortcuts import get_object_or_404
from django.utils import timezone
from rest_framework import exceptions, generics, serializers
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access.actors import Actor
from access.text import TEXT_LENGTH, validate_opaque_id
from approvals import services as approvals
from approvals.models import VERDICT_OF_VERB, AuditEntry, Route, Verdict
from expenses import services
from expenses.models import Expense, LedgerEntry, State
from rest import idempotency, prefer
from rest.problems import Conflict, TooMany

_POLL_SECONDS: Final = 0.1
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_FINAL = (State.REJECTED, State.WITHDRAWN, State.COMPLETED)


class DecisionSerializer(serializers.Serializer[Any]):
    verdict = serializers.CharField()
    actor = serializers.CharField()
    route = serializers.CharField()
    reason = serializers.CharField()
    at = serializers.DateTimeField()


class ExpenseSerializer(serializers.ModelSerializer[Expense]):
    submitter = serializers.SlugRelatedField[Any](slug_field="username", read_only=True)
    decision = DecisionSerializer(allow_null=True)
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
    # Not the model's field: a taken id is a conflict, not a fault of the body.
    expense_id = serializers.CharField(
        required=False, trim_whitespace=False, validators=[validate_opaque_id]
    )

    class Meta:
        model = Expense
        fields = ("expense_id", *services.Details.__dataclass_fields__)
        # Only the plain protocol creates expenses without an amount.
        extra_kwargs = {
            "amount": {"required": True, "allow_null": False},
            "currency": {"required": True, "allow_blank": False},
        }


class ReasonSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(
        max_length=TEXT_LENGTH, default="", allow_blank=True, allow_null=True
    )


class PaymentSerializer(serializers.ModelSerializer[LedgerEntry]):
    expense_id = serializers.CharField(source="expense.expense_id")

    class Meta:
        model = LedgerEntry
        fields = ("expense_id", "amount", "currency", "paid_at")


class AuditEntrySerializer(serializers.ModelSerializer[AuditEntry]):
    class Meta:
        model = AuditEntry
        fields = ("event", "actor", "route", "reason", "at")


class NewestFirst(CursorPagination):
    page_size = 100
    page_size_query_param = "page_size"
    max_page_size = 1000

    def decode_cursor(self, request: Request) -> Cursor | None:
        """Read the place in the list, a time in UTC. Raises NotFound where it is none, as for a
        time in year 1 that is in year 0 in UTC, which no database compares."""
        cursor = super().decode_cursor(request)
        if cursor is None or cursor.position is None:
            return cursor
        try:
            position = serializers.DateTimeField().run_validation(cursor.position)
        except exceptions.ValidationError:
            raise exceptions.NotFound(self.invalid_cursor_message) from None
        # The stubs know of numbers only.
        return cursor._replace(position=str(position))  # type: ignore[arg-type]


class ExpensePagination(NewestFirst):
    ordering = ("-created_at", "-id")


class PaymentPagination(NewestFirst):
    ordering = ("-paid_at", "-id")


class AuditPagination(NewestFirst):
    ordering = ("-at", "-id")


class MaySubmit(BasePermission):
    """Reading needs no more than being signed in: everybody sees their own."""

    message = "You may not submit expenses; ask for the Employee group."

    def has_permission(self, request: Request, view: APIView) -> bool:
        return request.method != "POST" or request.user.has_perm(services.SUBMIT)


class MaySeePayments(BasePermission):
    message = "You may not see the ledger; ask for the Finance group."

    def has_permission(self, request: Request, view: APIView) -> bool:
        return request.user.has_perm("expenses.view_ledgerentry")


class ExpensesView(generics.ListAPIView[Expense]):
    """`GET` lists expenses, `?state=` and `?expense_id=` filter; `POST` submits one."""

    serializer_class = ExpenseSerializer
    pagination_class = ExpensePagination
    permission_classes = (*APIView.permission_classes, MaySubmit)

    def get_queryset(self) -> QuerySet[Expense]:
        expenses = services.visible_to(_user(self.request))
        for name in ("state", "expense_id"):
            if name in self.request.query_params:
                value = self.request.query_params[name].replace("\0", "\ufffd")
                expenses = expenses.filter(**{name: value})
        return expenses

    def post(self, request: Request) -> Response:
        serializer = SubmissionSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        submission = serializer.validated_data
        key = request.headers.get("Idempotency-Key", "")
        expense_id = submission.pop("expense_id", None) or _id_for(request, key)
        details = services.Details(**submission)
        try:
            services.submit_expense(
                expense_id,
                details=details,
                actor=_actor(request),
                route=Route.REST,
                now=timezone.now(),
            )
            status = HTTPStatus.CREATED
        except approvals.TooManySubmissions as error:
            raise TooMany(str(error), wait=error.wait_seconds) from error
        except services.AlreadyExists as error:
            # With a key, an identical repeat is answered with what the first one made.
            same = Expense.objects.filter(
                expense_id=expense_id, submitter=request.user.pk, **vars(details)
            )
            if not key or not same.exists():
                raise Conflict(str(error)) from error
            status = HTTPStatus.OK
        expense = services.visible_to(_user(request)).get(expense_id=expense_id)
        response = _answer(request, expense, status)
        response["Location"] = f"/api/v1/expenses/{expense.pk}/"
        return response


class ExpenseView(APIView):
    """`GET` one expense; with `Prefer: wait=N`, once it is decided and, if approved, paid."""

    def get(self, request: Request, ref: str) -> Response:
        expense, _ = _waited(request, _find(services.visible_to(_user(request)), ref))
        return Response(ExpenseSerializer(expense).data)


class DecideView(APIView):
    """`POST …/approve/`, `…/reject/`, `…/withdraw/` with `{"reason"}`; with `Prefer: wait=N`,
    answered once an approved expense is paid. A repeat of the standing verdict succeeds."""

    def post(self, request: Request, ref: str, verb: str) -> Response:
        verdict = VERDICT_OF_VERB[verb]
        body = ReasonSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        actor = _actor(request)
        # Deciding takes a permission, and its refusal is audited; withdrawing is for one's own.
        mine = verdict == Verdict.WITHDRAWN
        try:
            visible = services.visible_to(_user(request)) if mine else Expense.objects.all()
            expense = _find(visible, ref)
        except Http404:
            if mine or actor.may(services.DECIDE):
                raise
            # The same answer as for an expense that is there.
            raise exceptions.PermissionDenied(str(approvals.not_permitted(actor))) from None
        try:
            services.decide_expense(
                expense,
                verdict=verdict,
                actor=actor,
                route=Route.REST,
                reason=body.validated_data["reason"] or "",
                now=timezone.now(),
            )
        except approvals.ReasonMissing as error:
            raise exceptions.ValidationError({"reason": [str(error)]}) from error
        except approvals.Refused as error:
            raise exceptions.PermissionDenied(str(error)) from error
        except approvals.AlreadyDecided as error:
            if error.verdict != verdict:
                raise Conflict(str(error)) from error
        return _answer(request, _reread(expense), HTTPStatus.OK)


class AuditView(generics.ListAPIView[AuditEntry]):
    """The audit trail of an expense, newest first, for whoever sees the expense (X5)."""

    serializer_class = AuditEntrySerializer
    pagination_class = AuditPagination

    def get_queryset(self) -> QuerySet[AuditEntry]:
        expense = _find(services.visible_to(_user(self.request)), self.kwargs["ref"])
        return approvals.trail(services.SUBJECT, expense.expense_id)


class PaymentsView(generics.ListAPIView[LedgerEntry]):
    """The ledger, newest first: one row for each paid expense."""

    queryset = LedgerEntry.objects.select_related("expense")
    serializer_class = PaymentSerializer
    pagination_class = PaymentPagination
    permission_classes = (*APIView.permission_classes, MaySeePayments)


def _find(expenses: QuerySet[Expense], ref: str) -> Expense:
    """By UUID, or by the expense's own id (design rule 7). Raises Http404."""
    if _UUID.fullmatch(ref) and (expense := expenses.filter(pk=ref).first()):
        return expense
    return get_object_or_404(expenses, expense_id=ref)


def _reread(expense: Expense) -> Expense:
    return Expense.objects.select_related("submitter", "decision", "payment").get(pk=expense.pk)


def _user(request: Request) -> User:
    assert isinstance(request.user, User)  # noqa: S101 (the default permission class)
    return request.user


def _actor(request: Request) -> Actor:
    return Actor.of(_user(request))


def _id_for(request: Request, key: str) -> str:
    """An expense id where the client chose none: its own for each key of a user, so that a
    repeated request meets the expense that the first one made."""
    unique = idempotency.digest(_user(request), key) if key else uuid.uuid4().hex
    return f"exp_{unique[:20]}"


def _answer(request: Request, expense: Expense, status: HTTPStatus) -> Response:
    """`status`, or 202 where the client waited for an outcome that has not come."""
    expense, come = _waited(request, expense)
    return Response(ExpenseSerializer(expense).data, status if come else HTTPStatus.ACCEPTED)


def _waited(request: Request, expense: Expense) -> tuple[Expense, bool]:
    """The expense once nothing more will happen to it, or as it is when the client's wait is over
    or half of the threads wait already; and whether the client got what it asked for."""
    with prefer.wait(request) as seconds:
        if seconds is None:
            return expense, True
        end = time.monotonic() + seconds
        while expense.state not in _FINAL and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            expense = _reread(expense)
        return expense, expense.state in _FINAL
