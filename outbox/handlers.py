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


HANDLERS: dict[str, Handler] = {
    COMPLETE_ACTIVITY: complete_activity,
    # The payload of each other kind holds the arguments of the call.
    COMPLETE_WAIT: lambda temporal, payload: temporal.complete_wait(**payload),
    START_WORKFLOW: lambda temporal, payload: temporal.start_workflow(**payload),
    SIGNAL_WORKFLOW: lambda temporal, payload: temporal.signal_workflow(**payload),
    CANCEL_WORKFLOW: lambda temporal, payload: temporal.cancel_workflow(**payload),
}
