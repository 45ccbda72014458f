"""`manage.py relay`: deliver what is due, until stopped."""

import asyncio
import logging
import signal
from typing import Any

from outbox import relay
from outbox.commands import TemporalCommand

log = logging.getLogger(__name__)


class Command(TemporalCommand):
    help = (
        "Deliver the outbox to Temporal: whatever the web processes did not deliver at commit. "
        "Runs until SIGTERM or Ctrl-C and then finishes its step. Any number may run."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        running = relay.Relay()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, running.stop)
        log.info("Relay ready")
        await running.run()
        log.info("Relay stopped")
