from django.contrib import admin
from django.urls import Resolver404, include, path, re_path
from django.views.defaults import page_not_found

from access import sign_in
from access.bounded_admin import search_pages
from expensesite import health, security_txt
from rest.problems import UnknownPath

urlpatterns = [
    # Paths with dot segments: the admin would redirect to them, and the browser resolve them.
    re_path(r"^admin/(?:[^/]*/)*\.{1,2}(?:/|$)", page_not_found, {"exception": Resolver404()}),
    path("admin/login/", sign_in.sign_in),
    path("admin/logout/", sign_in.sign_out),
    path("admin/search/", admin.site.admin_view(search_pages)),
    path("admin/", admin.site.urls),
    path("health", health.health),
    path("readyz", health.ready),
    path("metrics", health.metrics),
    path(".well-known/security.txt", security_txt.security_txt),
    path("", include("approvals.urls")),
    path("", include("orders.urls")),
    path("", include("jobs.urls")),
    path("", include("expenses.urls")),
    re_path("^api/v1/", UnknownPath.as_view()),
]
