"""The HTTP API of orders (requirements O7, E12): the same views under `/api/v1/` and at the root,
where EXPENSES_PROTOCOL_ACCESS governs. JSON; errors are problem details.

The root keeps the shapes of the published samples: an order's state is called `status`, lists are
plain arrays, and a path names an order by its UUID or its workflow id. Under `/api/v1/` it is
`state`, lists have pages, and a path names an order by its UUID or its order id.

With `Prefer: wait=N` a request is answered once the order has ended, or after N seconds; a
submission or a decision whose order has not ended by then gets 202.
"""

from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final

from django.utils import timezone
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from access import open_access
from access.text import ID_LENGTH, TEXT_LENGTH, is_opaque_id, validate_opaque_id
from access.views import ActorView
from approvals import services as approvals
from approvals.api import (
    AuditEntrySerializer,
    decide,
    decision,
    reason_in,
    refusals_as_problems,
)
from approvals.models import Route
from orders import fulfilment, integrations, services
from orders.models import FINAL, Order, OrderLine, OrderStep, State
from rest import prefer
from rest.paging import CursorPages
from rest.paths import find
from rest.problems import Conflict
from worker import contracts

LARGEST_QUANTITY: Final = 1_000_000
LARGEST_ORDER: Final = 100


class IdField(serializers.CharField):
    """An opaque id, never trimmed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_whitespace=False, validators=[validate_opaque_id], **options)


class ItemSerializer(serializers.Serializer[Any]):
    product_id = IdField()
    quantity = serializers.IntegerField(min_value=1, max_value=LARGEST_QUANTITY)


class SubmissionSerializer(serializers.Serializer[Any]):
    """One product with its quantity, or several as `lines`. The validated data has `lines`."""

    product_id = IdField(required=False)
    quantity = serializers.IntegerField(required=False, min_value=1, max_value=LARGEST_QUANTITY)
    lines = serializers.ListField(
        child=ItemSerializer(), required=False, allow_empty=False, max_length=LARGEST_ORDER
    )
    customer_id = serializers.CharField(max_length=ID_LENGTH)
    payment_method = serializers.CharField(max_length=ID_LENGTH)
    customer_name = serializers.CharField(max_length=200, default="", allow_blank=True)
    customer_email = serializers.EmailField(max_length=254, default="", allow_blank=True)
    shipping_address = serializers.CharField(max_length=TEXT_LENGTH, default="", allow_blank=True)
    order_id = IdField(required=False)
    workflow_id = IdField(required=False, allow_null=True)
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
        return attrs

    def submission(self) -> services.Submission:
        """Return the validated data."""
        data = dict(self.validated_data)
        lines = data.pop("lines")
        chosen = {name: data.pop(name, "") or "" for name in ("order_id", "workflow_id", "fail_at")}
        return services.Submission(
            items=[integrations.Item(**line) for line in lines],
            customer=services.Customer(**data),
            **chosen,
        )


class LineSerializer(serializers.ModelSerializer[OrderLine]):
    class Meta:
        model = OrderLine
        fields = ("product_id", "name", "quantity", "unit_price")


class RootFilterSerializer(serializers.Serializer[Any]):
    """The filters of the list at the root. A time without a zone is in UTC."""

    status = serializers.ChoiceField(choices=State.choices, required=False)
    before = serializers.DateTimeField(required=False)


class StepSerializer(serializers.Serializer[Any]):
    """The worker's request for a step. Nothing in it decides for a person."""

    attempt = serializers.IntegerField(min_value=1)
    reason = serializers.CharField(required=False, allow_blank=True)
    failed_step = serializers.ChoiceField(
        required=False, allow_blank=True, choices=list(contracts.STEPS)
    )
    cancelled = serializers.BooleanField(required=False)


class IntegrationFailed(exceptions.APIException):
    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_code = "integration_failed"
    wait = 2


