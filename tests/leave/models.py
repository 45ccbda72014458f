"""The leave request, and what follows from its approval."""

from django.db import models, transaction

from access.text import OpaqueIdField
from approvals import services as approvals
from approvals.kinds import Kind
from approvals.models import Approval, Verdict
from outbox import handlers
from outbox import services as outbox
from outbox.models import Message
from worker import contracts


class Leave(models.Model):
    leave_id = OpaqueIdField(max_length=100, unique=True)
    days = models.PositiveIntegerField()
    granted = models.BooleanField(default=False)
    approval = models.OneToOneField(Approval, on_delete=models.PROTECT)

    class Meta:
        permissions = [("grant_leave", "Can approve and reject leave")]

    def __str__(self) -> str:
        return str(self.leave_id)


def ask(leave_id: str, days: int, act: approvals.Act) -> Leave:
    with transaction.atomic():
        approvals.record_submission(KIND.name, leave_id, act)
        approval = approvals.open_approval(
            KIND, leave_id, at=act.at, submitter=act.actor.user, title=f"{days} days"
        )
        return Leave.objects.create(leave_id=leave_id, days=days, approval=approval)


def _decided(approval: Approval, act: approvals.Act) -> Message | None:
    if approval.verdict != Verdict.APPROVED:
        return None
    Leave.objects.filter(approval=approval).update(granted=True)
    payload = {
        "workflow": contracts.JOB_WORKFLOW,
        "argument": {"msg": f"leave {approval.reference}"},
        "workflow_id": f"leave-{approval.reference}",
        "queue": contracts.JOB_QUEUE,
    }
    return outbox.enqueue(
        handlers.START_WORKFLOW, KIND.key("decision", approval.reference), payload
    )


KIND = Kind(
    name="leave",
    model=Leave,
    own_id="leave_id",
    permission="leave.grant_leave",
    seen_with=("leave.view_leave",),
    verdicts=frozenset({Verdict.APPROVED, Verdict.REJECTED, Verdict.WITHDRAWN}),
    decided=_decided,
)
