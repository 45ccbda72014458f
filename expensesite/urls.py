from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path, reverse

from expensesite import health


def sign_in(request: HttpRequest) -> HttpResponse:
    """The admin's sign-in; it leads to a page, whatever `next` says.

    Otherwise a link to the sign-in with an action of the plain protocol as `next` would have the
    person who signs in decide: after the redirect the browser calls that request same-origin.
    """
    response: HttpResponse = admin.site.login(request)
    pages = (reverse("admin:index"), reverse("list"))
    if response.status_code == 302 and not response["Location"].startswith(pages):
        response["Location"] = reverse("admin:index")
    return response


urlpatterns = [
    path("admin/login/", sign_in),
    path("admin/", admin.site.urls),
    path("health", health.health),
    path("readyz", health.ready),
    path("metrics", health.metrics),
    # Before those of expenses, which answer for every other path of the API.
    path("", include("orders.urls")),
    path("", include("jobs.urls")),
    path("", include("expenses.urls")),
]
