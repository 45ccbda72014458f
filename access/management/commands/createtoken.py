"""`manage.py createtoken USER` makes a bearer token with the rights of a user."""

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Q
from django.utils import timezone
from knox.settings import knox_settings

from access import groups
from access.commands import active_user
from access.models import Token

LONGEST_DAYS = 3650
GRACE = timedelta(hours=1)


class Command(BaseCommand):
    help = (
        "Print a new API token of a user. The token is shown once, because only its hash is "
        "stored. It has its user's rights. A token expires after --days and ends when its user's "
        f"password changes. Tokens of the {groups.WORKER} group do not expire by default, and no "
        "password change ends them."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username")
        parser.add_argument("--days", type=int, help="days until it expires")
        parser.add_argument(
            "--replace",
            action="store_true",
            help="let the user's other tokens end in an hour (rotation)",
        )
        parser.add_argument(
            "--revoke", action="store_true", help="end the user's other tokens now (a leak)"
        )

    def handle(
        self, *, username: str, days: int | None, replace: bool, revoke: bool, **options: Any
    ) -> None:
        user = active_user(username)
        if days is not None and not 1 <= days <= LONGEST_DAYS:
            raise CommandError(f"--days takes a whole number from 1 to {LONGEST_DAYS}.")
        expiry = timedelta(days=days) if days else knox_settings.TOKEN_TTL
        permanent = days is None and groups.is_worker(user)
        instance, token = Token.objects.create(user, expiry=None if permanent else expiry)
        others = Token.objects.filter(user=user).exclude(pk=instance.pk)
        if revoke:
            others.delete()
        elif replace:
            # A worker that has not been restarted yet may use its old token until then.
            grace = timezone.now() + GRACE
            others.filter(Q(expiry=None) | Q(expiry__gt=grace)).update(expiry=grace)
        self.stdout.write(token)
