from django.apps import AppConfig


class ApprovalsConfig(AppConfig):
    name = "approvals"
    verbose_name = "Approvals"

    def ready(self) -> None:
        from access import groups

        groups.grant_after_migrate(self, {groups.AUDITOR: ("view_auditentry",)})
