"""The routes of approvals of every kind, under `/api/v1/`."""

from django.urls import include, path

from approvals import api
from rest.paths import REF, route

api_v1 = [
    route("approvals", api.ApprovalsView.as_view()),
    route(rf"approvals/{REF}", api.ApprovalView.as_view()),
    route(rf"approvals/{REF}/(?P<verb>approve|reject|withdraw)", api.DecideView.as_view()),
    route(rf"approvals/{REF}/audit", api.AuditView.as_view()),
]

urlpatterns = [path("api/v1/", include(api_v1))]
