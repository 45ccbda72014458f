"""The worker's connection to Temporal."""

import asyncio
import contextlib
import itertools
import logging
from typing import Any, Final

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError, RPCStatusCode

from worker import contracts

logger = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 5


class WrongAddress(Exception):
    """TEMPORAL_ADDRESS can never be right, however long the worker waits."""


def read_options() -> dict[str, Any]:
    """Return the arguments for `Client.connect`, from `TEMPORAL_*` and TOML profiles.

    Raises ValueError if a variable or a profile cannot be read.
    """
    try:
        configured = ClientConfig.load_client_connect_config()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"The TEMPORAL_* settings cannot be read: {error}") from error
    return {"target_host": contracts.TEMPORAL_ADDRESS, "namespace": "default", **configured} | {
        "runtime": _make_runtime()
    }


def _make_runtime() -> Runtime:
    """Make an SDK runtime that logs no task tokens (requirements E10)."""
    # At DEBUG the Python half of the SDK logs the token of each activity.
    sdk = logging.getLogger("temporalio")
    sdk.setLevel(max(sdk.getEffectiveLevel(), logging.INFO))
    # At WARN the Rust half quotes the token of an activity whose workflow was closed meanwhile.
    default = TelemetryFilter(core_level="WARN", other_level="ERROR").formatted()
    log_filter = f"{default},temporalio_sdk_core::worker::activities=OFF"
    return Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(filter=log_filter)))


async def connect(options: dict[str, Any]) -> Client:
    """Connect to a server that answers and has the namespace.

    Raises ConnectionError, whose text names the cause and the remedy, and WrongAddress.
    """
    namespace = options["namespace"]
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            client = await Client.connect(**options)
            await client.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace=namespace)
            )
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise ConnectionError(
                f"it has no namespace {namespace!r}. Set TEMPORAL_NAMESPACE, or create it with "
                f"`temporal operator namespace create --namespace {namespace}`."
            ) from error
        raise ConnectionError(
            f"it answers {error.status.name} ({error.message}). Check TEMPORAL_API_KEY and "
            "TEMPORAL_TLS."
        ) from error
    except TimeoutError as error:
        raise ConnectionError(
            f"no answer within {CONNECT_SECONDS} s. Check the server and TEMPORAL_ADDRESS."
        ) from error
    except ValueError as error:
        raise WrongAddress(f"TEMPORAL_ADDRESS is {options['target_host']!r}: {error}") from error
    except RuntimeError as error:
        raise ConnectionError(
            f"it cannot be reached. Start it (`make up`), or set TEMPORAL_ADDRESS. ({error})"
        ) from error
    return client


async def connect_patiently(options: dict[str, Any], stop: asyncio.Event) -> Client | None:
    """Try to connect until it succeeds; None if `stop` is set first. Raises WrongAddress."""
    for pause in itertools.chain(range(1, 5), itertools.repeat(5)):
        try:
            return await connect(options)
        except ConnectionError as error:
            logger.warning("waiting for Temporal at %s …: %s", options["target_host"], error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)
            break
    return None
