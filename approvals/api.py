"""What REST answers about requests of every kind: decisions, refusals and the audit trail."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db.models import Model, QuerySet
from django.http import Http404
from rest_framework import exceptions, serializers
from rest_framework.request import Request

from access.actors import Actor
from access.text import TEXT_LENGTH
from approvals import services
from approvals.models import AuditEntry, Verdict
from rest import paths
from rest.problems import Conflict, TooMany

_Model = TypeVar("_Model", bound=Model)


class DecisionSerializer(serializers.Serializer[Any]):
    verdict = serializers.CharField()
    actor = serializers.CharField()
    route = serializers.CharField()
    reason = serializers.CharField()
    at = serializers.DateTimeField()


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


def find_to_decide(
    records: QuerySet[_Model], ref: str, *own_ids: str, actor: Actor, permission: str
) -> _Model:
    """Find the record, as :func:`rest.paths.find`, among all `records`.

    An actor without the permission to decide gets the same PermissionDenied for a record that
    exists and for one that does not (requirements X10).
    """
    try:
        return paths.find(records, ref, *own_ids)
    except Http404:
        if actor.may(permission):
            raise
        raise exceptions.PermissionDenied(str(services.not_permitted(actor))) from None


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
