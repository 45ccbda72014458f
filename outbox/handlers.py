"""How each kind of message is delivered. A domain registers its own kinds."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from outbox import addresses, client
from outbox.models import Outcome

Handler = Callable[[client.Temporal, dict[str, Any]], Awaitable[Outcome]]

COMPLETE_ACTIVITY: Final = "complete_activity"
COMPLETE_WAIT: Final = "complete_wait"
START_WORKFLOW: Final = "start_workflow"


async def complete_activity(temporal: client.Temporal, payload: dict[str, Any]) -> Outcome:
    """`{"address": <sealed>, "value": str}`"""
    address = addresses.Address.unseal(payload["address"])
    return await temporal.complete_activity(address, payload["value"])


async def complete_wait(temporal: client.Temporal, payload: dict[str, Any]) -> Outcome:
    """`{"workflow_id": str, "activity_type": str, "argument": str, "value": str,
    "started": bool}`"""
    return await temporal.complete_wait(**payload)


async def start_workflow(temporal: client.Temporal, payload: dict[str, Any]) -> Outcome:
    """`{"workflow": type, "argument": str, "workflow_id": str, "queue": str}`"""
    return await temporal.start_workflow(
        payload["workflow"],
        payload["argument"],
        workflow_id=payload["workflow_id"],
        queue=payload["queue"],
    )


HANDLERS: dict[str, Handler] = {
    COMPLETE_ACTIVITY: complete_activity,
    COMPLETE_WAIT: complete_wait,
    START_WORKFLOW: start_workflow,
}
