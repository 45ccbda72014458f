"""The permissions to run jobs and to see runs. Jobs live in Temporal alone: there is no table."""

from django.db import models


class Job(models.Model):  # noqa: DJ008 (there are no rows)
    class Meta:
        managed = False
        default_permissions = ()
        permissions = [
            ("run_job", "Can run jobs"),
            ("view_run", "Can see the state of any workflow"),
        ]
