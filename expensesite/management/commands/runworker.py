"""The entry of `manage.py runworker` in the list of `manage.py help`.

manage.py runs `python -m worker` instead, since the worker needs none of Django's settings.
"""

from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Run the Temporal worker. `manage.py runworker --help` lists its options."
