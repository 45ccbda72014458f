"""What the database refuses by triggers, whoever writes: SQL that contradicts the records."""

import re
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.core.management.sql import emit_post_migrate_signal, emit_pre_migrate_signal
from django.db import IntegrityError, connection, migrations, models, transaction
from django.db.models import Model

from approvals import services as approvals
from approvals.models import Approval, AuditEntry, Verdict
from expenses import services as expense_services
from expenses.models import Expense, LedgerEntry, State
from expensesite import guards
from orders import services as order_services
from orders.models import Order, OrderLine, OrderStep
from tests import factories
from worker import contracts

# The statements.

UNUSED = "'00000000000000000000000000000001'"
EXPENSE = "SELECT id FROM expenses_expense WHERE expense_id ="
APPROVAL = "SELECT id FROM approvals_approval WHERE title ="
ENTRY = "SELECT id FROM approvals_auditentry WHERE reason ="
SET_APPROVAL = "UPDATE approvals_approval SET"
SET_EXPENSE = "UPDATE expenses_expense SET"
SET_ORDER = "UPDATE orders_order SET"


def copy(model: type[Model], where: str, *, verb: str = "INSERT", **changes: str) -> str:
    """Insert a copy of a row with these changes; an `AutoField` is left out unless it is named."""
    fields = [f.column for f in model._meta.fields if not isinstance(f, models.AutoField)]
    columns = dict.fromkeys(dict.fromkeys(fields, "") | changes)
    values = ", ".join(changes.get(column, f'"{column}"') for column in columns)
    names = ", ".join(f'"{column}"' for column in columns)
    table = model._meta.db_table
    return f"{verb} INTO {table} ({names}) SELECT {values} FROM {table} WHERE {where}"


def payment(expense_id: str, amount: str = "12.5", currency: str = "'EUR'") -> str:
    return (
        "INSERT INTO expenses_ledgerentry (id, expense_id, amount, currency, paid_at) "
        f"SELECT {UNUSED}, id, {amount}, {currency}, created_at FROM expenses_expense "
        f"WHERE expense_id = '{expense_id}'"
    )


def expense(expense_id: str, approval: str, state: str = "CREATED") -> str:
    return copy(
        Expense,
        "expense_id = 'created'",
        id=UNUSED,
        expense_id=f"'{expense_id}'",
        workflow_id="NULL",
        approval_id=f"({APPROVAL} '{approval}')",
        state=f"'{state}'",
    )


def order(order_id: str, approval: str, state: str = "pending", ends_as: str = "") -> str:
    return copy(
        Order,
        "order_id = 'waits'",
        id=UNUSED,
        order_id=f"'{order_id}'",
        workflow_id="'unused'",
        approval_id=approval,
        state=f"'{state}'",
        ends_as=f"'{ends_as}'",
    )


def verdict(value: str, entry: str, of: str = "created") -> str:
    return (
        f"{SET_APPROVAL} verdict = '{value}', entry_id = ({ENTRY} '{entry}') "
        f"WHERE reference = '{of}'"
    )


def delete(model: type[Model], where: str = "1 = 1") -> tuple[str, str]:
    table = model._meta.db_table
    return f"DELETE FROM {table} WHERE {where}", f"A row of {table} is never deleted."


def change(model: type[Model], assignment: str) -> tuple[str, str]:
    table = model._meta.db_table
    return f"UPDATE {table} SET {assignment}", f"A row of {table} never changes."


BEGINS_UNDECIDED = "An approval begins undecided."
DECIDED = "A decided approval never changes."
FIXED = "Only the verdict, its entry and the end of the window of an approval change."
NEEDS_ENTRY = "A verdict needs an audit entry that says the same of the same request."
PAYABLE = "Only an approved expense is paid, with the amount and currency of its approval."
BEGINS_CREATED = "An expense begins as CREATED, with an undecided approval of its own."
EXPENSE_ID = "The id and the approval of an expense never change."
FOLLOWS = "The state of an expense follows from its verdict and the ledger."
BEGINS = "An order begins pending with an undecided approval of its own, or running without one."
ORDERED = "What is ordered, by whom and for how much never changes."
ENDS = "An order ends only after its approval is decided or void."
STAYS = "An order that is completed or cancelled stays so."
REPLACED = "Only a void approval of an order is replaced, by an undecided one of the same order."
RUNS = "An order waits with an undecided approval, and runs with an approved one or without one."
UNIQUE = "UNIQUE constraint failed: "

