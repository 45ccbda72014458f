"""`manage.py web`: serve the site, until stopped."""

import argparse
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from expensesite import server
from worker import contracts


class Command(BaseCommand):
    help = (
        "Serve the site over HTTP, in processes of WEB_THREADS threads. An incomplete request "
        "occupies no thread and is closed after 30 s; a body over 3 MB is answered 413. SIGTERM or "
        "Ctrl-C stops the server after it has answered the requests under way."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
        parser.add_argument("--host", default=contracts.SITE_HOST, help="address to listen on")
        parser.add_argument(
            "--port", type=int, default=contracts.SITE_PORT, metavar="N", help="port"
        )
        parser.add_argument("--processes", type=int, default=2, metavar="N", help="processes")
        parser.add_argument(
            "--stop-seconds",
            type=float,
            default=5,
            metavar="N",
            help="how long a request under way may take after SIGTERM",
        )

    def handle(
        self, *, host: str, port: int, processes: int, stop_seconds: float, **options: Any
    ) -> None:
        if processes < 1:
            raise CommandError("--processes takes a whole number from 1.")
        if not 0 <= stop_seconds < float("inf"):
            raise CommandError("--stop-seconds takes a number of seconds from 0.")
        address = server.free_address(host, port, "--port")
        # This import starts the delivery at commit.
        from expensesite.wsgi import application

        server.serve(
            application,
            host=address,
            port=port,
            processes=processes,
            threads=settings.WEB_THREADS,
            stop=stop_seconds,
        )
