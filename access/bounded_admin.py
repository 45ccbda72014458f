"""Base classes of the product's admin pages: what their addresses may ask for, and read-only
records."""

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IncorrectLookupParameters, ShowFacets
from django.contrib.admin.views.main import ORDER_VAR
from django.core.exceptions import ValidationError
from django.core.paginator import InvalidPage
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import smart_split
from unfold.admin import ModelAdmin
from unfold.views import ChangeList

from access.text import SEARCH_LENGTH, search_fault


class OwnFiltersList(ChangeList):  # type: ignore[misc]
    """A list that accepts the parameters of its own filters and no others.

    Django accepts a lookup on any field of the model. A regular expression can stall the database,
    and a lookup across relations can read what its asker may not see. Such a request is redirected
    to the unfiltered list, with `?e=1` (requirements X11).
    """

    def get_filters(self, request: HttpRequest) -> Any:
        if any("\0" in value for values in self.get_filters_params().values() for value in values):
            raise IncorrectLookupParameters("No database stores NUL.")
        # SQLite fails when a query sorts by very many columns.
        if self.params.get(ORDER_VAR, "").count(".") >= len(self.list_display):
            raise IncorrectLookupParameters("The list has fewer columns than it is sorted by.")
        found = super().get_filters(request)
        # Each filter has removed its own parameters from the third part of the result.
        if foreign := found[2]:
            raise IncorrectLookupParameters(f"No filter has the parameters {sorted(foreign)}.")
        return found


class BoundedAdmin(ModelAdmin):  # type: ignore[misc]
    """An admin whose lists and pages answer only cheap and permitted addresses."""

    # Facets count all rows once for each choice of each filter.
    show_facets: ClassVar = ShowFacets.NEVER

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return OwnFiltersList

    def to_field_allowed(self, request: HttpRequest, to_field: str) -> bool:
        """Allow only the primary key. Django's rule fails for the name of a reverse relation."""
        return to_field == str(self.opts.pk.name)

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        """Find nothing for an id with NUL, which PostgreSQL refuses to compare."""
        return None if "\0" in object_id else super().get_object(request, object_id, from_field)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Find nothing for a search that costs too much, and tell the person why.

        Nothing is found for NUL either, which no database stores.
        """
        terms = len(list(smart_split(search_term[: SEARCH_LENGTH + 1])))
        if fault := search_fault(search_term, terms=terms):
            messages.warning(request, fault)
        if fault or "\0" in search_term:
            return queryset.none(), False
        found: tuple[QuerySet[Any], bool] = super().get_search_results(
            request, queryset, search_term
        )
        return found


class ReadOnlyAdmin(BoundedAdmin):
    """An admin of records that only services write."""

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Run an action on the ticked rows only, so that nobody acts on unseen rows (X4).

        A ticked row that has left the filtered list meanwhile is still included.
        """
        ticked = request.POST.getlist(ACTION_CHECKBOX_NAME)
        try:
            for key in ticked:
                self.opts.pk.run_validators(self.opts.pk.to_python(key))
        except ValidationError:
            messages.error(
                request,
                f"Some of the ticked rows are no {self.opts.verbose_name_plural}. Reload the page.",
            )
            return HttpResponseRedirect(request.get_full_path())
        response: HttpResponse | None = super().response_action(
            request, self.get_queryset(request).filter(pk__in=ticked)
        )
        return response


def link(url: str, text: object) -> SafeString:
    """Return a link in the theme's colours."""
    return format_html(
        '<a class="text-primary-600 underline dark:text-primary-500" href="{}">{}</a>', url, text
    )


def search_pages(request: HttpRequest) -> HttpResponse:
    """Search the admin's pages by name, as Unfold does.

    Raises Http404 for a page of results that does not exist. Unfold fails there.
    """
    site: Any = admin.site
    try:
        found: HttpResponse = site.search(request)
    except (InvalidPage, ValueError):
        raise Http404 from None
    return found
