"""Insert a row with SQL that is made once for each model.

Django makes it again for each row, which takes most of the time of a creation, and a transaction
holds SQLite's only write lock meanwhile.
"""

import functools
from typing import Any

from django.db import connection
from django.db.models import AutoField, Model


def insert(row: Model) -> None:
    """Insert a new row, as `row.save(force_insert=True)` does without its signals, in the caller's
    transaction. Raises IntegrityError."""
    fields, sql = _statement(type(row), connection.vendor)
    values = [field.get_db_prep_save(field.pre_save(row, True), connection) for field in fields]
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        row.pk = row._meta.pk.to_python(cursor.fetchone()[0])
    row._state.adding, row._state.db = False, connection.alias


@functools.cache
def _statement(model: type[Model], vendor: str) -> tuple[list[Any], str]:
    meta: Any = model._meta
    fields = [field for field in meta.concrete_fields if not isinstance(field, AutoField)]
    quoted = connection.ops.quote_name
    columns = ", ".join(quoted(field.column) for field in fields)
    places = ", ".join(["%s"] * len(fields))
    table, key = quoted(meta.db_table), quoted(meta.pk.column)
    return fields, f"INSERT INTO {table} ({columns}) VALUES ({places}) RETURNING {key}"  # noqa: S608
