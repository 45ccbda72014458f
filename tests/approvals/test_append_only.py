"""The audit trail and the ledger are inserted and then stay as they are."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, models, transaction

from approvals.models import AppendOnly, AppendOnlyModel, AuditEntry
from expenses.models import LedgerEntry, State
from tests import factories

pytestmark = pytest.mark.django_db


def rewrite(row: AppendOnlyModel) -> None:
    """A new object with the key of a row that is there."""
    values = {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}
    name, changed = _changed(row)
    type(row)(**{**values, name: changed}).save()


def upsert(row: AppendOnlyModel) -> None:
    name, changed = _changed(row)
    setattr(row, name, changed)
    type(row).objects.bulk_create(
        [row], update_conflicts=True, unique_fields=["id"], update_fields=[name]
    )


def _changed(row: AppendOnlyModel) -> tuple[str, Any]:
    moment = "paid_at" if isinstance(row, LedgerEntry) else "at"
    return moment, factories.NOW.replace(year=2000)


def bulk_update(row: AppendOnlyModel) -> None:
    name, changed = _changed(row)
    setattr(row, name, changed)
    type(row).objects.bulk_update([row], [name])


CHANGES: dict[str, Callable[[Any], Any]] = {
    "save": lambda row: row.save(),
    "save of a field": lambda row: row.save(update_fields=[_changed(row)[0]]),
    "delete": lambda row: row.delete(),
    "queryset update": lambda row: type(row).objects.update(**dict([_changed(row)])),
    "queryset delete": lambda row: type(row).objects.filter(pk=row.pk).delete(),
    "update_or_create": lambda row: type(row).objects.update_or_create(
        pk=row.pk, defaults=dict([_changed(row)])
    ),
    "bulk_update": bulk_update,
    "bulk_create over it": upsert,
    "a new object over it": rewrite,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("model", [AuditEntry, LedgerEntry])
def test_the_orm_never_changes_or_deletes_a_record(
    model: type[models.Model], change: Callable[[Any], Any]
) -> None:
    """X5, X2: an audit entry or a ledger row, whichever way."""
    factories.expense(state=State.COMPLETED)
    before = list(model._base_manager.order_by("pk").values())
    with pytest.raises((AppendOnly, DatabaseError)), transaction.atomic():
        change(model._base_manager.order_by("pk").first())
    assert list(model._base_manager.order_by("pk").values()) == before
