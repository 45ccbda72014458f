"""The plain-text endpoints, as the clients of Temporal's expense sample call them."""

import logging
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote, urlencode

import pytest
from django.test import Client

from access import groups
from approvals.models import Approval, AuditEntry
from expenses.models import CallbackAddress, Expense, LedgerEntry, State
from outbox.models import Message
from temporal.addresses import Address
from tests import factories
from tests.conftest import Unchanged, at_once

pytestmark = pytest.mark.django_db

API = {"is_api_call": "true"}
FORM = "application/x-www-form-urlencoded"
# What approve, reject and payment make of each state; None: forbidden; the state itself: a repeat.
TRANSITIONS = {
    State.CREATED: (State.APPROVED, State.REJECTED, None),
    State.APPROVED: (State.APPROVED, None, State.COMPLETED),
    State.REJECTED: (None, State.REJECTED, None),
    State.WITHDRAWN: (None, None, None),
    State.COMPLETED: (State.COMPLETED, None, State.COMPLETED),
}
CASES = [
    (before, kind, after)
    for before, row in TRANSITIONS.items()
    for kind, after in zip(("approve", "reject", "payment"), row, strict=True)
]
ENDPOINTS = [
    ("GET", "/create?is_api_call=true"),
    ("GET", "/action?is_api_call=true&type=approve"),
    ("GET", "/action?is_api_call=true&type=payment"),
    ("GET", "/status?"),
    ("POST", "/registerCallback?"),
]
PATHS = [
    *(
        "/",
        "/list",
        "/decide",
        "/carry",
        "/create?id=new",
        "/status?id=exp-1",
        "/registerCallback?id=exp-1",
    ),
    *("/action?id=exp-1&type=approve", "/action?id=approved&type=payment"),
]
# Percent-encoded, as they travel.
BAD_IDS = {
    "empty": "",
    "blank": "%20%20",
    "no-break space": "%C2%A0",
    "101 characters": "a" * 101,
    "5,000 characters": "a" * 5000,
    "NUL": "a%00b",
    "newline": "a%0Ab",
    "DEL": "a%7F",
    "C1 control": "a%C2%85",
    "not UTF-8": "%FF",
    "U+FFFD": "a%EF%BF%BD",
    "surrogate": "a%ED%A0%80",
}
GOOD_IDS = (" a ", "a" * 100, "😀" * 100, "<b>&amp;</b>", "a/../b?c#d&e=f%2F+", "é", "0")


def get(client: Client, path: str, /, **query: str) -> tuple[int, str]:
    response = client.get(path, query)
    return response.status_code, response.content.decode()


def create(client: Client, expense_id: str, key: str | None = None) -> tuple[int, str]:
    headers = {} if key is None else {"Idempotency-Key": key}
    response = client.get("/create", {"id": expense_id, **API}, headers=headers)
    return response.status_code, response.content.decode()


def register(client: Client, expense_id: str, body: dict[str, str]) -> tuple[int, str]:
    response = client.post(f"/registerCallback?{urlencode({'id': expense_id})}", body)
    return response.status_code, response.content.decode()


# Transitions


@pytest.mark.parametrize(("before", "kind", "after"), [c for c in CASES if c[2] in (None, c[0])])
def test_a_repeat_succeeds_and_a_forbidden_transition_is_invalid_state(
    local: Client, unchanged: Unchanged, before: State, kind: str, after: State | None
) -> None:
    """E1, E4, X2: people get a page with status 400. Neither changes anything."""
    factories.expense(state=before)
    with unchanged():
        answer = get(local, "/action", type=kind, id="exp-1", **API)
        status, page = get(local, "/action", type=kind, id="exp-1")
    assert answer == (200, "SUCCEED" if after else "ERROR:INVALID_STATE")
    assert status == (302 if after else 400)
    assert ('<p role="alert">exp-1 ' in page) is (after is None)


