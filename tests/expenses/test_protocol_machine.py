"""The expense protocol against a model of it: any sequence of requests, on the real database."""

import re
from dataclasses import dataclass, field
from urllib.parse import urlencode

import pytest
from django.test import Client
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from access import groups
from approvals.models import Approval, AuditEntry
from expenses.models import Expense, LedgerEntry
from outbox.models import Message
from tests import factories
from tests.conftest import examples

SUCCEED, INVALID_ID, INVALID_STATE = "SUCCEED", "ERROR:INVALID_ID", "ERROR:INVALID_STATE"
EXISTS = "ERROR:ID_ALREADY_EXISTS"
# The same answers over REST.
STATUS = {SUCCEED: 200, INVALID_ID: 404, INVALID_STATE: 409, EXISTS: 409}
VERDICTS = {"approve": "APPROVED", "reject": "REJECTED", "withdraw": "WITHDRAWN"}
VALUES = {"APPROVED": "APPROVED", "REJECTED": "REJECTED", "WITHDRAWN": "CANCELLED"}

# A REST path holds them as they are.
IDS = ("a", "A", "~:@")
WORKFLOWS = ("wf", "expense_a", "free")


@dataclass
class ExpenseModel:
    """The model of an expense."""

    workflow: str | None = None
    # True where the creation named the workflow; a registration does not count.
    owns: bool = False
    submitted: bool = False
    callback: str | None = None
    verdict: str | None = None
    paid: bool = False

    @property
    def state(self) -> str:
        return "COMPLETED" if self.paid else self.verdict or "CREATED"


@dataclass
class Model:
    """The model of the protocol. Each operation returns its answer and changes the model."""

    expenses: dict[str, ExpenseModel] = field(default_factory=dict)
    audit: list[tuple[str, str]] = field(default_factory=list)
    messages: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    def create(self, name: str, key: str | None) -> str:
        if name in self.expenses:
            return SUCCEED if key and self.expenses[name].workflow == key else EXISTS
        if self._is_carrying(key):
            return EXISTS
        self.expenses[name] = ExpenseModel(workflow=key, owns=key is not None)
        self.audit.append((name, "created"))
        return SUCCEED

    def submit(self, name: str) -> str:
        workflow = f"expense_{name}"
        if name in self.expenses or self._is_carrying(workflow):
            return EXISTS
        self.expenses[name] = ExpenseModel(workflow=workflow, owns=True, submitted=True)
        self.audit.append((name, "submitted"))
        self.messages[f"expense-start:{name}"] = "start_workflow", None
        return SUCCEED

    def register(self, name: str, workflow: str, *, named: str | None) -> str:
        """Register the activity of `workflow` under the name of the workflow `named`."""
        one = self.expenses.get(name)
        if one is None:
            return INVALID_ID
        if one.state != "CREATED":
            return INVALID_STATE
        others = [other for other in self.expenses.values() if other is not one]
        if (
            (one.workflow is not None and one.workflow != named)
            or (named is not None and named != workflow)
            or (not one.owns and any(o.owns and o.workflow == workflow for o in others))
            or any(other.callback == workflow for other in others)
        ):
            self.audit.append((name, "refused"))
            return INVALID_STATE
        if one.callback is None or one.workflow != named:
            self.audit.append((name, "registered"))
        one.workflow, one.callback = named, workflow
        return SUCCEED

    def decide(self, name: str, verb: str) -> str:
        verdict, one = VERDICTS[verb], self.expenses.get(name)
        if one is None or (verdict == "WITHDRAWN" and not one.submitted):
            return INVALID_ID
        if one.verdict is not None:
            return SUCCEED if one.verdict == verdict else INVALID_STATE
        one.verdict = verdict
        self.audit.append((name, verdict.lower()))
        # A plain client's workflow gets the decision when it registers.
        if one.callback:
            self.messages[f"expense-decision:{name}"] = "complete_activity", VALUES[verdict]
        elif one.owns:
            self.messages[f"expense-decision:{name}"] = "complete_wait", VALUES[verdict]
        return SUCCEED

    def pay(self, name: str) -> str:
        one = self.expenses.get(name)
        if one is None:
            return INVALID_ID
        if one.verdict != "APPROVED":
            return INVALID_STATE
        if not one.paid:
            one.paid = True
            self.audit.append((name, "paid"))
        return SUCCEED

    def status(self, name: str) -> str:
        return self.expenses[name].state if name in self.expenses else INVALID_ID

    def _is_carrying(self, workflow: str | None) -> bool:
        """Return whether this workflow owns an unsettled expense."""
        return workflow is not None and any(
            one.owns and one.workflow == workflow and one.state in ("CREATED", "APPROVED")
            for one in self.expenses.values()
        )


ids = st.sampled_from(IDS)
workflows = st.sampled_from(WORKFLOWS)


