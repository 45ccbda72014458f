from django.apps import AppConfig


class OutboxConfig(AppConfig):
    name = "outbox"
    verbose_name = "Delivery"

    def ready(self) -> None:
        from outbox import health
        from rest import monitoring

        monitoring.METRICS.register(health.Metrics())
        monitoring.READINESS.append(health.readiness)
