"""Orders over HTTP (requirements O7): the same views at the root, where
EXPENSES_PROTOCOL_ACCESS governs, and under `/api/v1/`. JSON; errors are problem details.

People see their own orders, or all with the permission to view or to carry them; others are not
found (requirements X10).
"""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import Http404
from django.utils import timezone
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from access import open_access
from access.text import ID_LENGTH, TEXT_LENGTH, is_opaque_id, validate_opaque_id
from access.views import ActorView
from approvals import services as approvals
from approvals.models import VERDICT_OF_VERB, Route
from orders import fulfilment, integrations, services
from orders.models import Order, OrderStep, State
from rest import idempotency
from rest.problems import Conflict, TooMany
from temporal import client, inspection, loop
from worker import contracts

LARGEST_QUANTITY: Final = 1_000_000
LARGEST_ORDER: Final = 100
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class ItemSerializer(serializers.Serializer[Any]):
    product_id = serializers.CharField(trim_whitespace=False, validators=[validate_opaque_id])
    quantity = serializers.IntegerField(min_value=1, max_value=LARGEST_QUANTITY)


class SubmissionSerializer(serializers.Serializer[Any]):
    """One product with its quantity, or several as `lines`; validated, it is always `lines`."""

    product_id = serializers.CharField(
        required=False, trim_whitespace=False, validators=[validate_opaque_id]
    )
    quantity = serializers.IntegerField(required=False, min_value=1, max_value=LARGEST_QUANTITY)
    lines = serializers.ListField(
        child=ItemSerializer(), required=False, allow_empty=False, max_length=LARGEST_ORDER
    )
    customer_id = serializers.CharField(max_length=ID_LENGTH)
    payment_method = serializers.CharField(max_length=ID_LENGTH)
    customer_name = serializers.CharField(max_length=200, default="", allow_blank=True)
    customer_email = serializers.EmailField(max_length=254, default="", allow_blank=True)
    shipping_address = serializers.CharField(max_length=TEXT_LENGTH, default="", allow_blank=True)
    order_id = serializers.CharField(
        required=False, trim_whitespace=False, validators=[validate_opaque_id]
    )
    workflow_id = serializers.CharField(
        required=False,
        allow_null=True,
        trim_whitespace=False,
        validators=[validate_opaque_id],
    )
    fail_at = serializers.ChoiceField(choices=[*contracts.FAIL_AT, ""], default="", allow_null=True)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        single = [name for name in ("product_id", "quantity") if name in attrs]
        if "lines" in attrs and single:
            raise serializers.ValidationError(
                {single[0]: "Give either product_id and quantity, or lines."}
            )
        if "lines" not in attrs and len(single) < 2:
            missing = "quantity" if "product_id" in attrs else "product_id"
            raise serializers.ValidationError(
                {missing: "This field is required, unless there are lines."}
            )
        if single:
            attrs["lines"] = [{name: attrs.pop(name) for name in single}]
        attrs["fail_at"] = attrs["fail_at"] or ""
        return attrs


class ReasonSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(
        max_length=TEXT_LENGTH, default="", allow_blank=True, allow_null=True
    )


class FilterSerializer(serializers.Serializer[Any]):
    """How a list of orders is narrowed. A time without its zone is in UTC."""

    status = serializers.ChoiceField(choices=State.choices, required=False)
    before = serializers.DateTimeField(required=False)


class StepSerializer(serializers.Serializer[Any]):
    """What the worker sends with a step. Nothing in it decides for a person."""

    attempt = serializers.IntegerField(min_value=1)
    reason = serializers.CharField(required=False, allow_blank=True)
    failed_step = serializers.ChoiceField(
        required=False, allow_blank=True, choices=fulfilment.STEPS
    )
    cancelled = serializers.BooleanField(required=False)


class IntegrationFailed(exceptions.APIException):
    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_code = "integration_failed"
    wait = 2


class _OfOrders(ActorView):
    """A view that finds orders for whoever asks."""

    def visible(self) -> QuerySet[Order]:
        """Those that the actor sees, on every route alike (requirements X10)."""
        user = self.actor.user
        return Order.objects.all() if user is None else services.visible_to(user)

    def find(self, ref: str, orders: QuerySet[Order]) -> Order:
        """By its UUID, or by its workflow id. Raises Http404."""
        if not is_opaque_id(ref, 200):
            raise Http404
        # The UUID first: a workflow id can be chosen to look like that of another order (X7).
        found = orders.filter(pk=ref).first() if _UUID.fullmatch(ref) else None
        found = found or orders.filter(workflow_id=ref).first()
        if found is None:
            raise exceptions.NotFound(f"There is no order with the workflow id {ref}.")
        return found

    @property
    def route(self) -> Route:
        return Route.PROTOCOL if self.at_root else Route.REST