CONTRADICTIONS = [
    # The approval
    (
        copy(
            Approval,
            "reference = 'created'",
            id=UNUSED,
            reference="'other'",
            verdict="'APPROVED'",
            entry_id=f"({ENTRY} 'approves created')",
        ),
        BEGINS_UNDECIDED,
    ),
    (verdict("REJECTED", "approves created", of="approved"), DECIDED),
    (f"{SET_APPROVAL} verdict = 'WITHDRAWN' WHERE reference = 'rejected'", DECIDED),
    (f"{SET_APPROVAL} verdict = NULL, entry_id = NULL WHERE reference = 'approved'", DECIDED),
    (f"{SET_APPROVAL} entry_id = ({ENTRY} 'approves created') WHERE reference = 'paid'", DECIDED),
    (f"{SET_APPROVAL} expires_at = opened_at WHERE reference = 'approved'", DECIDED),
    (f"{SET_APPROVAL} amount = 99 WHERE reference = 'approved'", DECIDED),
    (f"{SET_APPROVAL} verdict = 'APPROVED' WHERE verdict = 'VOID'", DECIDED),
    (f"{SET_APPROVAL} amount = 99 WHERE reference = 'created'", FIXED),
    (f"{SET_APPROVAL} currency = 'USD' WHERE reference = 'created'", FIXED),
    (f"{SET_APPROVAL} submitter_id = NULL WHERE reference = 'created'", FIXED),
    (f"{SET_APPROVAL} opened_by_id = submitter_id WHERE reference = 'created'", FIXED),
    (f"{SET_APPROVAL} reference = 'other' WHERE reference = 'created'", FIXED),
    (f"{SET_APPROVAL} kind = 'order' WHERE reference = 'created'", FIXED),
    (f"{SET_APPROVAL} title = 'x' WHERE reference = 'created'", FIXED),
    (f"{SET_APPROVAL} opened_at = '2020-01-01' WHERE reference = 'created'", FIXED),
    (verdict("APPROVED", "approves another expense"), NEEDS_ENTRY),
    (verdict("APPROVED", "approves an order"), NEEDS_ENTRY),
    (verdict("REJECTED", "approves created"), NEEDS_ENTRY),
    (verdict("VOID", "approves created"), NEEDS_ENTRY),
    (verdict("EXPIRED", "cancels created"), NEEDS_ENTRY),
    delete(Approval, "reference = 'approved'"),
    delete(Approval, "title = 'unused'"),
    # The audit trail
    change(AuditEntry, "reason = '' WHERE event = 'approved'"),
    change(AuditEntry, "actor = 'somebody' WHERE event = 'submitted'"),
    delete(AuditEntry, "event = 'submitted'"),
    delete(AuditEntry),
    # The ledger
    (payment("created"), PAYABLE),
    (payment("rejected"), PAYABLE),
    (payment("withdrawn"), PAYABLE),
    (payment("half decided"), PAYABLE),
    (payment("approved", amount="12.51"), PAYABLE),
    (payment("approved", currency="'USD'"), PAYABLE),
    (payment("approved", amount="NULL", currency="''"), PAYABLE),
    (payment("without amount"), PAYABLE),
    change(LedgerEntry, "amount = 99"),
    change(LedgerEntry, f"expense_id = ({EXPENSE} 'approved')"),
    delete(LedgerEntry),
    # Expenses
    (expense("unused", "unused", "APPROVED"), BEGINS_CREATED),
    (expense("other", "unused"), BEGINS_CREATED),
    (expense("unused order", "unused order"), BEGINS_CREATED),
    (expense("unused void", "unused void"), BEGINS_CREATED),
    (f"{SET_EXPENSE} expense_id = 'other' WHERE expense_id = 'created'", EXPENSE_ID),
    (f"{SET_EXPENSE} id = {UNUSED} WHERE expense_id = 'created'", EXPENSE_ID),
    (
        f"{SET_EXPENSE} approval_id = ({APPROVAL} 'unused') WHERE expense_id = 'rejected'",
        EXPENSE_ID,
    ),
    *(
        (f"{SET_EXPENSE} state = '{state}' WHERE expense_id = '{expense_id}'", FOLLOWS)
        for expense_id, states in {
            "created": ("APPROVED", "REJECTED", "WITHDRAWN", "COMPLETED"),
            "approved": ("CREATED", "REJECTED", "WITHDRAWN", "COMPLETED"),
            "rejected": ("CREATED", "APPROVED", "COMPLETED"),
            "withdrawn": ("CREATED", "APPROVED"),
            "paid": ("CREATED", "APPROVED", "REJECTED"),
            "half decided": ("REJECTED", "COMPLETED"),
        }.items()
        for state in states
    ),
    delete(Expense, "expense_id = 'created'"),
    # Orders
    (order("other", f"({APPROVAL} 'unused order')"), BEGINS),
    (order("unused", f"({APPROVAL} 'unused')"), BEGINS),
    (order("unused order", f"({APPROVAL} 'unused order')", "running"), BEGINS),
    (order("other", "NULL", "compensating", "failed"), BEGINS),
    (f"{SET_ORDER} order_id = 'other' WHERE order_id = 'runs'", ORDERED),
    (f"{SET_ORDER} id = {UNUSED} WHERE order_id = 'runs'", ORDERED),
    (f"{SET_ORDER} total = 9999 WHERE order_id = 'waits'", ORDERED),
    (f"{SET_ORDER} currency = 'XAU' WHERE order_id = 'waits'", ORDERED),
    (f"{SET_ORDER} payment_method = 'mine' WHERE order_id = 'waits'", ORDERED),
    *(
        (
            f"{SET_ORDER} state = '{state}', ends_as = '{state}', ended_at = created_at "
            "WHERE order_id = 'waits'",
            ENDS,
        )
        for state in ("failed", "cancelled")
    ),
    (f"{SET_ORDER} state = 'failed', ends_as = 'failed' WHERE order_id = 'rejected order'", STAYS),
    change(OrderLine, "quantity = 99"),
    delete(OrderLine),
    (f"{SET_ORDER} approval_id = NULL, state = 'running' WHERE order_id = 'waits'", REPLACED),
    (f"{SET_ORDER} approval_id = NULL WHERE order_id = 'void'", REPLACED),
    (f"{SET_ORDER} approval_id = ({APPROVAL} 'unused order') WHERE order_id = 'runs'", REPLACED),
    (f"{SET_ORDER} approval_id = ({APPROVAL} 'unused order') WHERE order_id = 'void'", REPLACED),
    (f"{SET_ORDER} approval_id = ({APPROVAL} 'unused') WHERE order_id = 'void'", REPLACED),
    (
        f"{SET_ORDER} approval_id = ({APPROVAL} 'rejected order, again') "
        "WHERE order_id = 'rejected order'",
        REPLACED,
    ),
    (f"{SET_ORDER} state = 'running' WHERE order_id = 'waits'", RUNS),
    (
        f"{SET_ORDER} state = 'compensating', ends_as = 'failed' WHERE order_id = 'waits'",
        RUNS,
    ),
    (
        f"{SET_ORDER} state = 'completed', step_names = '[]', ended_at = created_at "
        "WHERE order_id = 'waits'",
        RUNS,
    ),
    (f"{SET_ORDER} state = 'pending' WHERE order_id = 'approved order'", RUNS),
    *(
        (
            f"{SET_ORDER} state = '{state}', ends_as = '', ended_at = NULL "
            f"WHERE order_id = '{order_id}'",
            RUNS,
        )
        for order_id in ("void", "rejected order")
        for state in ("running", "pending")
    ),
    delete(Order, "order_id = 'runs'"),
    change(OrderStep, "message = 'x'"),
    delete(OrderStep),
]
# On SQLite `OR REPLACE` deletes the row that has the same unique value.
REPLACEMENTS = [
    (copy(model, where, verb=verb, **changes), f"{UNIQUE}{model._meta.db_table}.{key}")
    for model, where, changes, key in (
        (Approval, "reference = 'approved'", {"verdict": "NULL", "entry_id": "NULL"}, "id"),
        (Approval, "reference = 'created'", {"id": UNUSED, "amount": "99"}, "reference"),
        (
            Approval,
            "reference = 'created'",
            {"id": UNUSED, "reference": "'other'", "rowid": "rowid"},
            "rowid",
        ),
        (AuditEntry, "event = 'approved'", {"id": "id", "reason": "'x'"}, "rowid"),
        (LedgerEntry, "amount > 1", {"paid_at": "'2020-01-01'"}, "id"),
        (LedgerEntry, "amount > 1", {"id": UNUSED, "paid_at": "'2020-01-01'"}, "expense_id"),
        (LedgerEntry, "amount > 1", {"id": UNUSED, "rowid": "rowid"}, "rowid"),
        (Expense, "expense_id = 'created'", {"merchant": "'x'"}, "id"),
        (Expense, "expense_id = 'paid'", {"id": UNUSED, "state": "'CREATED'"}, "expense_id"),
        (Expense, "expense_id = 'created'", {"id": UNUSED, "expense_id": "'x'"}, "approval_id"),
        (
            Expense,
            "expense_id = 'created'",
            {
                "id": UNUSED,
                "expense_id": "'unused'",
                "approval_id": f"({APPROVAL} 'unused')",
            },
            "workflow_id",
        ),
        (Order, "order_id = 'runs'", {"total": "1"}, "id"),
        (Order, "order_id = 'runs'", {"id": UNUSED, "total": "1"}, "order_id"),
        (Order, "order_id = 'runs'", {"id": UNUSED, "order_id": "'x'"}, "workflow_id"),
        (
            Order,
            "order_id = 'waits'",
            {"id": UNUSED, "order_id": "'x'", "workflow_id": "'x'"},
            "approval_id",
        ),
        (OrderStep, "attempt = 1", {"id": "id", "message": "'x'"}, "rowid"),
        (OrderStep, "attempt = 1", {"message": "'x'"}, "order_id"),
    )
    for verb in ("INSERT OR REPLACE", "REPLACE")
]
REPLACEMENTS += [
    (
        "UPDATE OR REPLACE approvals_approval SET verdict = 'VOID', "
        "entry_id = (SELECT entry_id FROM approvals_approval WHERE reference = 'void' "
        "AND verdict = 'VOID') "
        "WHERE title = 'void, again'",
        f"{UNIQUE}approvals_approval.entry_id",
    ),
    (
        "UPDATE OR REPLACE expenses_expense SET owns_workflow = 1, "
        "workflow_id = 'expense_created' WHERE expense_id = 'without amount'",
        f"{UNIQUE}expenses_expense.workflow_id",
    ),
    *(
        (
            f"UPDATE OR REPLACE orders_order SET {column} = (SELECT {column} FROM orders_order "
            "WHERE order_id = 'waits') WHERE order_id = 'void'",
            f"{UNIQUE}orders_order.{column}",
        )
        for column in ("id", "order_id", "workflow_id", "approval_id", "rowid")
    ),
    *(
        (
            f"UPDATE OR REPLACE {table} SET rowid = (SELECT min(rowid) FROM {table}) "
            f"WHERE rowid = (SELECT max(rowid) FROM {table})",
            f"{UNIQUE}{table}.rowid",
        )
        for table in ("approvals_approval", "approvals_auditentry", "expenses_expense")
    ),
]
# On PostgreSQL it passes the triggers on DELETE.
TRUNCATIONS = [
    (f"TRUNCATE {model._meta.db_table} CASCADE", "is never deleted.") for model in guards.GUARDED
]


