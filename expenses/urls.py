"""The routes of expenses: pages and the plain protocol at the root, REST under `/api/v1/`."""

from django.urls import include, path

from expenses import api, pages, protocol
from rest.paths import REF, route

api_v1 = [
    route("expenses", api.ExpensesView.as_view()),
    route(rf"expenses/{REF}", api.ExpenseView.as_view()),
    route(rf"expenses/{REF}/(?P<verb>approve|reject|withdraw)", api.DecideView.as_view()),
    route(rf"expenses/{REF}/audit", api.AuditView.as_view()),
    route("payments", api.PaymentsView.as_view()),
]

urlpatterns = [
    path("", pages.ListView.as_view()),
    path("list", pages.ListView.as_view(), name="list"),
    path("decide", pages.DecideView.as_view(), name="decide"),
    path("carry", pages.CarryView.as_view(), name="carry"),
    path("create", protocol.CreateView.as_view()),
    path("action", protocol.ActionView.as_view()),
    path("status", protocol.StatusView.as_view()),
    path("registerCallback", protocol.RegisterCallbackView.as_view()),
    path("api/v1/", include(api_v1)),
]
