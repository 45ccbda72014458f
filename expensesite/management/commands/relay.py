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
        "Deliver the outbox to Temporal: whatever the web processes did not deliver at commit. "
        "Each minute it looks for decisions that a workflow still waits for, and delivers them "
        "again. Runs until SIGTERM or Ctrl-C and then finishes its step. Any number may run."
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
        # At any line: what it queues is one statement.
        comparing.cancel()
        await asyncio.wait([comparing])
        log.info("Relay stopped")