@pytest.mark.parametrize("mode", ["", "false", "no", "true"])
@pytest.mark.parametrize(
    ("before", "kind", "after"), [c for c in CASES if c[2] not in (None, c[0])]
)
def test_a_transition_answers_succeed_to_programs_and_the_list_to_people(
    local: Client, mode: str, before: State, kind: str, after: State
) -> None:
    """E1, E3, E4, X5: for each transition that the state allows."""
    factories.expense(state=before)
    response = local.get("/action", {"type": kind, "id": "exp-1", "is_api_call": mode})
    if mode == "true":
        assert (response.status_code, response.content) == (200, b"SUCCEED")
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    else:
        assert (response.status_code, response.headers["Location"]) == (302, "/list")
    expense, approval = Expense.objects.get(), Approval.objects.select_related("entry").get()
    assert (expense.state, expense.approval) == (after, approval)
    if kind == "payment":
        assert expense.payment == LedgerEntry.objects.get(expense=expense)
        assert AuditEntry.objects.latest("pk").event == "paid"
    else:
        reason = "rejected over the protocol" if kind == "reject" else ""
        entry = approval.entry
        assert (approval.verdict, entry.reason) == (after.value, reason)
        assert (entry.actor, entry.by, entry.route) == ("local", None, "protocol")
    assert not Message.objects.exists()  # nobody waits


@pytest.mark.parametrize(("kind", "value"), [("approve", "APPROVED"), ("reject", "REJECTED")])
def test_a_decision_stores_its_reason_and_one_message(local: Client, kind: str, value: str) -> None:
    """E4, E9, X1: the reason is trimmed, and the message is due at once."""
    waiting = factories.address("expense_exp-1")
    expense = factories.expense(callback=waiting)
    for reason in (" déjà payé 😀\n", "again"):
        answer = get(local, "/action", type=kind, id="exp-1", reason=reason, **API)
        assert answer == (200, "SUCCEED")
    assert Approval.objects.get().entry.reason == "déjà payé 😀"
    message = Message.objects.get()
    assert (message.kind, message.key) == ("complete_activity", "expense-decision:exp-1")
    assert message.payload == {"address": expense.callback.sealed(), "value": value}
    assert Address.unseal(message.payload["address"]) == waiting
    assert (message.due_at, message.outcome) == (message.created_at, None)


# Parameters


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        ("/create", [["query", "id"]]),
        ("/action?type=approve", [["query", "id"]]),
        ("/action?id=exp-1", [["query", "type"]]),
        ("/action?is_api_call=true", [["query", "type"], ["query", "id"]]),
        ("/status", [["query", "id"]]),
        ("/registerCallback", [["query", "id"], ["body", "task_token"]]),
        ("/registerCallback?id=exp-1", [["body", "task_token"]]),
    ],
)
def test_a_missing_parameter_is_422_and_changes_nothing(
    local: Client, unchanged: Unchanged, path: str, missing: list[list[str]]
) -> None:
    """E8: in both modes, with a list of the missing parameters."""
    factories.expense()
    with unchanged():
        response = (local.post if path.startswith("/register") else local.get)(path)
    assert (response.status_code, response.headers["Content-Type"]) == (422, "application/json")
    assert [error["loc"] for error in response.json()["detail"]] == missing
    assert {error["msg"] for error in response.json()["detail"]} == {"Field required"}


@pytest.mark.parametrize("kind", ["", "APPROVE", "withdraw", "\0", "x" * 5000], ids=ascii)
def test_an_unknown_type_is_invalid_type(local: Client, unchanged: Unchanged, kind: str) -> None:
    """E4, E8: the empty type too."""
    factories.expense()
    with unchanged():
        assert get(local, "/action", type=kind, id="exp-1", **API) == (200, "ERROR:INVALID_TYPE")
        assert get(local, "/action", type=kind, id="exp-1")[0] == 400


@pytest.mark.parametrize("reason", ["x" * 2001, "a\0b"])
def test_an_unstorable_reason_decides_nothing(
    local: Client, unchanged: Unchanged, reason: str
) -> None:
    """E4, E8: a reason that is too long, or that no database stores."""
    factories.expense()
    query = {"type": "reject", "id": "exp-1", "reason": reason}
    with unchanged():
        assert get(local, "/action", **query, **API) == (200, "ERROR:INVALID_FORM_DATA")
        assert get(local, "/action", **query)[0] == 400


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
@pytest.mark.parametrize("bad", BAD_IDS.values(), ids=BAD_IDS)
def test_an_id_that_no_expense_can_have_is_invalid_id(
    local: Client, unchanged: Unchanged, method: str, path: str, bad: str
) -> None:
    """E4–E8: on every endpoint; people get status 400."""
    factories.expense()
    with unchanged():
        response = local.generic(method, f"{path}&id={bad}", b"task_token=00", FORM)
        assert (response.status_code, response.content) == (200, b"ERROR:INVALID_ID")
        if "is_api_call" in path:
            assert local.get(f"{path.replace('=true', '=false')}&id={bad}").status_code == 400


