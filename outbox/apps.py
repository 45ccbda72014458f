from django.apps import AppConfig


class OutboxConfig(AppConfig):
    name = "outbox"
    verbose_name = "Delivery"

    def ready(self) -> None:
        from access import groups

        groups.grant_after_migrate(
            self,
            {
                groups.OPERATOR: ("view_message", "retry_message"),
                groups.AUDITOR: ("view_message",),
            },
        )
