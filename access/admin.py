"""The admin's common ground: users and groups in the product's look, and read-only records."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from knox.models import AuthToken
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from access.text import TEXT_LENGTH


class ReadOnlyAdmin(ModelAdmin):  # type: ignore[misc]
    """Records that services write: the admin shows them and changes none."""

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Nothing for what no database searches for: NUL, and texts beyond any stored one."""
        if len(search_term) > TEXT_LENGTH or "\0" in search_term:
            return queryset.none(), False
        found: tuple[QuerySet[Any], bool] = super().get_search_results(
            request, queryset, search_term
        )
        return found

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
# Tokens are made by `manage.py createtoken`, which shows them once; the admin has only hashes.
admin.site.unregister(AuthToken)


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):  # type: ignore[type-arg, misc]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):  # type: ignore[misc]
    pass
