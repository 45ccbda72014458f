"""Leave requests: a kind of request that the product does not have, to show what a kind takes."""

from django.apps import AppConfig


class LeaveConfig(AppConfig):
    name = "tests.leave"

    def ready(self) -> None:
        from approvals import kinds
        from tests.leave import models

        kinds.register(models.KIND)
