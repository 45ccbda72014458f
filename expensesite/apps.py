from typing import Any

from django.apps import AppConfig, apps
from django.core.management.base import CommandError
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.signals import post_migrate, pre_migrate


class ExpensesiteConfig(AppConfig):
    name = "expensesite"

    def ready(self) -> None:
        from expensesite import guards

        # Django sends the signals once for each package with models; one of them is enough.
        approvals = apps.get_app_config("approvals")
        pre_migrate.connect(refuse_older_database, sender=approvals)
        pre_migrate.connect(guards.drop, sender=approvals)
        post_migrate.connect(guards.create, sender=approvals)


def is_older(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a version without approvals made the tables. Nothing migrates them."""
    return "approvals_decision" in connection.introspection.table_names()


def refuse_older_database(using: str, **_: Any) -> None:
    """Raise CommandError before the first migration, with what the person can do."""
    connection = connections[using]
    if not is_older(connection):
        return
    if connection.vendor == "sqlite":
        remedy = (
            f"Move the file {connection.settings_dict['NAME']} away, which keeps its audit trail, "
            "or name another data directory (--data-dir, EXPENSES_DATA_DIR)."
        )
    else:
        remedy = "Name an empty database in DATABASE_URL."
    raise CommandError(
        "The database is of an earlier version, which this version cannot migrate. Nothing was "
        f"changed. {remedy}"
    )
