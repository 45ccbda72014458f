from django.apps import AppConfig


class JobsConfig(AppConfig):
    name = "jobs"
    verbose_name = "Jobs"

    def ready(self) -> None:
        from access import groups

        groups.grant_after_migrate(
            self, {groups.OPERATOR: ("run_job",), groups.WORKER: ("run_job",)}
        )
