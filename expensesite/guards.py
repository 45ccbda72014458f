"""What the database refuses from every program: triggers on SQLite and PostgreSQL (ADR 11).

The services keep these rules. The triggers are the last line behind them. They are made after
migrations and dropped before them, since a migration may rebuild a table or change its rows.
"""

import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import AutoField, Model, UniqueConstraint

from approvals.models import Approval, AuditEntry
from expenses.models import Expense, LedgerEntry
from orders.models import Order, OrderLine, OrderStep


class Rule(NamedTuple):
    """Where `refused` holds, an event of a row of `model` fails with the sentence.

    Rules about new values come after the event, so that a duplicate or a value that a CHECK refuses
    is named as such.

    `refused` is SQL. `{new.state}` is the value of a field in the written row, `{old.state}` the
    value before, and `{changed.state}` whether they differ. `{approval.verdict}` is a column of the
    table `{approval}`. `{undecided}` is whether the row's approval is undecided and has its kind
    and id.
    """

    model: type[Model]
    event: str
    refused: str
    sentence: str


_ALWAYS: Final = "1 = 1"
_FIXED_IN_APPROVALS: Final = [
    f"{{changed.{field.name}}}"
    for field in Approval._meta.fields
    if field.name not in ("expires_at", "verdict", "entry")
]
# What changes of an order; what is ordered, by whom and for how much, does not.
_CHANGING_IN_ORDERS: Final = (
    *("state", "attempt", "step_names", "steps_begun", "approval", "signals_run", "signals_event"),
    *("fail_at", "ends_as", "failure_reason", "workflow_id", "created_at", "ended_at"),
)
_FIXED_IN_ORDERS: Final = [
    f"{{changed.{field.name}}}"
    for field in Order._meta.fields
    if field.name not in _CHANGING_IN_ORDERS
]
# Rows of these are never deleted.
GUARDED: Final = (Approval, AuditEntry, Expense, LedgerEntry, Order, OrderLine, OrderStep)
RULES: Final = (
    Rule(Approval, "AFTER INSERT", "{new.verdict} IS NOT NULL", "An approval begins undecided."),
    Rule(
        Approval, "AFTER UPDATE", "{old.verdict} IS NOT NULL", "A decided approval never changes."
    ),
    Rule(
        Approval,
        "AFTER UPDATE",
        " OR ".join(_FIXED_IN_APPROVALS),
        "Only the verdict, its entry and the end of the window of an approval change.",
    ),
    Rule(
        Approval,
        "AFTER UPDATE",
        """{new.verdict} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {entry}
        WHERE {entry.id} = {new.entry} AND {entry.subject} = {new.kind}
        AND {entry.subject_id} = {new.reference} AND ({entry.event} = lower({new.verdict})
        OR {new.verdict} = 'VOID' AND {entry.event} IN ('cancelled', 'failed')))""",
        "A verdict needs an audit entry that says the same of the same request.",
    ),
    *(
        Rule(model, "AFTER UPDATE", _ALWAYS, f"A row of {model._meta.db_table} never changes.")
        for model in (AuditEntry, LedgerEntry, OrderLine, OrderStep)
    ),
    Rule(
        LedgerEntry,
        "AFTER INSERT",
        """NOT EXISTS (SELECT 1 FROM {expense} JOIN {approval}
        ON {approval.id} = {expense.approval} WHERE {expense.id} = {new.expense}
        AND {expense.state} = 'APPROVED' AND {approval.verdict} = 'APPROVED'
        AND NOT {approval.amount} IS DISTINCT FROM {new.amount}
        AND {approval.currency} = {new.currency})""",
        "Only an approved expense is paid, with the amount and currency of its approval.",
    ),
    Rule(
        Expense,
        "AFTER INSERT",
        "{new.state} <> 'CREATED' OR NOT {undecided}",
        "An expense begins as CREATED, with an undecided approval of its own.",
    ),
    Rule(
        Expense,
        "AFTER UPDATE",
        "{changed.id} OR {changed.expense_id} OR {changed.approval}",
        "The id and the approval of an expense never change.",
    ),
    Rule(
        Expense,
        "AFTER UPDATE",
        """{changed.state} AND {new.state} IS DISTINCT FROM (SELECT CASE
        WHEN {approval.verdict} IS NULL THEN 'CREATED'
        WHEN EXISTS (SELECT 1 FROM {payment} WHERE {payment.expense} = {new.id}) THEN 'COMPLETED'
        ELSE {approval.verdict} END FROM {approval} WHERE {approval.id} = {new.approval})""",
        "The state of an expense follows from its verdict and the ledger.",
    ),
    Rule(
        Order,
        "AFTER INSERT",
        """NOT ({new.state} = 'running' AND {new.approval} IS NULL
        OR {new.state} = 'pending' AND {undecided})""",
        "An order begins pending with an undecided approval of its own, or running without one.",
    ),
    Rule(
        Order,
        "AFTER UPDATE",
        " OR ".join(_FIXED_IN_ORDERS),
        "What is ordered, by whom and for how much never changes.",
    ),
    Rule(
        Order,
        "AFTER UPDATE",
        """{changed.approval} AND NOT ({undecided} AND EXISTS (SELECT 1 FROM {approval}
        WHERE {approval.id} = {old.approval} AND {approval.verdict} = 'VOID'))""",
        "Only a void approval of an order is replaced, by an undecided one of the same order.",
    ),
    Rule(
        Order,
        "AFTER UPDATE",
        """{changed.state} AND ({new.state} = 'pending' AND NOT {undecided}
        OR {new.state} IN ('running', 'compensating', 'completed') AND {new.approval} IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM {approval}
        WHERE {approval.id} = {new.approval} AND {approval.verdict} = 'APPROVED'))""",
        "An order waits with an undecided approval, and runs with an approved one or without one.",
    ),
    Rule(
        Order,
        "AFTER UPDATE",
        "{changed.state} AND {new.state} IN ('cancelled', 'failed') AND {undecided}",
        "An order ends only after its approval is decided or void.",
    ),
    Rule(
        Order,
        "AFTER UPDATE",
        "{changed.state} AND {old.state} IN ('completed', 'cancelled')",
        "An order that is completed or cancelled stays so.",
    ),
    *(
        Rule(model, event, _ALWAYS, f"A row of {model._meta.db_table} is never deleted.")
        for model in GUARDED
        for event in ("BEFORE DELETE", "BEFORE TRUNCATE")
    ),
)
_TABLES: Final = {
    "approval": Approval,
    "entry": AuditEntry,
    "expense": Expense,
    "payment": LedgerEntry,
}
_UNDECIDED: Final = """EXISTS (SELECT 1 FROM {approval} WHERE {approval.id} = {new.approval}
    AND {approval.verdict} IS NULL"""