@pytest.fixture
def records() -> None:
    """Requests in each state, and entries and approvals that no request uses."""
    act = factories.act(reason="as made")
    for expense_id, state in (
        ("created", State.CREATED),
        ("approved", State.APPROVED),
        ("rejected", State.REJECTED),
        ("withdrawn", State.WITHDRAWN),
        ("paid", State.COMPLETED),
        ("half decided", State.CREATED),
    ):
        factories.expense(expense_id, state, submitter=factories.user())
    factories.expense("without amount", State.APPROVED)
    for reason, subject, subject_id, event in (
        ("approves created", "expense", "created", AuditEntry.Event.APPROVED),
        ("cancels created", "expense", "created", AuditEntry.Event.CANCELLED),
        ("approves another expense", "expense", "other", AuditEntry.Event.APPROVED),
        ("approves an order", "order", "created", AuditEntry.Event.APPROVED),
        ("approves half decided", "expense", "half decided", AuditEntry.Event.APPROVED),
    ):
        approvals.record(event, subject, subject_id, factories.act(reason=reason))
    execute(verdict("APPROVED", "approves half decided", of="half decided"))

    factories.stock()
    waits, void, approved, rejected = (
        submitted(order_id, factories.LARGE)
        for order_id in ("waits", "void", "approved order", "rejected order")
    )
    assert waits.approval_id
    factories.carry(submitted("runs", factories.SMALL), contracts.CHECK_INVENTORY)
    factories.carry(void, contracts.BEGIN_COMPENSATION, reason="r")
    approvals.decide(approved.approval, Verdict.APPROVED, factories.act())
    approvals.decide(rejected.approval, Verdict.REJECTED, act)
    for kind, reference, title in (
        (expense_services.KIND, "unused", "unused"),
        (expense_services.KIND, "unused void", "unused void"),
        (order_services.KIND, "unused order", "unused order"),
        (order_services.KIND, "void", "void, again"),
        (order_services.KIND, "rejected order", "rejected order, again"),
    ):
        money: Any = {}
        if kind is order_services.KIND:
            money = {"amount": approved.total, "currency": approved.currency}
        opened = approvals.open_approval(kind, reference, at=factories.NOW, title=title, **money)
        if title == "unused void":
            entry = approvals.record(AuditEntry.Event.FAILED, kind.name, reference, act)
            approvals.void(opened.pk, entry)
    # PostgreSQL truncates no table with foreign keys that are yet to be checked.
    connection.check_constraints()


