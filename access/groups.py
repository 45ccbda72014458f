"""The groups of the product. Each domain grants its own permissions to them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.apps import AppConfig
from django.contrib.auth.models import Group, Permission
from django.db.models.signals import post_migrate

EMPLOYEE: Final = "Employee"
APPROVER: Final = "Approver"
FINANCE: Final = "Finance"
AUDITOR: Final = "Auditor"
OPERATOR: Final = "Operator"
WORKER: Final = "Worker"
NAMES: Final = (EMPLOYEE, APPROVER, FINANCE, AUDITOR, OPERATOR, WORKER)
# The permissions to carry requests for others; who has one decides nothing (requirements X3).
CARRY: Final = ("expenses.carry_expense", "orders.carry_order")


def grant_after_migrate(config: AppConfig, grants: Mapping[str, Sequence[str]]) -> None:
    """Give the groups these permissions of the app (codenames), and no other of that app, after
    each migrate.

    Call from `AppConfig.ready()`: Django makes the permissions in the same signal, before.
    """

    def grant(using: str, **kwargs: Any) -> None:
        of_app = Permission.objects.using(using).filter(content_type__app_label=config.label)
        for name in NAMES:
            group, _ = Group.objects.using(using).get_or_create(name=name)
            granted = of_app.filter(codename__in=grants.get(name, ()))
            group.permissions.add(*granted)
            group.permissions.remove(*of_app.exclude(pk__in=granted))

    post_migrate.connect(grant, sender=config, weak=False, dispatch_uid=f"grant-{config.label}")