# Whether the row's approval is undecided and of this very request.
_UNDECIDED_OF: Final = {
    Expense: _UNDECIDED
    + """ AND {approval.kind} = 'expense' AND {approval.reference} = {new.expense_id})""",
    Order: _UNDECIDED
    + """ AND {approval.kind} = 'order' AND {approval.reference} = {new.order_id}
    AND {approval.amount} = {new.total} AND {approval.currency} = {new.currency})""",
}


class _Columns:
    """The columns of a model by their fields, in the SQL of a rule; as text, its table."""

    def __init__(
        self, model: type[Model], alias: str, column: str = '{alias}."{name}"', schema: str = ""
    ) -> None:
        self._model, self._alias, self._column, self._schema = model, alias, column, schema

    def __getattr__(self, field: str) -> str:
        column: Any = self._model._meta.get_field(field)
        return self._column.format(alias=self._alias, name=column.column)

    def __str__(self) -> str:
        return f'{self._schema}"{self._model._meta.db_table}" {self._alias}'


def _names(connection: BaseDatabaseWrapper, model: type[Model]) -> dict[str, Any]:
    """Return what the braces of a rule about the model mean."""
    schema = ""
    if connection.vendor == "postgresql":
        # Without the schema, a temporary table of the same name would be looked at.
        with connection.cursor() as cursor:
            cursor.execute("SELECT quote_ident(current_schema()) || '.'")
            schema = cursor.fetchone()[0]
    names: dict[str, Any] = {
        alias: _Columns(table, alias, schema=schema) for alias, table in _TABLES.items()
    }
    names |= {alias.lower(): _Columns(model, alias) for alias in ("NEW", "OLD")}
    names["changed"] = _Columns(model, "", '(NEW."{name}" IS DISTINCT FROM OLD."{name}")')
    if model in _UNDECIDED_OF:
        names["undecided"] = _UNDECIDED_OF[model].format_map(names)
    return names


