"""The groups of the product, and the permissions that each migrate grants them."""

from typing import Any, Final

from django.apps import apps
from django.contrib.auth.models import Group, Permission, User
from django.db.models.signals import post_migrate

EMPLOYEE: Final = "Employee"
APPROVER: Final = "Approver"
FINANCE: Final = "Finance"
AUDITOR: Final = "Auditor"
OPERATOR: Final = "Operator"
WORKER: Final = "Worker"
NAMES: Final = (EMPLOYEE, APPROVER, FINANCE, AUDITOR, OPERATOR, WORKER)

# The next migrate revokes a permission whose line, or whose group in the line, was deleted.
GRANTS: Final = {
    "approvals.view_auditentry": (AUDITOR,),
    "expenses.submit_expense": (EMPLOYEE,),
    "expenses.view_expense": (APPROVER, FINANCE, AUDITOR, OPERATOR),
    "expenses.decide_expense": (APPROVER,),
    "expenses.carry_expense": (WORKER,),
    "expenses.view_ledgerentry": (FINANCE, AUDITOR),
    "orders.submit_order": (EMPLOYEE, WORKER),
    "orders.view_order": (APPROVER, FINANCE, AUDITOR, OPERATOR),
    "orders.decide_order": (APPROVER,),
    "orders.operate_order": (OPERATOR,),
    "orders.carry_order": (WORKER,),
    "orders.view_charge": (FINANCE, AUDITOR, OPERATOR),
    "orders.view_warehouserecord": (FINANCE, AUDITOR, OPERATOR),
    "orders.view_stockitem": (FINANCE, AUDITOR, OPERATOR),
    "orders.add_stockitem": (OPERATOR,),
    "orders.change_stockitem": (OPERATOR,),
    "jobs.view_run": (APPROVER, FINANCE, AUDITOR, OPERATOR, WORKER),
    "jobs.run_job": (OPERATOR, WORKER),
    "outbox.view_message": (AUDITOR, OPERATOR),
    "outbox.retry_message": (OPERATOR,),
}
# A user with one of these carries requests for others, and so decides none (requirements X3).
CARRY: Final = ("expenses.carry_expense", "orders.carry_order")


def is_worker(user: User) -> bool:
    return user.groups.filter(name=WORKER).exists()


def grant_after_migrate() -> None:
    """Give each group exactly the permissions of GRANTS after each migrate.

    The migrate fails with LookupError if GRANTS names a permission that does not exist.
    """
    # Each app makes its permissions in a signal of its own. All exist at the last one.
    last = [config for config in apps.get_app_configs() if config.models_module][-1]
    post_migrate.connect(_grant, sender=last, dispatch_uid="access.groups")


def _grant(using: str, **kwargs: Any) -> None:
    keys = {
        f"{label}.{codename}": key
        for label, codename, key in Permission.objects.using(using).values_list(
            "content_type__app_label", "codename", "pk"
        )
    }
    if missing := GRANTS.keys() - keys.keys():
        raise LookupError(f"access.groups.GRANTS names unknown permissions: {sorted(missing)}")
    for name in NAMES:
        group, _ = Group.objects.using(using).get_or_create(name=name)
        group.permissions.set(
            keys[permission] for permission in GRANTS if name in GRANTS[permission]
        )
