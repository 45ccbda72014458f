"""What a kind of request gets by registering: the admin, REST, the audit trail and delivery."""

import uuid
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Permission, User
from django.db import connections
from django.test import Client
from temporalio.client import Client as TemporalClient

from approvals import services as approvals
from approvals.models import AuditEntry, Verdict
from outbox.models import Message
from outbox.relay import Relay
from temporal.outcomes import Outcome
from tests import factories
from tests.conftest import Unchanged
from tests.leave.models import Leave, ask

pytestmark = pytest.mark.django_db

INBOX = "/admin/approvals/approval/"
APPROVALS = "/api/v1/approvals"


@pytest.fixture
def boss() -> User:
    person = factories.user(username="boss")
    person.user_permissions.set(
        Permission.objects.filter(codename__in=["grant_leave", "view_leave"])
    )
    return person


@pytest.fixture
def leave() -> Leave:
    return ask("summer-1", 10, factories.act(factories.user(username="emil")))


def test_admin_shows_and_decides_the_request(boss: User, leave: Leave, client: Client) -> None:
    """X3, X5: the list has what waits; the page has the facts, the trail and the buttons."""
    client.force_login(boss)
    listed = client.get(INBOX).content.decode()
    for text in ("summer-1", "10 days", "emil", "leave"):
        assert text in listed
    page = client.get(f"{INBOX}{leave.approval_id}/change/").content.decode()
    for text in ("10 days", "submitted", 'value="approve"', "/admin/leave/leave/summer-1/"):
        assert text in page
    form = {"action": "approve", "_selected_action": str(leave.approval_id)}
    told = client.post(INBOX, form, follow=True).content.decode()
    assert "Approved: summer-1." in told
    assert "emil" not in client.get(INBOX).content.decode()
    leave.refresh_from_db()
    assert leave.granted
    decided = client.get(f"{INBOX}{leave.approval_id}/change/").content.decode()
    assert "approved by boss" in decided
    assert 'value="approve"' not in decided


def test_rest_shows_and_decides_the_request(boss: User, leave: Leave) -> None:
    """E12, X5: a rejection needs a reason, a repeat succeeds, the opposite is a conflict."""
    client = Client(headers=factories.bearer(boss))
    [waiting] = client.get(APPROVALS).json()["results"]
    assert waiting == client.get(f"{APPROVALS}/{leave.approval_id}").json()
    assert waiting["reference"] == "summer-1"
    assert (waiting["kind"], waiting["title"]) == ("leave", "10 days")
    assert (waiting["submitter"], waiting["decision"]) == ("emil", None)
    assert waiting["state"] == "WAITING"

    def send(verb: str, reason: str = "") -> Any:
        path = f"{APPROVALS}/{leave.approval_id}/{verb}"
        return client.post(path, {"reason": reason}, "application/json")

    assert send("reject").status_code == 400
    for _ in range(2):
        answer = send("reject", "too busy")
        assert answer.status_code == 200
        assert answer.json()["decision"]["verdict"] == "REJECTED"
        assert answer.json()["decision"]["reason"] == "too busy"
    assert send("approve").status_code == 409
    assert client.get(APPROVALS).json() == {"results": []}
    trail = client.get(f"{APPROVALS}/{leave.approval_id}/audit").json()["results"]
    assert [entry["event"] for entry in trail] == ["submitted", "rejected"]


@pytest.mark.parametrize("who", ["emil", "stranger"])
def test_rule_holds_for_the_kind(leave: Leave, unchanged: Unchanged, who: str) -> None:
    """X3, X10: the submitter withdraws and does not decide; a stranger sees and decides nothing."""
    person = User.objects.get(username="emil") if who == "emil" else factories.user()
    client = Client(headers=factories.bearer(person))
    path = f"{APPROVALS}/{leave.approval_id}"
    seen = 200 if who == "emil" else 404
    assert client.get(path).status_code == client.get(f"{path}/audit").status_code == seen
    with unchanged(refusals=1):
        assert client.post(f"{path}/approve", {}, "application/json").status_code == 403
    with unchanged():
        assert (
            client.post(f"{APPROVALS}/{uuid.uuid4()}/approve", {}, "application/json").status_code
            == 403
        )
    client.force_login(person)
    assert client.get(INBOX).status_code == 403
    if who == "emil":
        assert (
            client.post(f"{path}/withdraw", {}, "application/json").json()["decision"]["verdict"]
            == "WITHDRAWN"
        )
    else:
        with unchanged():
            assert client.post(f"{path}/withdraw", {}, "application/json").status_code == 404


@pytest.mark.django_db(transaction=True)
async def test_decision_is_delivered(temporal_address: str, monkeypatch: Any) -> None:
    """X1: the workflow that follows from the approval runs."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    name = f"leave-{uuid.uuid4()}"

    def decide() -> Message | None:
        made = ask(name, 1, factories.act(factories.user()))
        return approvals.decide(made.approval, Verdict.APPROVED, factories.act())

    message = await sync_to_async(decide)()
    assert message is not None
    assert str(message) == f"decision on {name}"
    await Relay().step()
    await sync_to_async(message.refresh_from_db)()
    assert message.outcome == Outcome.DELIVERED
    temporal = await TemporalClient.connect(temporal_address)
    described = await temporal.get_workflow_handle(f"leave-{name}").describe()
    assert described.workflow_type == "SayHelloWorkflow"
    await sync_to_async(connections.close_all)()


def test_void_approval_does_not_look_undecided(boss: User, leave: Leave, client: Client) -> None:
    """X1, E12: over REST and on its page, and it waits for nobody."""
    entry = approvals.record(AuditEntry.Event.CANCELLED, "leave", "summer-1", factories.act())
    approvals.void(leave.approval_id, entry)
    path = f"{APPROVALS}/{leave.approval_id}"
    told = client.get(path, headers=factories.bearer(boss)).json()
    assert (told["state"], told["decision"]) == ("VOID", None)
    client.force_login(boss)
    page = client.get(f"{INBOX}{leave.approval_id}/change/").content.decode()
    assert "void" in page
    assert "False" not in page
    assert "summer-1" not in client.get(INBOX).content.decode()
