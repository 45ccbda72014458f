"""`python -m tests.faults.prepare`: create tables and users in DATABASE_URL; print the users'
tokens as JSON."""

import json

import django
from django.core.management import call_command

django.setup()

from access import groups  # noqa: E402 (needs the apps)
from tests import factories  # noqa: E402

call_command("migrate", verbosity=0)
approver = factories.user(groups.APPROVER, username="anna", password="anna")
people = {
    "worker": factories.user(groups.WORKER),
    "employee": factories.user(groups.EMPLOYEE),
    "approver": approver,
    "second approver": factories.user(groups.APPROVER),
}
print(json.dumps({name: factories.token(person) for name, person in people.items()}))