def triggers(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return the statements that make the triggers of the guarded tables that exist, by name.

    The name has a checksum of the rules, so that other rules make another trigger.
    """
    existing = set(connection.introspection.table_names())
    made = {}
    for model, event in itertools.product(GUARDED, _EVENTS):
        table, body = model._meta.db_table, _body(connection, model, event)
        if table in existing and body:
            when = event.lower().replace(" ", "_")
            name = f"guard_{table}_{when}_{zlib.crc32(body.encode()):08x}"
            each = "STATEMENT" if event == "BEFORE TRUNCATE" else "ROW"
            made[name] = _CREATE[connection.vendor].format(
                name=name, event=event, table=table, body=body, each=each
            )
    return made


_EVENTS: Final = (
    *("BEFORE INSERT", "AFTER INSERT", "BEFORE UPDATE", "AFTER UPDATE"),
    *("BEFORE DELETE", "BEFORE TRUNCATE"),
)
_CREATE: Final = {
    "sqlite": 'CREATE TRIGGER "{name}" {event} ON "{table}" BEGIN {body} END',
    "postgresql": 'CREATE OR REPLACE FUNCTION "{name}"() RETURNS trigger LANGUAGE plpgsql AS '
    "$guard$ BEGIN {body} RETURN NULL; END $guard$; "
    'CREATE TRIGGER "{name}" {event} ON "{table}" '
    'FOR EACH {each} EXECUTE FUNCTION "{name}"()',
}
_REFUSE: Final = {
    "sqlite": "SELECT RAISE(ABORT, '{1}') WHERE {0};",
    "postgresql": "IF {0} THEN RAISE integrity_constraint_violation USING MESSAGE = '{1}'; END IF;",
}
_DROP: Final = {
    "sqlite": 'DROP TRIGGER "{name}"',
    "postgresql": 'DROP FUNCTION "{name}"() CASCADE',
}
_INSTALLED: Final = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
    "WHERE NOT tgisinternal AND relnamespace = current_schema()::regnamespace",
}


def _body(connection: BaseDatabaseWrapper, model: type[Model], event: str) -> str:
    """Return the statements of the trigger that refuses the event."""
    names = _names(connection, model)
    rules = [
        (rule.refused.format_map(names), rule.sentence)
        for rule in RULES
        if (rule.model, rule.event) == (model, event)
    ]
    if connection.vendor == "sqlite":
        if event == "BEFORE TRUNCATE":
            return ""
        rules += _duplicates(connection, model, event)
        # SQLite before 3.39 knows only its own words.
        rules = [(refused.replace("IS DISTINCT FROM", "IS NOT"), words) for refused, words in rules]
    return " ".join(_REFUSE[connection.vendor].format(*rule) for rule in rules)


def _duplicates(
    connection: BaseDatabaseWrapper, model: type[Model], event: str
) -> Iterator[tuple[str, str]]:
    """Yield where SQLite has another row with the same unique key, and its own words for that.

    `OR REPLACE` would delete the other row, and no trigger on DELETE would notice. An ordinary
    duplicate gets the same answer as without the trigger (approvals.services.is_duplicate).
    """
    if event not in ("BEFORE INSERT", "BEFORE UPDATE"):
        return
    meta: Any = model._meta
    # The key of a table with an AutoField is the rowid.
    unique = [f.column for f in meta.local_fields if f.unique and not isinstance(f, AutoField)]
    keys = [([column], _ALWAYS) for column in ("rowid", *unique)]
    for constraint in meta.constraints:
        if isinstance(constraint, UniqueConstraint):
            columns = [meta.get_field(name).column for name in constraint.fields]
            editor = connection.schema_editor()
            where = constraint._get_condition_sql(model, editor)  # type: ignore[attr-defined]
            keys.append((columns, where or _ALWAYS))
    for columns, where in keys:
        same = " AND ".join(f'"{column}" = NEW."{column}"' for column in columns)
        if event == "BEFORE UPDATE":
            same += " AND rowid <> OLD.rowid"
        of_new = re.sub(r'("\w+")', r"NEW.\1", where)
        words = ", ".join(f"{meta.db_table}.{column}" for column in columns)
        other = f'SELECT 1 FROM "{meta.db_table}" WHERE {same} AND {where}'  # noqa: S608
        yield f"{of_new} AND EXISTS ({other})", f"UNIQUE constraint failed: {words}"


# Each statement below is a transaction: one that locks several tables could deadlock with requests.


def create(using: str, **_: Any) -> None:
    """Make the triggers that the database lacks, and drop those of other rules."""
    connection = connections[using]
    wanted = triggers(connection)
    with connection.cursor() as cursor:
        installed = _installed(cursor, connection.vendor)
        for name in wanted.keys() - installed:
            cursor.execute(wanted[name])
        for name in installed - wanted.keys():
            cursor.execute(_DROP[connection.vendor].format(name=name))


def are_made(connection: BaseDatabaseWrapper) -> bool:
    with connection.cursor() as cursor:
        return triggers(connection).keys() <= _installed(cursor, connection.vendor)


def drop(using: str, plan: Sequence[Any], **_: Any) -> None:
    """Drop all triggers, so that the migrations of the plan may change every table."""
    connection = connections[using]
    if plan:
        with connection.cursor() as cursor:
            for name in _installed(cursor, connection.vendor):
                cursor.execute(_DROP[connection.vendor].format(name=name))


def _installed(cursor: Any, vendor: str) -> set[str]:
    cursor.execute(_INSTALLED[vendor])
    return {name for (name,) in cursor.fetchall() if name.startswith("guard_")}