class OrderView(_OfOrders):
    """`GET` one order."""

    def get(self, request: Request, ref: str) -> Response:
        return Response(_order(self.find(ref, self.visible())))


class OrdersView(_OfOrders):
    """`GET` lists orders, the newest first; `POST` submits one."""

    def get(self, request: Request) -> Response:
        orders = self.visible()
        narrowed = FilterSerializer(data=request.query_params.dict())
        narrowed.is_valid(raise_exception=True)
        if status := narrowed.validated_data.get("status"):
            orders = orders.filter(state=status)
        if before := narrowed.validated_data.get("before"):
            orders = orders.filter(created_at__lt=before)
        return Response([_summary(order) for order in orders[: services.LISTED]])

    def post(self, request: Request) -> Response:
        if not self.actor.may(services.SUBMIT):
            raise exceptions.PermissionDenied(
                "You may not submit orders; ask for the Employee group."
            )
        body = SubmissionSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        order = self.submit(request, body.validated_data)
        response = Response(
            {
                "workflow_id": order.workflow_id,
                "order_id": order.order_id,
                "status": "started",
            },
            HTTPStatus.CREATED,
        )
        response["Location"] = f"{'' if self.at_root else '/api/v1'}/orders/{order.pk}"
        return response

    def submit(self, request: Request, wanted: dict[str, Any]) -> Order:
        fail_at = wanted.pop("fail_at")
        if fail_at and not open_access.is_local_installation(request._request):
            raise exceptions.ValidationError(
                {"fail_at": ["Failures are injected in the local mode only; leave it out."]}
            )
        key = request.headers.get("Idempotency-Key", "")
        order_id = wanted.pop("order_id", None) or _id_for(self.actor.user, key)
        named = wanted.pop("workflow_id", None)
        lines = wanted.pop("lines")
        submission: dict[str, Any] = {
            "workflow_id": named or contracts.order_workflow_id(order_id),
            "items": [integrations.Item(**line) for line in lines],
            "details": services.Details(**wanted),
        }
        if key and (before := _same(order_id, self.actor.user, **submission)):
            return before
        try:
            if named and not _is_free(named):
                raise services.AlreadyExists(
                    "workflow_id",
                    f"The workflow id {named} is in use. Choose another, or leave it out.",
                )
            return services.submit_order(
                order_id,
                **submission,
                actor=self.actor,
                route=self.route,
                now=timezone.now(),
                fail_at=fail_at,
            )
        except approvals.TooManySubmissions as error:
            raise TooMany(str(error), wait=error.wait_seconds) from error
        except services.NotOrderable as error:
            field = "lines" if "lines" in request.data else "product_id"
            raise exceptions.ValidationError({field: [str(error)]}) from error
        except services.AlreadyExists as error:
            if key and (before := _same(order_id, self.actor.user, **submission)):
                return before
            raise Conflict(str(error)) from error


class StatusView(_OfOrders):
    """`GET` how an order stands: what `get_status` of its workflow tells, from the records, which
    the workflow goes by; they answer while Temporal does not."""

    def get(self, request: Request, ref: str) -> Response:
        return Response(_status(self.find(ref, self.visible())))


class DecideView(_OfOrders):
    """`POST …/approve`, `…/reject` with `{"reason"}`. A repeat of the standing verdict succeeds."""

    def post(self, request: Request, ref: str, verb: str) -> Response:
        verdict = VERDICT_OF_VERB[verb]
        # Deciding takes a permission, and its refusal is audited.
        try:
            order = self.find(ref, Order.objects.all())
        except exceptions.NotFound:
            if self.actor.may(services.DECIDE):
                raise
            # The same answer as for an order that is there.
            raise exceptions.PermissionDenied(str(approvals.not_permitted(self.actor))) from None
        try:
            services.decide_order(
                order,
                verdict=verdict,
                actor=self.actor,
                route=self.route,
                reason=_reason(request),
                now=timezone.now(),
            )
        except approvals.ReasonMissing as error:
            raise exceptions.ValidationError({"reason": [str(error)]}) from error
        except approvals.Refused as error:
            raise exceptions.PermissionDenied(str(error)) from error
        except approvals.AlreadyDecided as error:
            if error.verdict != verdict:
                raise Conflict(str(error)) from error
        except approvals.WrongState as error:
            raise Conflict(str(error)) from error
        return Response(_status(order))


