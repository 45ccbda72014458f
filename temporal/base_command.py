"""The common ground of commands that call Temporal."""

import logging
import os
import sys
from typing import Any

from django.core.management.base import BaseCommand


class TemporalCommand(BaseCommand):
    """Ends its process without finalizing the interpreter.

    The SDK's threads ask for the GIL meanwhile, which aborts the process: of short commands that
    were done, 2 to 5 in a hundred ended with SIGABRT (temporalio/sdk-python issue 300).
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
