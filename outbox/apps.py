from django.apps import AppConfig


class OutboxConfig(AppConfig):
    name = "outbox"
    verbose_name = "Delivery"

    def ready(self) -> None:
        from outbox import metrics
        from rest import monitoring

        monitoring.METRICS.register(metrics.Metrics())
        monitoring.READINESS.append(metrics.readiness)
