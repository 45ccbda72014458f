"""What the packages report to probes and to Prometheus. Each package registers its own part."""

from collections.abc import Callable
from typing import Any, Final

from prometheus_client import CollectorRegistry

# `GET /metrics` answers with these.
METRICS: Final = CollectorRegistry()
# `GET /readyz` answers with the fields that these return. They read the database.
READINESS: Final[list[Callable[[], dict[str, Any]]]] = []
