"""The plain protocol at the root, where its clients expect it, and the REST API."""

from django.urls import include, path, re_path

from expenses import api, protocol
from rest.paths import REF, route
from rest.problems import UnknownPath

api_v1 = [
    route("expenses", api.ExpensesView.as_view()),
    route(rf"expenses/{REF}", api.ExpenseView.as_view()),
    route(rf"expenses/{REF}/(?P<verb>approve|reject|withdraw)", api.DecideView.as_view()),
    route(rf"expenses/{REF}/audit", api.AuditView.as_view()),
    route("payments", api.PaymentsView.as_view()),
    re_path("", UnknownPath.as_view()),
]

urlpatterns = [
    path("", protocol.ListView.as_view()),
    path("list", protocol.ListView.as_view(), name="list"),
    path("decide", protocol.DecideView.as_view(), name="decide"),
    path("carry", protocol.CarryView.as_view(), name="carry"),
    path("create", protocol.CreateView.as_view()),
    path("action", protocol.ActionView.as_view()),
    path("status", protocol.StatusView.as_view()),
    path("registerCallback", protocol.RegisterCallbackView.as_view()),
    path("api/v1/", include(api_v1)),
]