class CancelView(_OfOrders):
    """`POST …/cancel` with an optional `{"reason"}`: what was done is undone. 202 where that is
    under way."""

    def post(self, request: Request, ref: str) -> Response:
        order = self.find(ref, self.visible())
        try:
            services.cancel_order(
                order,
                actor=self.actor,
                route=self.route,
                reason=_reason(request),
                now=timezone.now(),
            )
        except approvals.Refused as error:
            raise exceptions.PermissionDenied(str(error)) from error
        except approvals.WrongState as error:
            raise Conflict(str(error)) from error
        order.refresh_from_db()
        ended = order.state == State.CANCELLED
        return Response(_status(order), HTTPStatus.OK if ended else HTTPStatus.ACCEPTED)


class RetryView(_OfOrders):
    """`POST …/retry`: a new run for a failed order; 202."""

    def post(self, request: Request, ref: str) -> Response:
        order = self.find(ref, self.visible())
        try:
            services.retry_order(order, actor=self.actor, route=self.route, now=timezone.now())
        except approvals.Refused as error:
            raise exceptions.PermissionDenied(str(error)) from error
        except approvals.WrongState as error:
            raise Conflict(str(error)) from error
        return Response(_status(order), HTTPStatus.ACCEPTED)


class AuditView(_OfOrders):
    """The audit trail of an order, oldest first, for whoever sees the order (X5)."""

    def get(self, request: Request, ref: str) -> Response:
        trail = approvals.trail(services.SUBJECT, self.find(ref, self.visible()).order_id)
        return Response(list(trail.values("event", "actor", "route", "reason", "at")))


class StepView(_OfOrders):
    """`POST …/steps/<step>`: the worker has a step carried out. 409 where the workflow must not go
    on with it, with the reason; any other failure is a 5xx, to be asked again."""

    def post(self, request: Request, ref: str, step: str) -> Response:
        if not self.actor.may(services.CARRY):
            raise exceptions.PermissionDenied("Only the worker carries out steps.")
        order = self.find(ref, Order.objects.all())
        key = request.headers.get("Idempotency-Key", "")
        if contracts.workflow_id_of_key(key) != order.workflow_id:
            raise Conflict(f"{order.order_id} belongs to another workflow.")
        body = StepSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        details = dict(body.validated_data)
        try:
            answer = fulfilment.carry_out(
                order,
                step,
                attempt=details.pop("attempt"),
                details=details,
                actor=self.actor,
                now=timezone.now(),
            )
        except fulfilment.UnknownStep as error:
            raise exceptions.NotFound(str(error)) from error
        except (fulfilment.NotNow, integrations.Refused) as error:
            raise Conflict(str(error)) from error
        except fulfilment.OutcomeUnknown as error:
            raise IntegrationFailed(str(error)) from error
        return Response(answer)


class InventoryView(ActorView):
    """`GET` the stock: `{"product_id", "available", "reserved", …}` for each product."""

    def get(self, request: Request) -> Response:
        _check_may_view(self, "orders.view_stockitem")
        return Response(integrations.inventory().snapshot())


class ChargeView(ActorView):
    """`GET` one charge, by its id."""

    def get(self, request: Request, charge_id: str) -> Response:
        _check_may_view(self, "orders.view_charge")
        charge = is_opaque_id(charge_id) and integrations.payments().find(charge_id)
        if not charge:
            raise exceptions.NotFound(f"There is no charge {charge_id}.")
        return Response(charge)


class WarehouseView(ActorView):
    """`GET` what the warehouse was told to send."""

    def get(self, request: Request) -> Response:
        _check_may_view(self, "orders.view_warehouserecord")
        return Response(integrations.warehouse().snapshot())


class SnapshotView(ActorView):
    """`GET` orders, inventory, payments and warehouse as they were at one moment."""

    def get(self, request: Request) -> Response:
        for name in ("order", "stockitem", "charge", "warehouserecord"):
            _check_may_view(self, f"orders.view_{name}")
        now = services.snapshot()
        return Response({**now._asdict(), "orders": [_summary(order) for order in now.orders]})