class Protocol(RuleBasedStateMachine):
    """Each rule sends a request to the site and applies it to the model."""

    def __init__(self, local: Client, employee: Client, approver: Client) -> None:
        super().__init__()
        self.local, self.employee, self.approver = local, employee, approver
        self.model = Model()
        # A transaction for each example, rolled back.
        self.case = TestCase()
        self.case.setup_example()

    def teardown(self) -> None:
        self.case.teardown_example(None)

    def get(self, path: str, **query: str) -> str:
        return self.local.get(path, {"is_api_call": "true", **query}).content.decode()

    @initialize(absent=st.none() | ids)
    def begin(self, absent: str | None) -> None:
        """Return one of each kind, or all but one."""
        for name, how in (("a", "submitted"), ("A", "wf"), ("~:@", None)):
            if name != absent:
                self.create(name, how)

    @rule(name=ids, how=st.sampled_from((None, "submitted", *WORKFLOWS)))
    def create(self, name: str, how: str | None) -> None:
        """Create over REST as an employee, or over the protocol with or without a key."""
        if how == "submitted":
            body = {"expense_id": name, "amount": "12.50", "currency": "EUR"}
            status = self.employee.post("/api/v1/expenses/", body, "application/json").status_code
            expected = self.model.submit(name)
            assert status == (201 if expected == SUCCEED else STATUS[expected])
        else:
            headers = {"Idempotency-Key": how} if how else {}
            answer = self.local.get("/create", {"id": name, "is_api_call": "true"}, headers=headers)
            assert answer.content.decode() == self.model.create(name, how)

    @rule(
        name=ids,
        other=st.none() | workflows,
        says=st.sampled_from(("its own", "its own", "another", "none")),
        attempt=st.sampled_from((1, 2)),
    )
    def register(self, name: str, other: str | None, says: str, attempt: int) -> None:
        one = self.model.expenses.get(name)
        workflow = other or (one and one.workflow) or "free"
        named = {"its own": workflow, "another": "another", "none": None}[says]
        form = factories.form(factories.address(workflow, attempt=attempt, named=named is not None))
        if named is not None:
            form["workflow_id"] = named
        answer = self.local.post(f"/registerCallback?{urlencode({'id': name})}", form)
        assert answer.content.decode() == self.model.register(name, workflow, named=named)

    @rule(
        name=ids,
        kind=st.sampled_from(("approve", "approve", "reject", "withdraw", "payment", "payment")),
        rest=st.booleans(),
    )
    def act(self, name: str, kind: str, rest: bool) -> None:
        """Decide over REST or the protocol, or pay."""
        expected = self.model.pay(name) if kind == "payment" else self.model.decide(name, kind)
        if kind == "withdraw" or (rest and kind != "payment"):
            program = self.employee if kind == "withdraw" else self.approver
            path, body = f"/api/v1/expenses/{name}/{kind}/", {"reason": "as decided"}
            answer = program.post(path, body, "application/json")
            assert answer.status_code == STATUS[expected]
        else:
            assert self.get("/action", id=name, type=kind) == expected

    @rule(name=ids)
    def look(self, name: str) -> None:
        assert self.get("/status", id=name) == self.model.status(name)
        html = self.get("/list")
        rows = re.findall(r'<td class="id">(.*?)</td>\s*<td><span class="state \w+">(\w+)<', html)
        assert rows == sorted((name, one.state) for name, one in self.model.expenses.items())

    @invariant()
    def records(self) -> None:
        """The database has exactly the rows of the model."""
        expenses = self.model.expenses
        states = Expense.objects.values_list("expense_id", "state", "workflow_id")
        assert sorted(states) == sorted((name, o.state, o.workflow) for name, o in expenses.items())
        paid = LedgerEntry.objects.values_list("expense__expense_id", flat=True)
        assert sorted(paid) == sorted(name for name, one in expenses.items() if one.paid)
        decided = Approval.objects.exclude(verdict=None).values_list("reference", "verdict")
        assert sorted(decided) == sorted(
            (name, o.verdict) for name, o in expenses.items() if o.verdict
        )
        audit = AuditEntry.objects.order_by("pk").values_list("subject_id", "event")
        assert [*audit] == self.model.audit
        messages = {one.key: (one.kind, one.payload.get("value")) for one in Message.objects.all()}
        assert messages == self.model.messages


@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(600)
def test_any_sequence_of_requests_follows_the_model(local: Client) -> None:
    """E1–E7, X1, X2, X5, X7: the answers and the records agree with the model."""
    people = [factories.user(group) for group in (groups.EMPLOYEE, groups.APPROVER)]
    programs = [Client(headers=factories.bearer(person)) for person in people]
    run_state_machine_as_test(
        lambda: Protocol(local, *programs),
        settings=settings(max_examples=examples(60), stateful_step_count=25),
    )
