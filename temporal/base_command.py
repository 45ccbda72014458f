"""The base class of commands that call Temporal."""

import logging
import os
import sys
from typing import Any

from django.core.management.base import BaseCommand


class TemporalCommand(BaseCommand):
    """A command that ends its process without finalizing the interpreter.

    While the interpreter finalizes, the SDK's threads ask for the GIL, which aborts the process: 2
    to 5 of a hundred short commands ended with SIGABRT (temporalio/sdk-python issue 300).
    """

    def run_from_argv(self, argv: list[str]) -> None:
        code: Any = 0
        try:
            super().run_from_argv(argv)
        except SystemExit as end:
            code = end.code
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