def submitted(order_id: str, items: Any) -> Order:
    submission = order_services.Submission(
        items=items, customer=factories.CUSTOMER, order_id=order_id
    )
    return order_services.submit_order(submission, factories.act())


def execute(statement: str) -> int:
    """Return the number of rows that changed."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.rowcount


def rows() -> dict[type[Model], list[dict[str, Any]]]:
    entries = list(AuditEntry.objects.order_by("pk").values())
    return {**factories.records(), AuditEntry: entries}


def refused(statement: str, sentence: str) -> IntegrityError:
    before = rows()
    with pytest.raises(IntegrityError, match=re.escape(sentence)) as error, transaction.atomic():
        execute(statement)
    assert rows() == before
    return error.value


def shortened(text: str) -> str:
    return text[:60]


@pytest.mark.django_db
@pytest.mark.usefixtures("records")
class TestStatements:
    @pytest.mark.parametrize(
        ("statement", "sentence"),
        CONTRADICTIONS + (REPLACEMENTS if connection.vendor == "sqlite" else TRUNCATIONS),
        ids=shortened,
    )
    def test_a_contradiction_is_refused(self, statement: str, sentence: str) -> None:
        """X1, X2: nothing changes, and the refusal does not look like a duplicate, nor a duplicate
        like a refusal."""
        error = refused(statement, sentence)
        assert approvals.is_duplicate(error) == sentence.startswith(UNIQUE)

    @pytest.mark.parametrize(
        "statement",
        [
            verdict("APPROVED", "approves created"),
            verdict("VOID", "cancels created"),
            f"{SET_APPROVAL} expires_at = opened_at WHERE reference = 'created'",
            f"{SET_EXPENSE} state = 'APPROVED' WHERE expense_id = 'half decided'",
            f"{SET_EXPENSE} merchant = 'x', workflow_id = 'x' WHERE expense_id = 'created'",
            payment("approved"),
            payment("without amount", "NULL", "''"),
            expense("unused", "unused"),
            order("unused order", f"({APPROVAL} 'unused order')"),
            order("other", "NULL", "running"),
            f"{SET_ORDER} steps_begun = 2 WHERE order_id = 'runs'",
            f"{SET_ORDER} state = 'compensating', ends_as = 'failed' WHERE order_id = 'runs'",
            f"{SET_ORDER} approval_id = ({APPROVAL} 'void, again'), state = 'pending', "
            "ends_as = '', ended_at = NULL WHERE order_id = 'void'",
        ],
    )
    def test_what_agrees_with_the_records_passes(self, statement: str) -> None:
        """The triggers refuse nothing else."""
        assert execute(statement) == 1

    def test_a_temporary_table_stands_in_for_no_record(self) -> None:
        """X1: whoever may only write rows may still make temporary tables."""
        schema = "main" if connection.vendor == "sqlite" else "public"
        execute(
            "CREATE TEMPORARY TABLE approvals_approval AS "
            f"SELECT * FROM {schema}.approvals_approval"
        )
        execute("UPDATE approvals_approval SET verdict = 'APPROVED'")
        refused(
            f"UPDATE {schema}.expenses_expense SET state = 'APPROVED' "
            "WHERE expense_id = 'rejected'",
            FOLLOWS,
        )

    def test_an_id_that_is_taken_is_answered_as_such(self) -> None:
        """E5, O1: on SQLite a trigger finds the duplicate before the unique index does."""
        with pytest.raises(expense_services.ExpenseExists):
            expense_services.create_expense("created", workflow_id=None, act=factories.act())
        with pytest.raises(expense_services.ExpenseExists):
            expense_services.create_expense("paid", workflow_id=None, act=factories.act())
        with pytest.raises(order_services.IdInUse):
            submitted("waits", factories.LARGE)
        with pytest.raises(order_services.IdInUse):
            submitted("runs", factories.SMALL)


def test_each_rule_has_a_statement() -> None:
    tried = {sentence for _, sentence in CONTRADICTIONS}
    assert {rule.sentence for rule in guards.RULES} == tried


# Migrations


def installed() -> list[tuple[Any, ...]]:
    """The triggers of the database: their names and definitions, or internal numbers."""
    of = {
        "sqlite": "SELECT name, sql, rootpage FROM sqlite_master WHERE type = 'trigger'",
        "postgresql": "SELECT tgname, pg_trigger.oid, tgfoid FROM pg_trigger "
        "WHERE NOT tgisinternal",
    }
    with connection.cursor() as cursor:
        cursor.execute(of[connection.vendor])
        return sorted(cursor.fetchall())


@pytest.mark.django_db(transaction=True)
def test_a_second_migrate_leaves_the_triggers_as_they_are() -> None:
    before = installed()
    assert {name for name, *_ in before} == guards.triggers(connection).keys()
    call_command("migrate", verbosity=0)
    assert installed() == before


@pytest.mark.django_db(transaction=True)
def test_triggers_of_other_rules_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name for name, *_ in installed()}
    rule = guards.Rule(AuditEntry, "AFTER INSERT", "{new.actor} = 'nobody'", "Somebody acts.")
    with monkeypatch.context() as patch:
        patch.setattr(guards, "RULES", (*guards.RULES, rule))
        guards.create("default")
        assert {name for name, *_ in installed()} == guards.triggers(connection).keys() != before
        factories.expense()
        refused(copy(AuditEntry, "1 = 1", actor="'nobody'"), "Somebody acts.")
    guards.create("default")
    assert {name for name, *_ in installed()} == before


@pytest.mark.django_db(transaction=True)
def test_a_migration_may_rebuild_a_guarded_table() -> None:
    """On SQLite a table is rebuilt by a copy, and triggers of other tables name it."""
    factories.expense("paid", State.COMPLETED)
    before = {name for name, *_ in installed()}
    old = Expense._meta.get_field("merchant")
    wider = models.CharField(max_length=300, blank=True)
    wider.set_attributes_from_name("merchant")
    for alter in ((old, wider), (wider, old)):
        migration = migrations.Migration("changed", "expenses")
        emit_pre_migrate_signal(0, False, "default", plan=[(migration, False)])
        assert installed() == []
        with connection.schema_editor() as editor:
            editor.alter_field(Expense, *alter)
            editor.execute("UPDATE expenses_expense SET state = 'APPROVED'")
            editor.execute("UPDATE expenses_expense SET state = 'COMPLETED'")
        emit_post_migrate_signal(0, False, "default")
        assert {name for name, *_ in installed()} == before
        refused(f"{SET_EXPENSE} state = 'APPROVED'", FOLLOWS)


@pytest.mark.django_db
def test_migrate_refuses_a_database_of_before() -> None:
    """E13: nothing migrates the decisions of that version; the triggers stay."""
    before = installed()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE approvals_decision (id integer)")
    remedy = {"sqlite": "Move the file .* away", "postgresql": "an empty database in DATABASE_URL"}
    with pytest.raises(CommandError, match=f"Nothing was changed.*{remedy[connection.vendor]}"):
        call_command("migrate", "orders", "zero", verbosity=0)
    assert installed() == before
