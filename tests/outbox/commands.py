"""Run the commands of the outbox in the test's process."""

import io

from django.core.management import CommandError, call_command


def reconcile(*arguments: str) -> tuple[int, str]:
    """Exit code of `manage.py reconcile` and what it says."""
    output = io.StringIO()
    try:
        call_command("reconcile", *arguments, stdout=output)
    except CommandError as error:
        return error.returncode, output.getvalue() + str(error)
    return 0, output.getvalue()