@pytest.mark.parametrize(("method", "path"), ENDPOINTS[1:])
def test_an_unknown_id_is_invalid_id(
    local: Client, unchanged: Unchanged, method: str, path: str
) -> None:
    """E4, E6, E7: ids differ by case, by space and by normal form."""
    factories.expense("é")
    for unknown in ("É", " é", "e\u0301", "<script>"):
        with unchanged():
            address = f"{path}&id={quote(unknown)}"
            response = local.generic(method, address, b"task_token=00", FORM)
        assert (response.status_code, response.content) == (200, b"ERROR:INVALID_ID")
    assert "no expense &lt;script&gt;." in get(local, "/action", type="approve", id="<script>")[1]


@pytest.mark.parametrize("expense_id", GOOD_IDS)
def test_an_id_is_kept_as_it_came(local: Client, expense_id: str) -> None:
    """E5–E7: it is never trimmed, from the creation to the payment."""
    assert create(local, expense_id) == (200, "SUCCEED")
    assert Expense.objects.get().expense_id == expense_id
    assert get(local, "/status", id=expense_id) == (200, "CREATED")
    assert register(local, expense_id, {"task_token": "00"}) == (200, "SUCCEED")
    for kind in ("approve", "payment"):
        assert get(local, "/action", id=expense_id, type=kind, **API) == (200, "SUCCEED")
    assert get(local, "/status", id=expense_id) == (200, "COMPLETED")


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "POST", "TRACE"])
def test_other_methods_are_405_and_change_nothing(
    local: Client, unchanged: Unchanged, method: str
) -> None:
    """E8: only GET is served, and POST for registerCallback and the forms of the pages."""
    factories.expense()
    factories.expense("approved", State.APPROVED)
    for path in PATHS:
        served = "POST" if path.startswith(("/registerCallback", "/decide", "/carry")) else "GET"
        with unchanged():
            response = local.generic("GET" if method == served else method, path)
        assert (response.status_code, response.headers["Allow"]) == (405, served)


# Creation


def test_an_existing_id_is_refused_without_its_workflows_key(
    local: Client, unchanged: Unchanged
) -> None:
    """E5: in each state. A record created without a key belongs to no workflow."""
    factories.expense("keyless")
    for state in State:
        factories.expense(state.value, state, workflow_id=f"wf-{state}")
    with unchanged():
        assert create(local, "keyless", "expense_keyless") == (200, "ERROR:ID_ALREADY_EXISTS")
        for state in State:
            for key in (None, "expense_other"):
                assert create(local, state.value, key) == (200, "ERROR:ID_ALREADY_EXISTS")
            assert get(local, "/create", id=state.value)[0] == 400


@pytest.mark.parametrize("key", ["%00", "%FF", "a%0Ab", "%20", "a" * 256])
def test_a_malformed_key_creates_nothing(local: Client, unchanged: Unchanged, key: str) -> None:
    """E5: a key that cannot be a workflow id."""
    with unchanged():
        assert create(local, "exp-1", key) == (200, "ERROR:INVALID_FORM_DATA")


def test_create_makes_an_expense_that_belongs_to_no_workflow(local: Client) -> None:
    """E5, X5: people are redirected to /list."""
    assert create(local, "a") == (200, "SUCCEED")
    assert local.get("/create", {"id": "b"}).headers["Location"] == "/list"
    rows = Expense.objects.values_list(
        *("expense_id", "state", "workflow_id", "approval__submitter", "approval__amount")
    )
    assert list(rows) == [(name, "CREATED", None, None, None) for name in ("a", "b")]
    events = AuditEntry.objects.order_by("pk").values_list("event", "subject_id", "actor", "route")
    assert list(events) == [("created", name, "local", "protocol") for name in ("a", "b")]
    assert not Message.objects.exists()


@pytest.mark.parametrize("key", ["expense_exp-1", "expense_%C3%A9%F0%9F%98%80", "a" * 255])
def test_creating_again_with_the_key_succeeds_and_changes_nothing(
    local: Client, unchanged: Unchanged, key: str
) -> None:
    """E5: the workflow of the expense asks again."""
    assert create(local, "exp-1", key) == (200, "SUCCEED")
    assert Expense.objects.get().workflow_id == unquote(key)
    with unchanged():
        assert create(local, "exp-1", key) == (200, "SUCCEED")


