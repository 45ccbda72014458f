"""How each kind of message is delivered."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from temporal import addresses, client
from temporal.outcomes import Outcome

Handler = Callable[[client.Temporal, dict[str, Any]], Awaitable[Outcome]]

COMPLETE_ACTIVITY: Final = "complete_activity"
COMPLETE_WAIT: Final = "complete_wait"
START_WORKFLOW: Final = "start_workflow"
SIGNAL_WORKFLOW: Final = "signal_workflow"
CANCEL_WORKFLOW: Final = "cancel_workflow"


async def complete_activity(temporal: client.Temporal, payload: dict[str, Any]) -> Outcome:
    """`{"address": <sealed>, "value": str}`"""
    address = addresses.Address.unseal(payload["address"])
    return await temporal.complete_activity(address, payload["value"])


async def complete_wait(temporal: client.Temporal, payload: dict[str, Any]) -> Outcome:
    """`{"workflow_id": str, "activity_type": str, "argument": str, "value": str,
    "started": bool}`"""
    return await temporal.complete_wait(**payload)


async def start_workflow(temporal: client.Temporal, payload: dict[str, Any]) -> Outcome:
    """`{"workflow": type, "argument": <JSON>, "workflow_id": str, "queue": str}`, and `"memo"`
    where several runs use one workflow id"""
    return await temporal.start_workflow(**payload)


async def signal_workflow(temporal: client.Temporal, payload: dict[str, Any]) -> Outcome:
    """`{"workflow_id": str, "memo": {…}, "signal": str, "argument": str, "started": bool}`"""
    return await temporal.signal_workflow(**payload)


async def cancel_workflow(temporal: client.Temporal, payload: dict[str, Any]) -> Outcome:
    """`{"workflow_id": str, "memo": {…}, "started": bool}`"""
    return await temporal.cancel_workflow(**payload)


HANDLERS: dict[str, Handler] = {
    COMPLETE_ACTIVITY: complete_activity,
    COMPLETE_WAIT: complete_wait,
    START_WORKFLOW: start_workflow,
    SIGNAL_WORKFLOW: signal_workflow,
    CANCEL_WORKFLOW: cancel_workflow,
}
