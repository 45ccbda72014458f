"""Routes are asked within a test's own transaction, which takes back what was changed."""

import pytest

from orders import integrations, services
from orders.models import Order


@pytest.fixture(autouse=True)
def _snapshot_within_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product reads a snapshot in a transaction of its own, which cannot be inside a test's."""

    def snapshot() -> services.Snapshot:
        return services.Snapshot(
            list(Order.objects.all()),
            integrations.inventory().snapshot(),
            integrations.payments().snapshot(),
            integrations.warehouse().snapshot(),
        )

    monkeypatch.setattr(services, "snapshot", snapshot)