def test_the_workflow_of_a_submitted_expense_finds_the_record(
    local: Client, unchanged: Unchanged
) -> None:
    """E5: it asks with its own key."""
    factories.expense("é", submitter=factories.user(groups.EMPLOYEE))
    with unchanged():
        assert create(local, "é", "expense_%C3%A9") == (200, "SUCCEED")


# Registration

MALFORMED = [
    *({"task_token": token} for token in ("", "abc", "0g", " 00", "00\n", "0x00", "\u0660\u0661")),
    *({"task_token": token} for token in ("00\0", "00" * 5000)),
    *({"task_token": "00", "workflow_id": name} for name in ("a\0", " ", "\ufffd")),
    {"task_token": "00", "run_id": "a\n"},
    {"task_token": "00", "activity_id": "a" * 256},
]


@pytest.mark.parametrize("form", MALFORMED, ids=lambda form: ascii(form)[:40])
def test_a_malformed_registration_stores_nothing(
    local: Client, unchanged: Unchanged, form: dict[str, str]
) -> None:
    """E7, E8: a token that is not hexadecimal, or ids that are not ids."""
    factories.expense()
    with unchanged():
        assert register(local, "exp-1", form) == (200, "ERROR:INVALID_FORM_DATA")


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"task_token":"00"}', "application/json", 422),
        (b"garbage", "multipart/form-data; boundary=x", 422),
        (b"task_token=%FF", FORM, 200),
        (b"garbage", "multipart/form-data", 400),
        (b"&".join([b"a=1"] * 2000), FORM, 400),
    ],
)
def test_a_strange_body_is_no_server_error(
    local: Client, unchanged: Unchanged, body: bytes, kind: str, status: int
) -> None:
    """E8: and stores nothing."""
    factories.expense()
    with unchanged():
        response = local.generic("POST", "/registerCallback?id=exp-1", body, kind)
    assert response.status_code == status


@pytest.mark.parametrize("state", [state for state in State if state != State.CREATED])
def test_a_decided_expense_takes_no_registration(
    local: Client, unchanged: Unchanged, state: State
) -> None:
    """E7: in each state but CREATED."""
    factories.expense(state=state, callback=factories.address("expense_exp-1"))
    form = factories.form(factories.address("expense_exp-1", attempt=2))
    with unchanged():
        assert register(local, "exp-1", form) == (200, "ERROR:INVALID_STATE")


def test_the_token_is_stored_encrypted(local: Client) -> None:
    """E7, E10: no column has the token as it came. Upper-case hex and 4 kB are tokens too."""
    factories.expense()
    secret = b"\x0a\x02ab-the-secret-token" + b"\xfe" * 4000
    form = {"task_token": secret.hex().upper(), "workflow_id": "wf é", "run_id": "r"}
    assert register(local, "exp-1", form) == (200, "SUCCEED")
    assert Address.unseal(CallbackAddress.objects.get().sealed()) == Address(secret, "wf é", "r")
    assert get(local, "/action", type="approve", id="exp-1", **API) == (200, "SUCCEED")
    stored = repr((factories.records(), list(AuditEntry.objects.values()))).lower()
    for text in (secret.hex(), secret.hex()[:40], "the-secret-token"):
        assert text not in stored


@pytest.mark.parametrize("named", [True, False])
def test_repeated_registration_replaces_the_address_and_is_not_audited(
    local: Client, named: bool
) -> None:
    """E7, X5, X7: each attempt of a waiting activity registers again; the decision goes to the
    newest. The first name binds the expense; a plain client, which names none, leaves it
    unbound."""
    factories.expense()
    for attempt in (1, 2, 3):
        newest = factories.address("wf-1", attempt=attempt, named=named)
        assert register(local, "exp-1", factories.form(newest)) == (200, "SUCCEED")
        events = AuditEntry.objects.order_by("pk").values_list("event", flat=True)
        assert list(events) == ["created", "registered"]
    assert Expense.objects.get().workflow_id == ("wf-1" if named else None)
    assert get(local, "/action", type="approve", id="exp-1", **API) == (200, "SUCCEED")
    told = Address.unseal(Message.objects.get().payload["address"])
    assert told.token == newest.token


def test_registration_that_binds_the_expense_is_audited(local: Client) -> None:
    """E7, X5, X7: the first registration that names a workflow, even after one without a name."""
    factories.expense()
    for named in (False, True, True):
        form = factories.form(factories.address("wf-1", named=named))
        assert register(local, "exp-1", form) == (200, "SUCCEED")
    assert AuditEntry.objects.filter(event="registered").count() == 2
    assert Expense.objects.get().workflow_id == "wf-1"


