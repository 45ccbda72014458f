from django.apps import AppConfig


class JobsConfig(AppConfig):
    name = "jobs"
    verbose_name = "Jobs"

    def ready(self) -> None:
        from access import groups

        groups.grant_after_migrate(
            self,
            {
                groups.APPROVER: ("view_run",),
                groups.FINANCE: ("view_run",),
                groups.AUDITOR: ("view_run",),
                groups.OPERATOR: ("run_job", "view_run"),
                groups.WORKER: ("run_job", "view_run"),
            },
        )
