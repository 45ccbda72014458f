"""The API of jobs, at the root and under `/api/v1/` (requirements J1, J2). JSON; errors are
problem details."""

from http import HTTPStatus
from typing import Any, Final

from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from access.text import TEXT_LENGTH
from access.views import ActorView
from jobs import services
from rest import prefer
from temporal import client, inspection
from worker import contracts

WAIT_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 2


class TemporalUnavailable(exceptions.APIException):
    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_code = "temporal_unavailable"
    wait = RETRY_SECONDS


class JobFailed(exceptions.APIException):
    """The workflow failed; to the client the site is a gateway to it."""

    status_code = HTTPStatus.BAD_GATEWAY
    default_code = "job_failed"


# DRF takes a number for a text, and "yes" for True; these fields take JSON's own types only.
class _String(serializers.CharField):
    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class _Boolean(serializers.BooleanField):
    TRUE_VALUES = {True}
    FALSE_VALUES = {False}


class JobSerializer(serializers.Serializer[Any]):
    msg = _String(max_length=TEXT_LENGTH, trim_whitespace=False)
    fail_first_attempt = _Boolean(default=False)


class JobsView(ActorView):
    """`POST` runs a job.

    200 with the result once the job has ended, 502 where it failed. 202 with the job's id after
    `Prefer: wait=N` seconds (10 by default), or at once where half of the threads wait already.
    503 where Temporal does not answer.
    """

    def post(self, request: Request) -> Response:
        if not self.actor.may(services.RUN):
            raise exceptions.PermissionDenied("You may not run jobs; ask for the Operator group.")
        body = JobSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        try:
            job_id = services.start_job(**body.validated_data)
        except client.Unreachable as error:
            raise TemporalUnavailable(str(error)) from error
        try:
            with prefer.wait(request, default=WAIT_SECONDS) as seconds:
                result = services.result_of(job_id, seconds=seconds or 0)
        except inspection.WorkflowFailed as error:
            raise JobFailed(f"The job {job_id} failed: {error}") from error
        place = {"Location": f"{request.path.rstrip('/')}/{job_id}"}
        if result is None:
            return Response({"job_id": job_id}, HTTPStatus.ACCEPTED, headers=place)
        return Response({"job_id": job_id, "result": result}, headers=place)


class JobView(ActorView):
    """`GET` returns the state of a job, by its id. People with the permission also find the
    workflows of expenses and orders (requirements J2, X10)."""

    def get(self, request: Request, job_id: str) -> Response:
        seen = contracts.is_job_workflow_id(job_id) or self.actor.may(services.VIEW)
        try:
            run = services.run_of(job_id) if seen else None
        except client.Unreachable as error:
            raise TemporalUnavailable(str(error)) from error
        if run is None:
            raise exceptions.NotFound("There is no such job, or Temporal no longer keeps it.")
        status, reason = services.status_of(run)
        state = {
            "job_id": job_id,
            "status": status,
            "start_time": run.started_at,
            "end_time": run.ended_at,
            "attempt": run.attempt,
        }
        return Response(state | ({"reason": reason} if reason else {}))