class _OrdersView(ActorView):
    """A view that answers about orders which the actor sees (requirements X10)."""

    @property
    def route(self) -> Route:
        return Route.PROTOCOL if self.at_root else Route.REST

    @property
    def own_id(self) -> str:
        """The field by which a path names an order, beside its UUID."""
        return "workflow_id" if self.at_root else "order_id"

    def act(self, request: Request) -> approvals.Act:
        """Return what the request asks for, with the `reason` of its body."""
        return approvals.Act(self.actor, self.route, timezone.now(), reason_in(request))

    def find(self, ref: str) -> Order:
        return find(services.visible_to(self.actor), ref, self.own_id)

    def worded(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the answer with the samples' word for `state` at the root."""
        word = "status" if self.at_root else "state"
        return {word if name == "state" else name: value for name, value in answer.items()}

    def acted(self, order: Order) -> dict[str, Any]:
        """Return the answer to an action on the order."""
        return self.worded(_status(order) if self.at_root else _order(order))


class OrderView(_OrdersView):
    """`GET` an order; with `Prefer: wait=N`, once it has ended."""

    def get(self, request: Request, ref: str) -> Response:
        order, _ = _waited(request, self.find(ref))
        return Response(self.worded(_order(order)))


class OrdersView(_OrdersView):
    """`GET` lists orders, newest first. `POST` submits an order."""

    def get(self, request: Request) -> Response:
        orders = services.visible_to(self.actor)
        if not self.at_root:
            filters = {
                name: request.query_params[name].replace("\0", "\ufffd")
                for name in ("state", "order_id")
                if name in request.query_params
            }
            pages = CursorPages()
            page = pages.paginate_queryset(
                orders.filter(**filters).order_by("-created_at", "-id"), request, view=self
            )
            return pages.get_paginated_response([_summary(order) for order in page or ()])
        body = RootFilterSerializer(data=request.query_params.dict())
        body.is_valid(raise_exception=True)
        if status := body.validated_data.get("status"):
            orders = orders.filter(state=status)
        if before := body.validated_data.get("before"):
            orders = orders.filter(created_at__lt=before)
        return Response([self.worded(_summary(order)) for order in orders[: services.LISTED]])

    def post(self, request: Request) -> Response:
        with refusals_as_problems():
            services.check_may_submit(self.actor)
            body = SubmissionSerializer(data=request.data)
            body.is_valid(raise_exception=True)
            try:
                order = services.submit_order(
                    body.submission(),
                    approvals.Act(self.actor, self.route, timezone.now()),
                    may_inject_failure=open_access.is_local_installation(request._request),
                    key=request.headers.get("Idempotency-Key", ""),
                )
            except services.IdInUse as error:
                raise Conflict(str(error)) from error
            except services.NotSubmitted as error:
                one_product = error.field == "lines" and "lines" not in request.data
                field = "product_id" if one_product else error.field
                raise exceptions.ValidationError({field: [str(error)]}) from error
        order, came = _waited(request, order)
        ids = {"workflow_id": order.workflow_id, "order_id": order.order_id}
        return Response(
            {**ids, "status": "started"} if self.at_root else _order(order),
            HTTPStatus.CREATED if came else HTTPStatus.ACCEPTED,
            headers={"Location": f"{'' if self.at_root else '/api/v1'}/orders/{order.pk}"},
        )


class StatusView(_OrdersView):
    """`GET` the state of an order, as its workflow's query `get_status`, with the timeline. It is
    read from the records, so it is answered while Temporal is down too."""

    def get(self, request: Request, ref: str) -> Response:
        return Response(self.worded(_status(self.find(ref))))


class DecideView(_OrdersView):
    """`POST …/approve`, `…/reject` with `{"reason"}`; with `Prefer: wait=N`, answered once the
    order has ended. Asking again for the verdict that was taken succeeds."""

    def post(self, request: Request, ref: str, verb: str) -> Response:
        seen = services.visible_to(self.actor)
        order = decide(self, services.KIND, ref, self.own_id, verb, self.route, seen)
        order, came = _waited(request, order)
        return Response(self.acted(order), HTTPStatus.OK if came else HTTPStatus.ACCEPTED)


class _OperateView(_OrdersView):
    """`POST` with an optional `{"reason"}`: 200 if the order has ended, otherwise 202."""

    def operate(self, order: Order, act: approvals.Act) -> None:
        raise NotImplementedError

    def post(self, request: Request, ref: str) -> Response:
        order = self.find(ref)
        with refusals_as_problems():
            self.operate(order, self.act(request))
        order, _ = _waited(request, order)
        ended = order.state in FINAL
        return Response(self.acted(order), HTTPStatus.OK if ended else HTTPStatus.ACCEPTED)


class CancelView(_OperateView):
    """`POST …/cancel`: cancel the order and undo its steps."""

    def operate(self, order: Order, act: approvals.Act) -> None:
        services.cancel_order(order, act)


class RetryView(_OperateView):
    """`POST …/retry`: carry out a failed order again."""

    def operate(self, order: Order, act: approvals.Act) -> None:
        services.retry_order(order, act)


class AuditView(_OrdersView):
    """The audit trail of an order, oldest first, for everybody who sees the order (X5)."""

    def get(self, request: Request, ref: str) -> Response:
        trail = approvals.trail(services.KIND.name, self.find(ref).order_id)
        if self.at_root:
            return Response(AuditEntrySerializer(trail, many=True).data)
        pages = CursorPages()
        page = pages.paginate_queryset(trail, request, view=self)
        return pages.get_paginated_response(AuditEntrySerializer(page, many=True).data)


class StepView(_OrdersView):
    """`POST …/steps/<step>`: carry out a step for the worker. 409 says why the workflow must not
    continue; after any other failure, which is a 5xx, the worker asks again."""

    def post(self, request: Request, ref: str, step: str) -> Response:
        if not self.actor.may(services.CARRY):
            raise exceptions.PermissionDenied("Only the worker carries out steps.")
        order = self.find(ref)
        key = request.headers.get("Idempotency-Key", "")
        if contracts.workflow_id_of_key(key) != order.workflow_id:
            raise Conflict(f"{order.order_id} belongs to another workflow.")
        body = StepSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        asked = contracts.CompensationRequest(str(order.pk), **body.validated_data)
        act = approvals.Act(self.actor, Route.WORKFLOW, timezone.now())
        try:
            answer = asdict(fulfilment.carry_out(order, step, asked, act))
        except fulfilment.UnknownStep as error:
            raise exceptions.NotFound(str(error)) from error
        except (fulfilment.NotNow, integrations.Declined) as error:
            raise Conflict(str(error)) from error
        except fulfilment.OutcomeUnknown as error:
            raise IntegrationFailed(str(error)) from error
        return Response({name: said for name, said in answer.items() if said is not None})


class InventoryView(ActorView):
    """`GET` the stock: `{"product_id", "available", "reserved", …}` for each product."""

    def get(self, request: Request) -> Response:
        _check_may_view(self, services.VIEW_STOCK)
        return Response(integrations.inventory().snapshot())


class ChargesView(ActorView):
    """`GET` the newest charges."""

    def get(self, request: Request) -> Response:
        _check_may_view(self, services.VIEW_CHARGES)
        return Response(integrations.payments().snapshot())


class ChargeView(ActorView):
    """`GET` a charge by its id."""

    def get(self, request: Request, charge_id: str) -> Response:
        _check_may_view(self, services.VIEW_CHARGES)
        charge = is_opaque_id(charge_id) and integrations.payments().find(charge_id)
        if not charge:
            raise exceptions.NotFound(f"There is no charge {charge_id}.")
        return Response(charge)


class WarehouseView(ActorView):
    """`GET` the warehouse's newest records."""

    def get(self, request: Request) -> Response:
        _check_may_view(self, services.VIEW_WAREHOUSE)
        return Response(integrations.warehouse().snapshot())


class SnapshotView(_OrdersView):
    """`GET` orders, inventory, payments and warehouse, read one after another."""

    def get(self, request: Request) -> Response:
        _check_may_view(self, *services.SNAPSHOT_PERMISSIONS)
        found = services.snapshot()
        orders = [self.worded(_summary(order)) for order in found.orders]
        return Response({**found._asdict(), "orders": orders})


def _summary(order: Order) -> dict[str, Any]:
    return {
        "id": order.pk,
        "workflow_id": order.workflow_id,
        "order_id": order.order_id,
        "state": order.state,
        "total": str(order.total),
        "currency": order.currency,
        "needs_approval": order.approval_id is not None,
        "attempt": order.attempt,
        "failure_reason": order.failure_reason or None,
        "created_at": order.created_at,
        "ended_at": order.ended_at,
    }


def _order(order: Order) -> dict[str, Any]:
    return {
        **_summary(order),
        **{name: getattr(order, name) for name in services.CUSTOMER_FIELDS},
        "submitter": order.submitter and order.submitter.get_username(),
        "expires_at": order.expires_at,
        "lines": LineSerializer(order.lines, many=True).data,
        "decision": decision(order.approval),
    }


def _status(order: Order) -> dict[str, Any]:
    """Return the same as `get_status` of the workflow, the decision, and the results of the
    steps."""
    steps = list(order.steps.filter(attempt=order.attempt))
    events = [contracts.Event(one.name, one.status, one.message, one.at) for one in steps]
    status = asdict(
        contracts.order_status(
            order.order_id, order.state, order.step_names, events, order.failure_reason or None
        )
    )
    taken = decision(order.approval)
    approval = "not_required"
    if order.approval is not None:
        ended = "undecided" if order.approval.verdict else "pending"
        approval = taken["verdict"].lower() if taken else ended
    return {
        "workflow_id": order.workflow_id,
        "order_id": order.order_id,
        "state": status.pop("status"),
        "attempt": order.attempt,
        "approval_status": approval,
        "approval_reason": taken["reason"] if taken else "",
        **status,
        "results": {
            step.name: step.result
            for step in steps
            if step.result and step.status == OrderStep.Status.COMPLETED
        },
    }


def _check_may_view(view: ActorView, *permissions: str) -> None:
    for permission in permissions:
        if not view.actor.may(permission):
            raise exceptions.PermissionDenied(f"You may not see this; it takes {permission}.")


def _reread(order: Order) -> Order:
    return services.with_approval().get(pk=order.pk)


def _waited(request: Request, order: Order) -> tuple[Order, bool]:
    return prefer.wait_until(
        request, _reread(order), settled=lambda order: order.state in FINAL, reread=_reread
    )
