"""The admin of users, groups and tokens."""

from typing import ClassVar

from django.contrib import admin
from django.contrib.admin.actions import delete_selected
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.formats import localize
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from access.bounded_admin import BoundedAdmin, ReadOnlyAdmin
from access.models import Token

REVOKE_ANY = "access.revoke_any_token"

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


@admin.register(Token)
class TokenAdmin(ReadOnlyAdmin):
    """The list of tokens. Every member of the staff sees and revokes their own.

    A person with the permission REVOKE_ANY sees and revokes all. `manage.py createtoken` makes
    tokens. Revoking a token deletes it.
    """

    list_display: ClassVar = ["owner", "kind", "created", "last_used", "expires", "state", "why"]
    # The page shows neither the hash nor the stored beginning of the token.
    fields: ClassVar = list_display
    list_display_links = None
    list_select_related: ClassVar = ["user"]
    search_fields: ClassVar = ["user__username"]
    ordering: ClassVar = ["user__username", "-created"]
    actions: ClassVar = ["delete_selected"]

    def has_module_permission(self, request: HttpRequest) -> bool:
        return True  # everybody who may enter the admin may have tokens

    def has_view_permission(self, request: HttpRequest, obj: Token | None = None) -> bool:
        return obj is None or obj.user_id == request.user.pk or request.user.has_perm(REVOKE_ANY)

    def has_delete_permission(self, request: HttpRequest, obj: Token | None = None) -> bool:
        return self.has_view_permission(request, obj)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Token]:
        tokens: QuerySet[Token] = super().get_queryset(request)
        return tokens if request.user.has_perm(REVOKE_ANY) else tokens.filter(user=request.user)

    @display(description="user", ordering="user__username")
    def owner(self, token: Token) -> str:
        """The user's name. The field itself would link to a page that most people may not open."""
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
        """Ask first, then revoke. The admin's history keeps who revoked whose token."""
        return delete_selected(self, request, queryset)
