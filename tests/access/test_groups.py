"""The product's groups after `migrate`."""

import pytest
from django.contrib.auth.models import Group, Permission
from django.core.management import call_command

from access import groups

pytestmark = pytest.mark.django_db


def test_migrate_grants_and_revokes() -> None:
    """X3: after `migrate` each group has what the product grants it, and nothing that an earlier
    version granted; groups of one's own stay as they are."""
    permission = Permission.objects.get(codename="view_charge")
    approver = Group.objects.get(name=groups.APPROVER)
    own = Group.objects.create(name="Controllers")
    for group in (approver, own):
        group.permissions.add(permission)
    approver.permissions.remove(Permission.objects.get(codename="decide_order"))
    call_command("migrate", verbosity=0)
    of_orders = approver.permissions.filter(content_type__app_label="orders")
    assert set(of_orders.values_list("codename", flat=True)) == {"view_order", "decide_order"}
    assert list(own.permissions.all()) == [permission]
