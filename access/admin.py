"""The admin's common ground: what a list may be asked for, users and groups in the product's look,
and read-only records."""

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IncorrectLookupParameters, ShowFacets
from django.contrib.admin.views.main import ORDER_VAR
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.core.exceptions import ValidationError
from django.core.paginator import InvalidPage
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.formats import localize
from django.utils.text import smart_split
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.views import ChangeList

from access.models import Token
from access.text import SEARCH_LENGTH, search_fault

REVOKE_ANY = "access.revoke_any_token"


class OwnFiltersList(ChangeList):  # type: ignore[misc]
    """A list that is narrowed by the parameters of its own filters, and by no others.

    Django takes any lookup on a field of the model: a regular expression stalls the database, and
    a lookup across relations reads what its asker may not see. Such a request is sent back to the
    list, with `?e=1` (requirements X11).
    """

    def get_filters(self, request: HttpRequest) -> Any:
        if any("\0" in value for values in self.get_filters_params().values() for value in values):
            raise IncorrectLookupParameters("No database stores NUL.")
        # A list is sorted once by each column. SQLite counts them, and fails beyond its limit.
        if self.params.get(ORDER_VAR, "").count(".") >= len(self.list_display):
            raise IncorrectLookupParameters("The list has fewer columns than it is sorted by.")
        found = super().get_filters(request)
        # Each filter has taken its own parameters out.
        if foreign := found[2]:
            raise IncorrectLookupParameters(f"No filter has the parameters {sorted(foreign)}.")
        return found


class BoundedAdmin(ModelAdmin):  # type: ignore[misc]
    """What every list and page of the admin may be asked for in its address."""

    # They count all rows once for each choice of each filter.
    show_facets: ClassVar = ShowFacets.NEVER

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return OwnFiltersList

    def to_field_allowed(self, request: HttpRequest, to_field: str) -> bool:
        """The primary key alone. Django's own rule fails for the name of a reverse relation."""
        return to_field == str(self.opts.pk.name)

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        """None for an id with NUL, which PostgreSQL refuses to compare."""
        return None if "\0" in object_id else super().get_object(request, object_id, from_field)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Nothing for a search that costs too much, with a sentence for the person, and for NUL,
        which no database stores."""
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
    """Records that services write: the admin shows them and changes none."""

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Act on the ticked rows alone: nobody acts on rows that they did not see (X4). A row that
        left the list since is still among them."""
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


admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(DjangoUserAdmin, BoundedAdmin):  # type: ignore[type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, BoundedAdmin):
    pass


def search_pages(request: HttpRequest) -> HttpResponse:
    """Unfold's search for pages by name; 404 where it would fail for a page of results that is not
    there."""
    site: Any = admin.site
    try:
        found: HttpResponse = site.search(request)
    except (InvalidPage, ValueError):
        raise Http404 from None
    return found


@admin.register(Token)
class TokenAdmin(ReadOnlyAdmin):
    """Everybody of the staff sees and revokes their own tokens; who may, those of all.

    Tokens are made by `manage.py createtoken`, which shows each once. To revoke is to delete.
    """

    list_display: ClassVar = ["owner", "kind", "created", "last_used", "expires", "state", "why"]
    # Neither the hash nor the stored beginning of the token.
    fields: ClassVar = list_display
    list_display_links = None
    list_select_related: ClassVar = ["user"]
    search_fields: ClassVar = ["user__username"]
    ordering: ClassVar = ["user__username", "-created"]
    actions: ClassVar = ["delete_selected"]

    def has_module_permission(self, request: HttpRequest) -> bool:
        return True  # everybody who is let into the admin may have tokens

    def has_view_permission(self, request: HttpRequest, obj: Token | None = None) -> bool:
        return obj is None or obj.user_id == request.user.pk or request.user.has_perm(REVOKE_ANY)

    def has_delete_permission(self, request: HttpRequest, obj: Token | None = None) -> bool:
        return self.has_view_permission(request, obj)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Token]:
        tokens: QuerySet[Token] = super().get_queryset(request)
        return tokens if request.user.has_perm(REVOKE_ANY) else tokens.filter(user=request.user)

    @display(description="user", ordering="user__username")
    def owner(self, token: Token) -> str:
        """By name; the field itself would be a link to a page that most people are refused."""
        return str(token.user.get_username())

    def kind(self, token: Token) -> str:
        return "service" if token.is_service else "personal"

    @display(description="last used", ordering="last_used_at")
    def last_used(self, token: Token) -> str:
        return localize(token.last_used_at) if token.last_used_at else "never"

    @display(description="expires", ordering="expiry")
    def expires(self, token: Token) -> str:
        return localize(token.expiry) if token.expiry else "never"

    @display(label={"valid": "success", "ended": "danger"})
    def state(self, token: Token) -> str:
        return "ended" if token.refusal(timezone.now()) else "valid"

    def why(self, token: Token) -> str:
        return token.refusal(timezone.now())

    @admin.action(description="Revoke", permissions=["delete"])
    def delete_selected(
        self, request: HttpRequest, queryset: QuerySet[Token]
    ) -> HttpResponse | None:
        """Ask first, then revoke; the admin's history keeps who revoked whose token."""
        return delete_selected(self, request, queryset)