def _summary(order: Order) -> dict[str, Any]:
    return {
        "id": order.pk,
        "workflow_id": order.workflow_id,
        "order_id": order.order_id,
        "status": order.state,
        "total": str(order.total),
        "currency": order.currency,
        "needs_approval": order.needs_approval,
        "attempt": order.attempt,
        "failure_reason": order.failure_reason or None,
        "created_at": order.created_at,
        "ended_at": order.ended_at,
    }


def _order(order: Order) -> dict[str, Any]:
    decision = order.decision
    return {
        **_summary(order),
        "customer_id": order.customer_id,
        "customer_name": order.customer_name,
        "customer_email": order.customer_email,
        "shipping_address": order.shipping_address,
        "payment_method": order.payment_method,
        "submitter": order.submitter and order.submitter.get_username(),
        "expires_at": order.expires_at,
        "lines": [
            {
                "product_id": line.product_id,
                "name": line.name,
                "quantity": line.quantity,
                "unit_price": str(line.unit_price),
            }
            for line in order.lines.all()
        ],
        "decision": decision
        and {
            "verdict": decision.verdict,
            "actor": decision.actor,
            "route": decision.route,
            "reason": decision.reason,
            "at": decision.at,
        },
    }


def _status(order: Order) -> dict[str, Any]:
    """As `get_status` of the workflow, and what the steps answered."""
    order.refresh_from_db()
    steps = list(order.steps.filter(attempt=order.attempt))
    completed = [step for step in steps if step.status == OrderStep.Status.COMPLETED]
    failed = {step.name for step in steps if step.status == OrderStep.Status.FAILED}
    decision = order.decision
    approval = "not_required"
    if order.needs_approval:
        undecided = "pending" if order.state == State.PENDING else "undecided"
        approval = decision.verdict.lower() if decision else undecided
    return {
        "workflow_id": order.workflow_id,
        "order_id": order.order_id,
        "status": order.state,
        "attempt": order.attempt,
        "approval_status": approval,
        "approval_reason": decision.reason if decision else "",
        "steps_completed": [step.name for step in completed if step.name not in failed],
        "current_step": _current_step(order, steps),
        "compensation_triggered": order.state == State.COMPENSATING
        or any(step.status == OrderStep.Status.COMPENSATED for step in steps),
        "failure_reason": order.failure_reason or None,
        "events": [
            {
                "step": step.name,
                "status": step.status,
                "message": step.message,
                "timestamp": step.at,
            }
            for step in steps
        ],
        "results": {step.name: step.result for step in completed if step.result},
    }


def _current_step(order: Order, steps: list[OrderStep]) -> str | None:
    """The step that is under way; None where the order has ended."""
    if order.state == State.PENDING:
        return contracts.AWAIT_APPROVAL
    if order.state == State.COMPENSATING:
        return contracts.BEGIN_COMPENSATION
    if order.state != State.RUNNING:
        return None
    done = {step.name for step in steps}
    left = [name for name, _ in contracts.SAGA if name not in done]
    return left[0] if left else contracts.COMPLETE_ORDER


def _check_may_view(view: ActorView, permission: str) -> None:
    if not view.actor.may(permission):
        raise exceptions.PermissionDenied(f"You may not see this; it takes {permission}.")


def _reason(request: Request) -> str:
    body = ReasonSerializer(data=request.data)
    body.is_valid(raise_exception=True)
    return body.validated_data["reason"] or ""


def _id_for(user: User | None, key: str) -> str:
    """An order id: its own for each key of a user, so that a repeated request meets the order that
    the first one made."""
    if not key:
        return services.new_order_id()
    return f"ord_{idempotency.digest(user, key)[:12]}"


def _same(
    order_id: str,
    submitter: User | None,
    *,
    workflow_id: str,
    items: Sequence[integrations.Item],
    details: services.Details,
) -> Order | None:
    """The order that an identical request made."""
    order = Order.objects.filter(
        order_id=order_id, workflow_id=workflow_id, submitter=submitter, **vars(details)
    ).first()
    if order is None:
        return None
    ordered = dict(order.lines.values_list("product_id", "quantity"))
    return order if ordered == services.quantities(items) else None


def _is_free(workflow_id: str) -> bool:
    """Whether neither an order nor another workflow of Temporal has the id, as far as that
    answers."""
    if Order.objects.filter(workflow_id=workflow_id).exists():
        return False
    try:
        run = loop.ask(
            lambda temporal: inspection.run_of(temporal, workflow_id), seconds=client.CALL_SECONDS
        )
    except client.Unreachable:
        return True
    return run is None