@pytest.mark.parametrize("bound_by", ["creation", "registration"])
@pytest.mark.parametrize("named", ["expense_other", "expense_EXP-1", " expense_exp-1", None])
def test_an_expense_of_a_workflow_takes_no_registration_of_another(
    local: Client, unchanged: Unchanged, named: str | None, bound_by: str
) -> None:
    """X7: nor a registration that names no workflow."""
    if bound_by == "creation":
        factories.expense(workflow_id="expense_exp-1")
    else:
        factories.expense(callback=factories.address("expense_exp-1"))
    form = {"task_token": "00"} | ({"workflow_id": named} if named else {})
    with unchanged(refusals=1):
        assert register(local, "exp-1", form) == (200, "ERROR:INVALID_STATE")
    refusal = AuditEntry.objects.latest("pk")
    assert (refusal.subject_id, refusal.actor, refusal.route) == ("exp-1", "local", "protocol")
    assert refusal.reason.startswith("callback: ")


VICTIM = "expense_victim"
OWN = {"workflow_id": "expense_exp-1", "run_id": "r", "activity_id": "2"}
ANOTHER = factories.form(factories.address(VICTIM, attempt=2))
SUBSTITUTIONS = {
    "the very token, unnamed": factories.form(factories.address(VICTIM, named=False)),
    "the very token, as its own": {**factories.form(factories.address(VICTIM)), **OWN},
    "a token of its workflow, unnamed": {"task_token": ANOTHER["task_token"]},
    "a token of its workflow, as its own": {**ANOTHER, **OWN},
    "a token of its workflow, with its ids": ANOTHER,
    # Temporal cannot read the token, and is then told by the ids.
    "its ids alone": {**ANOTHER, "task_token": "00"},
}


@pytest.mark.parametrize("form", SUBSTITUTIONS.values(), ids=SUBSTITUTIONS)
@pytest.mark.parametrize(
    ("bound", "callback"),
    [
        (VICTIM, factories.address(VICTIM)),
        (VICTIM, None),
        (None, factories.address(VICTIM, named=False)),
    ],
    ids=["bound", "bound, not registered", "registered without a name"],
)
def test_a_registration_never_takes_another_expenses_activity(
    local: Client,
    unchanged: Unchanged,
    bound: str | None,
    callback: Address | None,
    form: dict[str, str],
) -> None:
    """X7: so deciding one expense never completes the activity of another."""
    factories.expense("victim", workflow_id=bound, callback=callback)
    factories.expense()
    with unchanged(refusals=1):
        assert register(local, "exp-1", form) == (200, "ERROR:INVALID_STATE")


def test_a_token_of_another_workflow_than_named_is_refused(
    local: Client, unchanged: Unchanged
) -> None:
    """X7: the refusal is audited."""
    factories.expense(workflow_id="expense_exp-1")
    form = {**factories.form(factories.address("order-1")), **OWN}
    with unchanged(refusals=1):
        assert register(local, "exp-1", form) == (200, "ERROR:INVALID_STATE")


def test_a_workflow_has_one_unsettled_expense(local: Client, unchanged: Unchanged) -> None:
    """X7: a creation with the key of another expense's workflow changes nothing."""
    factories.expense("victim", workflow_id=VICTIM)
    with unchanged():
        status, body = create(local, "exp-1", VICTIM)
    assert (status, body[:6]) == (200, "ERROR:")


def test_naming_a_workflow_first_takes_nothing_from_its_own_expense(
    local: Client, unchanged: Unchanged
) -> None:
    """X7: that expense is created and gets its decision; the stranger's registration is refused."""
    factories.expense("stranger")
    guess = {"task_token": "00", "workflow_id": VICTIM, "activity_id": "2"}
    assert register(local, "stranger", guess) == (200, "SUCCEED")
    assert create(local, "victim", VICTIM) == (200, "SUCCEED")
    own = factories.form(factories.address(VICTIM))
    with unchanged(refusals=1):
        assert register(local, "stranger", own) == (200, "ERROR:INVALID_STATE")
    assert register(local, "victim", own) == (200, "SUCCEED")


# The order of answers, and what is logged


