"""The product's groups after `migrate`."""

import pytest
from django.contrib.auth.models import Group, Permission
from django.core.management import call_command

from access import groups

pytestmark = pytest.mark.django_db


def migrated(name: str) -> set[str]:
    """The permissions of a group after a migrate."""
    call_command("migrate", verbosity=0)
    granted = Group.objects.get(name=name).permissions.values_list(
        "content_type__app_label", "codename"
    )
    return {f"{label}.{codename}" for label, codename in granted}


def test_migrate_gives_each_group_exactly_its_grants() -> None:
    """X3: a missing permission is granted again, and a permission beyond the table is revoked."""
    approver = Group.objects.get(name=groups.APPROVER)
    approver.permissions.set(Permission.objects.filter(codename__in=["view_charge", "add_user"]))
    assert migrated(groups.APPROVER) == {
        "expenses.view_expense",
        "expenses.decide_expense",
        "orders.view_order",
        "orders.decide_order",
        "jobs.view_run",
    }


def test_migrate_leaves_other_groups_alone() -> None:
    """X3: an installation may have groups of its own."""
    own = Group.objects.create(name="Controllers")
    own.permissions.set(Permission.objects.filter(codename="view_charge"))
    assert migrated("Controllers") == {"orders.view_charge"}


def test_migrate_revokes_a_permission_whose_line_was_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """X3: this also holds for the only line of an app."""
    assert "approvals.view_auditentry" in migrated(groups.AUDITOR)
    monkeypatch.delitem(groups.GRANTS, "approvals.view_auditentry")
    monkeypatch.setitem(groups.GRANTS, "outbox.view_message", (groups.OPERATOR,))
    left = migrated(groups.AUDITOR)
    assert not left & {"approvals.view_auditentry", "outbox.view_message"}
    assert "orders.view_charge" in left


@pytest.mark.parametrize("name", ["expenses.decide_expence", "expences.decide_expense"])
def test_migrate_fails_for_a_permission_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """X3: no group changes then."""
    monkeypatch.setitem(groups.GRANTS, name, (groups.EMPLOYEE,))
    monkeypatch.delitem(groups.GRANTS, "expenses.submit_expense")
    with pytest.raises(LookupError, match=name):
        call_command("migrate", verbosity=0)
    employee = Group.objects.get(name=groups.EMPLOYEE)
    assert employee.permissions.filter(codename="submit_expense").exists()
