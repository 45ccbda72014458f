"""The expense site over HTTP, as the activities use it."""

import asyncio
import logging
import ssl
import time
import uuid
from collections.abc import Mapping
from typing import Any, Final, Self

import httpx

from worker import contracts

logger = logging.getLogger(__name__)

# An attempt of an activity has 10 s (requirements W1), so its request has less.
TOTAL_SECONDS: Final = 8.0
CONNECT_SECONDS: Final = 2.0
READ_SECONDS: Final = 5.0
_GIVE_ACCESS: Final = "Set EXPENSES_SITE_TOKEN to the token of a user in the group Worker."


class Site:
    """One HTTP client for the whole worker. Use it as an async context manager.

    A client for each activity would build a TLS context each time, which costs 30 ms.
    Raises ValueError for an address that is not http(s) or contains credentials, and for a token
    that a header cannot carry.
    """

    def __init__(self, url: str, token: str = "") -> None:
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"EXPENSES_SITE_URL is {url!r}: {error}") from error
        # Failure messages quote the address, so a password in it would reach the histories.
        if address.scheme not in ("http", "https") or not address.host or address.userinfo:
            raise ValueError(
                "EXPENSES_SITE_URL must begin with http:// or https:// and carry no user name"
            )
        # httpx quotes a refused header in its error, so a bad token is refused here.
        if not (token.isascii() and token.isprintable()):
            raise ValueError("EXPENSES_SITE_TOKEN has characters that a header cannot carry")
        self.url = url
        self._client = httpx.AsyncClient(
            base_url=address,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            follow_redirects=False,
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            # The worker's activity slots limit the connections already.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
            # Uses the system's certificates (SSL_CERT_FILE) and no proxy: only the site gets the
            # token.
            verify=ssl.create_default_context(),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        workflow_id: str,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        json: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the body of a 2xx answer that arrives within :data:`TOTAL_SECONDS`.

        Raises httpx.HTTPStatusError for any other status, redirects included, and
        httpx.TransportError if no answer comes. Logs method, path, status and time, but never the
        query, a header or the form, which may contain a task token (requirements E10, W9).
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                response = await self._client.request(
                    method,
                    path,
                    params=params,
                    data=data,
                    json=json,
                    headers={"Idempotency-Key": contracts.idempotency_key(workflow_id)},
                )
        except (httpx.TransportError, TimeoutError) as error:
            logger.warning(
                "%s %s failed after %d ms: %s", method, path, _ms(began), type(error).__name__
            )
            if isinstance(error, TimeoutError):
                # httpx limits each read; this limits an answer that arrives byte by byte.
                raise httpx.ReadTimeout(f"no answer within {TOTAL_SECONDS:g} s") from error
            raise
        logger.info("%s %s %d in %d ms", method, path, response.status_code, _ms(began))
        response.raise_for_status()
        return response.text

    async def find_fault(self) -> str | None:
        """Say what keeps the worker from using the site, and the remedy; None if nothing does."""
        unknown = f"runworker-{uuid.uuid4()}"
        try:
            answer = await self.request(
                "GET", "/status", workflow_id=unknown, params={"id": unknown}
            )
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in (401, 403):
                return f"it refuses the token ({status}). {_GIVE_ACCESS}"
            if status == 404:
                return (
                    "it has no expense protocol (404). Set EXPENSES_PROTOCOL_ACCESS on the site to "
                    "token, or correct EXPENSES_SITE_URL."
                )
            return f"it answers {status}. See the site's log, or correct EXPENSES_SITE_URL."
        except httpx.TransportError as error:
            return (
                f"it cannot be reached ({type(error).__name__}). Start it (`make up`), or correct "
                "EXPENSES_SITE_URL."
            )
        if answer != contracts.INVALID_ID:
            return "the answer there is not the expense site's. Correct EXPENSES_SITE_URL."
        try:
            # A payment of nothing: the site checks access before the missing id (422).
            payment = {"type": "payment", "is_api_call": "true"}
            await self.request("GET", "/action", workflow_id=unknown, params=payment)
        except httpx.HTTPStatusError as error:
            if error.response.status_code in (401, 403):
                return f"it refuses payments by this token. {_GIVE_ACCESS}"
        except httpx.TransportError as error:
            return f"it stopped answering ({type(error).__name__})."
        return None


def _ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