@pytest.mark.parametrize(
    ("path", "group", "site", "answer"),
    [
        ("PUT /create?", None, "cross-site", (405, "")),
        ("GET /create?", None, "cross-site", (403, "ERROR:FORBIDDEN")),
        ("GET /create?", None, None, (401, "ERROR:FORBIDDEN")),
        ("GET /create?", groups.FINANCE, None, (403, "ERROR:FORBIDDEN")),
        ("GET /create?", groups.WORKER, None, (422, '{"detail"')),
        ("GET /action?id=%00&type=x&reason=%00", groups.APPROVER, None, (200, "ERROR:INVALID_ID")),
        ("GET /action?id=a&type=x&reason=%00", groups.APPROVER, None, (200, "ERROR:INVALID_TYPE")),
        (
            "GET /action?id=decided&type=reject&reason=%00",
            groups.APPROVER,
            None,
            (200, "ERROR:INVALID_STATE"),
        ),
        ("POST /registerCallback?id=%00", groups.WORKER, None, (200, "ERROR:INVALID_ID")),
        ("POST /registerCallback?id=decided", groups.WORKER, None, (200, "ERROR:INVALID_STATE")),
    ],
)
def test_of_several_faults_the_answer_names_the_first(
    client: Client, path: str, group: str | None, site: str | None, answer: tuple[int, str]
) -> None:
    """E4, E8: and nothing changes."""
    factories.expense("a")
    factories.expense("decided", State.APPROVED)
    headers = factories.bearer(factories.user(group)) if group else {}
    headers |= {"Sec-Fetch-Site": site} if site else {}
    method, _, address = path.partition(" ")
    before = factories.records()
    address += "&is_api_call=true"
    response = client.generic(method, address, b"task_token=x", FORM, headers=headers)
    assert response.status_code == answer[0]
    assert response.content.decode().startswith(answer[1])
    assert factories.records() == before


