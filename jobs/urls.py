"""The routes of jobs: at the root, as the sample's clients expect them, and under `/api/v1/`."""

from django.urls import URLPattern, include, path

from jobs import api
from rest.paths import route


def _routes(*, at_root: bool) -> list[URLPattern]:
    return [
        route("jobs", api.JobsView.as_view(at_root=at_root)),
        # The id of a workflow is opaque: it may have slashes and line breaks.
        route(r"jobs/(?P<job_id>(?s:.+?))", api.JobView.as_view(at_root=at_root)),
    ]


urlpatterns = [
    *_routes(at_root=True),
    path("api/v1/", include(_routes(at_root=False))),
]
