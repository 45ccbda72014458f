"""`manage.py relay`: deliver what is due, until stopped."""

import asyncio
import logging
import signal
from typing import Any

from outbox import reconciliation, relay
from temporal.base_command import TemporalCommand

log = logging.getLogger(__name__)


class Command(TemporalCommand):
    help = (
        "Deliver the messages in the outbox that the web processes did not deliver at commit. "
        "Each minute the relay looks for decisions that a workflow still waits for, and delivers "
        "them again. SIGTERM or Ctrl-C stops it after its current step. Any number may run."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        running = relay.Relay()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, running.stop)
        comparing = asyncio.create_task(reconciliation.Reconciler().run())
        log.info("Relay ready")
        await running.run()
        # It can stop at any line, since it queues messages by a single statement.
        comparing.cancel()
        await asyncio.wait([comparing])
        log.info("Relay stopped")
