"""What REST answers about requests of every kind: decisions, refusals and the audit trail; and the
routes of approvals under `/api/v1/` (requirements E12)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from django.db.models import Model, QuerySet
from django.http import Http404
from django.utils import timezone
from rest_framework import exceptions, generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from access.actors import Actor
from access.text import TEXT_LENGTH
from access.views import ActorView
from approvals import services
from approvals.kinds import KINDS, Kind
from approvals.models import VERDICT_OF_VERB, Approval, AuditEntry, Route, Verdict
from rest import paths
from rest.paging import CursorPages
from rest.problems import Conflict, TooMany

_Model = TypeVar("_Model", bound=Model)

# The number of approvals in the list.
LISTED: Final = 100


def decision(approval: Approval | None) -> dict[str, Any] | None:
    """Return `{"verdict", "actor", "route", "reason", "at"}`; None where nobody decided."""
    entry = approval.decision if approval else None
    if entry is None:
        return None
    return {
        "verdict": entry.event.upper(),
        "actor": entry.actor,
        "route": entry.route,
        "reason": entry.reason,
        "at": entry.at,
    }


class AuditEntrySerializer(serializers.ModelSerializer[AuditEntry]):
    class Meta:
        model = AuditEntry
        fields = ("event", "actor", "route", "reason", "at")


class _ReasonSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(
        max_length=TEXT_LENGTH, default="", allow_blank=True, allow_null=True
    )


def reason_in(request: Request) -> str:
    """The optional `reason` of the body; "" without one. Raises ValidationError."""
    body = _ReasonSerializer(data=request.data)
    body.is_valid(raise_exception=True)
    return body.validated_data["reason"] or ""


def decide(
    view: ActorView, kind: Kind, ref: str, own_id: str, verb: str, route: Route, seen: QuerySet[Any]
) -> Any:
    """Decide the request of this kind that the path of `view` names, and return it. Asking again
    for the verdict that was taken succeeds."""
    verdict = VERDICT_OF_VERB[verb]
    with refusals_as_problems(verdict):
        every = kind.model._default_manager.select_related("approval")
        found = _find_to_decide(view.actor, [kind], verdict, seen, every, ref, own_id)
        act = services.Act(view.actor, route, timezone.now(), reason_in(view.request))
        services.decide(services.approval_of(kind, found, verdict, act), verdict, act)
    return found


def _find_to_decide(
    actor: Actor,
    kinds: Iterable[Kind],
    verdict: Verdict,
    seen: QuerySet[_Model],
    every: QuerySet[_Model],
    *ref: str,
) -> _Model:
    """Find the record (:func:`rest.paths.find`).

    People withdraw what they see. A refused approval or rejection is audited, so it finds every
    record; an actor who may not decide gets the same NotPermitted for a record that exists and for
    one that does not (requirements X10).
    """
    if verdict == Verdict.WITHDRAWN:
        return paths.find(seen, *ref)
    try:
        return paths.find(every, *ref)
    except Http404:
        for kind in kinds:
            services.check_may_decide(actor, kind)
        raise


@contextmanager
def refusals_as_problems(verdict: Verdict | None = None) -> Iterator[None]:
    """Translate what services of a request raise into problem details.

    `verdict` is what the client asks for: asking again for the verdict that was taken succeeds.
    """
    try:
        yield
    except services.ReasonMissing as error:
        raise exceptions.ValidationError({"reason": [str(error)]}) from error
    except services.Refused as error:
        raise exceptions.PermissionDenied(str(error)) from error
    except services.AlreadyDecided as error:
        if error.verdict != verdict:
            raise Conflict(str(error)) from error
    except services.WrongState as error:
        raise Conflict(str(error)) from error
    except services.TooManySubmissions as error:
        raise TooMany(str(error), wait=error.wait_seconds) from error


class DecisionField(serializers.Field[Approval, Any, Any, Approval]):
    """The :func:`decision` of an approval."""

    def __init__(self, **options: Any) -> None:
        super().__init__(read_only=True, **options)

    def to_representation(self, value: Approval) -> dict[str, Any] | None:
        return decision(value)


class ApprovalSerializer(serializers.ModelSerializer[Approval]):
    submitter = serializers.SlugRelatedField[Any](slug_field="username", read_only=True)
    decision = DecisionField(source="*")
    state = serializers.SerializerMethodField()

    class Meta:
        model = Approval
        fields = (
            *("id", "kind", "reference", "state", "title", "category", "amount", "currency"),
            *("submitter", "opened_at", "expires_at", "decision"),
        )

    def get_state(self, approval: Approval) -> str:
        return approval.verdict or "WAITING"


class _ApprovalView(ActorView):
    """A view that answers about approvals which the actor sees."""

    def find(self, ref: str) -> Approval:
        return paths.find(services.visible_to(self.actor), ref)


class ApprovalsView(_ApprovalView):
    """`GET` what the actor may decide now: first what expires soonest, then the oldest."""

    def get(self, request: Request) -> Response:
        assert self.actor.user is not None  # noqa: S101 (nobody is anonymous under /api/v1/)
        waiting = Approval.objects.waiting_for(self.actor.user).select_related("submitter")
        return Response({"results": ApprovalSerializer(waiting[:LISTED], many=True).data})


class ApprovalView(_ApprovalView):
    """`GET` an approval."""

    def get(self, request: Request, ref: str) -> Response:
        return Response(ApprovalSerializer(self.find(ref)).data)


class DecideView(_ApprovalView):
    """`POST …/approve`, `…/reject`, `…/withdraw` with `{"reason"}`, for any kind of request."""

    def post(self, request: Request, ref: str, verb: str) -> Response:
        verdict, seen = VERDICT_OF_VERB[verb], services.visible_to(self.actor)
        with refusals_as_problems(verdict):
            every, kinds = Approval.objects.all(), KINDS.values()
            approval = _find_to_decide(self.actor, kinds, verdict, seen, every, ref)
            act = services.Act(self.actor, Route.REST, timezone.now(), reason_in(request))
            services.decide(approval, verdict, act)
        return Response(ApprovalSerializer(self.find(ref)).data)


class AuditView(_ApprovalView, generics.ListAPIView[AuditEntry]):
    """The audit trail of an approval's request, oldest first (X5)."""

    serializer_class = AuditEntrySerializer
    pagination_class = CursorPages

    def get_queryset(self) -> QuerySet[AuditEntry]:
        approval = self.find(self.kwargs["ref"])
        return services.trail(approval.kind, approval.reference)
