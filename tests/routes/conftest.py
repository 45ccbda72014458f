"""Each test sends its requests within one transaction, which is rolled back."""

import pytest

from orders import integrations, services
from orders.models import Order


@pytest.fixture(autouse=True)
def _snapshot_within_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the snapshot without the transaction that the product opens: it cannot be nested."""

    def snapshot() -> services.Snapshot:
        return services.Snapshot(
            list(Order.objects.all()),
            integrations.inventory().snapshot(),
            integrations.payments().snapshot(),
            integrations.warehouse().snapshot(),
        )

    monkeypatch.setattr(services, "snapshot", snapshot)