def test_no_log_page_or_answer_has_the_token(
    local: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """E10: changes are logged, without the token."""
    for logger in (None, "django", "django.request"):
        caplog.set_level(logging.DEBUG, logger)
    waiting = factories.address("wf-1")
    other = factories.expense("other", callback=factories.address("wf-2"))
    form, bad = factories.form(waiting), {"task_token": f"{waiting.token.hex()}x"}
    answers: list[Any] = [create(local, "exp-1")]
    registrations = (("exp-1", form), ("exp-1", bad), ("other", form))
    answers += [register(local, name, body) for name, body in registrations]
    for kind in ("approve", "reject", "payment"):
        answers += [get(local, "/action", id="exp-1", type=kind, **mode) for mode in (API, {})]
    answers += [get(local, "/list"), waiting, other.callback, str(other.callback)]
    lines = [record.getMessage() for record in caplog.records]
    assert {
        "exp-1 created by local",
        "exp-1: callback registered by local",
        "exp-1 approved by local",
        "exp-1 paid by local",
        "other refused to local: callback: It names another workflow than the expense's, or none.",
    } <= set(lines)
    everything = f"{lines}{answers}{caplog.text}"
    for secret in (waiting.token.hex(), repr(waiting.token)[2:-1], "e0b9c8de-namespace"):
        assert secret not in everything


@pytest.mark.parametrize("path", ["GET /create", "POST /registerCallback"])
def test_a_refused_request_forges_no_log_line(
    client: Client, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """E10, X3: nor an audit entry of several lines."""
    headers = factories.bearer(factories.user(groups.AUDITOR))
    query = "id=exp-1&is_api_call=true&type=%0A%00forged"
    response = client.generic(*f"{path}?{query}".split(" "), headers=headers)
    assert response.status_code == 403
    lines = [record.getMessage() for record in caplog.records]
    lines += AuditEntry.objects.values_list("reason", flat=True)
    assert not [line for line in lines if "\n" in line or "\0" in line]


# Races


def action(expense_id: str, kind: str) -> Callable[[], str]:
    query = {"id": expense_id, "type": kind, **API}
    return lambda: get(Client(SERVER_NAME="localhost"), "/action", **query)[1]


def registration(expense_id: str, form: dict[str, str]) -> Callable[[], str]:
    return lambda: register(Client(SERVER_NAME="localhost"), expense_id, form)[1]


@pytest.mark.django_db(transaction=True)
def test_racing_verdicts_make_one_decision(local: Client) -> None:
    """E11, X1: twelve at once make one message, and every answer agrees with the decision."""
    factories.expense(callback=factories.address("wf-1"))
    kinds = ["approve", "reject"] * 6
    answers = at_once([action("exp-1", kind) for kind in kinds])
    verdict = Approval.objects.get().verdict
    winner = {"APPROVED": "approve", "REJECTED": "reject"}[verdict]
    assert answers == ["SUCCEED" if kind == winner else "ERROR:INVALID_STATE" for kind in kinds]
    assert Expense.objects.get().state == verdict
    assert Message.objects.get().payload["value"] == verdict


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("key", [None, "wf"])
def test_racing_creations_make_one_expense(local: Client, key: str | None) -> None:
    """E5, E11: twenty at once. With the key, all succeed."""
    answers = at_once([lambda: create(Client(SERVER_NAME="localhost"), "exp-1", key)[1]] * 20)
    others = "SUCCEED" if key else "ERROR:ID_ALREADY_EXISTS"
    assert sorted(answers) == sorted(["SUCCEED", *[others] * 19])
    assert (Expense.objects.count(), AuditEntry.objects.count()) == (1, 1)


@pytest.mark.django_db(transaction=True)
def test_racing_payments_make_one_ledger_row(local: Client) -> None:
    """E11, X2: twelve at once, and all succeed."""
    factories.expense(state=State.APPROVED)
    assert at_once([action("exp-1", "payment")] * 12) == ["SUCCEED"] * 12
    assert Expense.objects.get().payment == LedgerEntry.objects.get()


@pytest.mark.django_db(transaction=True)
def test_a_registration_that_races_a_decision_gets_the_decision(local: Client) -> None:
    """E7, E11, X1: by a message, or by the answer to the registration."""
    for name in (f"exp-{number}" for number in range(10)):
        factories.expense(name)
        form = factories.form(factories.address(f"expense_{name}"))
        registered, decided = at_once([registration(name, form), action(name, "approve")])
        assert decided == "SUCCEED"
        told = Message.objects.filter(key=f"expense-decision:{name}").exists()
        assert registered == ("SUCCEED" if told else "ERROR:INVALID_STATE")


@pytest.mark.django_db(transaction=True)
def test_racing_registrations_of_a_token_store_it_once(local: Client) -> None:
    """E11, X7: ten expenses register the same token at once."""
    names = [f"exp-{number}" for number in range(10)]
    for name in names:
        factories.expense(name)
    answers = at_once([registration(name, {"task_token": "00ff"}) for name in names])
    assert sorted(answers) == ["ERROR:INVALID_STATE"] * 9 + ["SUCCEED"]
    assert CallbackAddress.objects.count() == 1
    assert AuditEntry.objects.filter(event="refused").count() == 9


@pytest.mark.parametrize("workflow_id", ["a\0b", "w" * 300], ids=["NUL", "long"])
def test_unstorable_ids_inside_a_token_are_left_out(local: Client, workflow_id: str) -> None:
    """E7: the token itself is stored."""
    factories.expense()
    token = factories.task_token(workflow_id)
    answer = local.post("/registerCallback?id=exp-1", {"task_token": token.hex()})
    assert answer.content == b"SUCCEED"
    assert CallbackAddress.objects.get().workflow_id == ""


def test_a_workflow_id_is_reused_once_its_expense_is_settled(
    local: Client, unchanged: Unchanged
) -> None:
    """E5, X7: not before. An expense that the workflow did not create cannot name it."""
    refused = (200, "ERROR:INVALID_STATE")
    assert create(local, "first", "wf") == (200, "SUCCEED")
    assert register(local, "first", factories.form(factories.address("wf"))) == (200, "SUCCEED")
    for step in ("approve", "payment"):
        with unchanged():
            assert create(local, "second", "wf") == (200, "ERROR:ID_ALREADY_EXISTS")
        assert local.get(f"/action?type={step}&id=first&is_api_call=true").content == b"SUCCEED"
    assert create(local, "second", "wf") == (200, "SUCCEED")
    factories.expense("stranger")
    token = factories.task_token("wf", attempt=2).hex()
    form = {"task_token": token, "workflow_id": "wf", "run_id": "another", "activity_id": "2"}
    with unchanged(refusals=1):
        assert register(local, "stranger", form) == refused
    with unchanged(refusals=1):
        # The activity that waited for the first.
        again = factories.form(factories.address("wf", attempt=3))
        assert register(local, "second", again) == refused
    assert register(local, "second", form) == (200, "SUCCEED")


# A session and GET

LINKS = {
    "/action?type=approve&id=exp-1": ("/decide", "APPROVED"),
    "/action?type=reject&id=exp-1": ("/decide", "REJECTED"),
    "/action?type=payment&id=approved": ("/carry", "COMPLETED"),
    "/create?id=new": ("/carry", "CREATED"),
}


@pytest.mark.parametrize("site", [None, "none", "same-origin"])
@pytest.mark.parametrize("mode", ["token", "open"])
@pytest.mark.parametrize("link", LINKS)
def test_a_link_asks_and_its_form_acts(
    client: Client, settings: Any, unchanged: Unchanged, link: str, mode: str, site: str | None
) -> None:
    """E3, E5, X8: a signed-in browser that follows a link changes nothing, in either mode. It gets
    a page that asks, and the form of the page acts."""
    settings.EXPENSES_PROTOCOL_ACCESS = mode
    factories.expense()
    factories.expense("approved", State.APPROVED)
    browser = Client(enforce_csrf_checks=True, SERVER_NAME="localhost")
    browser.force_login(factories.user(is_superuser=True))
    headers = {"Sec-Fetch-Site": site} if site else {}
    with unchanged():
        page = browser.get(link, headers=headers)
        api = browser.get(f"{link}&is_api_call=true", headers=headers)
    assert (page.status_code, page["Cache-Control"]) == (200, "no-store")
    assert (api.status_code, api.content) == (401, b"ERROR:FORBIDDEN")

    action, state = LINKS[link]
    html = page.content.decode()
    assert f'action="{action}"' in html
    form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', html))
    with unchanged():
        assert browser.post(action, {**form, "csrfmiddlewaretoken": "x"}).status_code == 403
    assert browser.post(action, {**form, "reason": "as read"}).status_code == 302
    assert Expense.objects.get(expense_id=form["id"]).state == state
    entry = AuditEntry.objects.latest("pk")
    assert (entry.subject_id, entry.route) == (form["id"], "page")


@pytest.mark.parametrize(
    ("link", "status"),
    [
        ("/action?type=approve&id=approved", 400),
        ("/action?type=reject&id=paid", 400),
        ("/action?type=payment&id=exp-1", 400),
        ("/action?type=payment&id=paid", 400),
        ("/action?type=approve&id=own", 403),
        ("/action?type=approve&id=nope", 400),
        ("/action?type=other&id=exp-1", 400),
        ("/create?id=exp-1", 400),
        ("/create?id=%00", 400),
        ("/create", 422),
    ],
)
def test_no_page_asks_for_what_is_refused(
    client: Client, unchanged: Unchanged, link: str, status: int
) -> None:
    """X10: a link to an impossible or a forbidden change shows a sentence and no form."""
    root = factories.user(is_superuser=True)
    factories.expense()
    factories.expense("own", submitter=root)
    factories.expense("approved", State.APPROVED)
    factories.expense("paid", State.COMPLETED)
    client.force_login(root)
    with unchanged():
        answer = client.get(link)
    assert answer.status_code == status
    assert b"<form" not in answer.content


@pytest.mark.parametrize("kind", ["other", ""])
@pytest.mark.parametrize("mode", ["token", "open"])
def test_an_unknown_type_of_action_is_answered_with_every_valid_type(
    settings: Any, unchanged: Unchanged, mode: str, kind: str
) -> None:
    """E3, E4: for a person with a token, and for the anonymous person in open mode."""
    settings.EXPENSES_PROTOCOL_ACCESS = mode
    headers = factories.bearer(factories.user(is_superuser=True)) if mode == "token" else {}
    factories.expense()
    with unchanged():
        answer = Client(SERVER_NAME="localhost").get(
            "/action", {"type": kind, "id": "exp-1"}, headers=headers
        )
    assert answer.status_code == 400
    assert "The type must be approve, reject or payment." in answer.content.decode()


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"type": "approve", "id": "exp-1"}, 400),
        ({"type": "payment", "id": "exp-1"}, 400),
        ({"type": "payment", "id": "nope"}, 400),
        ({"type": "create", "id": "exp-1"}, 400),
        ({"type": "create", "id": ""}, 400),
        ({"type": "create"}, 422),
    ],
)
def test_a_refused_form_of_carry_is_a_page_and_changes_nothing(
    local: Client, unchanged: Unchanged, form: dict[str, str], status: int
) -> None:
    """E3, E5: with a sentence; GET is 405."""
    factories.expense()
    with unchanged():
        assert local.post("/carry", form).status_code == status
        assert local.get("/carry", form).status_code == 405
