from django.apps import AppConfig


class OutboxConfig(AppConfig):
    name = "outbox"
    verbose_name = "Delivery"

    def ready(self) -> None:
        from access import groups
        from outbox import health
        from rest import monitoring

        monitoring.METRICS.register(health.Metrics())
        monitoring.READINESS.append(health.readiness)
        groups.grant_after_migrate(
            self,
            {
                groups.OPERATOR: ("view_message", "retry_message"),
                groups.AUDITOR: ("view_message",),
            },
        )
