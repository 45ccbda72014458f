#!/usr/bin/env python3
"""Django's command line for the expense site."""

import os
import sys
from pathlib import Path


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "expensesite.settings")
    try:
        from django.conf import settings
        from django.core.exceptions import ImproperlyConfigured
        from django.core.management import execute_from_command_line
        from environs import EnvError
    except ImportError:
        # Any `python3 manage.py …` works after `make setup`: go on with the project's own Python.
        python = Path(__file__).resolve().parent / ".venv" / "bin" / "python"
        if not python.exists() or Path(sys.executable) == python:
            sys.exit("Django is not installed. Run `make setup` first.")
        os.execv(python, [str(python), *sys.argv])
    command, *arguments = sys.argv[1:] or [""]
    if command == "runworker":
        # Without Django's settings, which do not load without the site's secrets.
        from worker import __main__ as worker

        worker.main(arguments)
    if command == "up":
        # The first start makes the secrets without which Django's settings do not load.
        from local import installation

        installation.prepare(arguments)
    try:
        execute_from_command_line(sys.argv)
    except (EnvError, ImproperlyConfigured) as error:
        if settings.configured:
            raise
        sys.exit(str(error))


if __name__ == "__main__":
    main()
