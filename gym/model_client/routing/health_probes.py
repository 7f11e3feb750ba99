"""Probes of an endpoint's health, each on a new connection."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp
import orjson

from gym.model_client.routing.endpoint import Endpoint, Finding, request_headers
from gym.model_client.routing.served_model import ServedModel

_NO_SUCH_PATH = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class Trouble:
    """Failed probe; `text` is for display and contains no secret."""

    finding: Finding
    text: str


async def trouble_by_its_account(
    session: aiohttp.ClientSession, record: ServedModel, endpoint: Endpoint
) -> Trouble | None:
    """Probe `GET /health`, or `/v1/models` if the server has no such path. Waits without limit.

    Any status below 500 passes: a server that wants another key, or has neither path, is alive.
    """
    status = 404
    for url in (endpoint.url.health, endpoint.url.models):
        try:
            async with session.get(url, headers=request_headers(record, endpoint), allow_redirects=False) as response:
                status = response.status
        except (aiohttp.ClientError, ValueError) as error:  # a ValueError is a header that cannot be sent
            return _trouble(error)
        if status not in _NO_SUCH_PATH:
            break
    return Trouble("ill", f"answers {status} to a health check") if status >= 500 and status != 501 else None


async def trouble_with_a_token(
    session: aiohttp.ClientSession, record: ServedModel, endpoint: Endpoint
) -> Trouble | None:
    """Probe with a request for one token; any answer passes. Waits without limit."""
    try:
        await status_of_a_token(session, record, endpoint)
    except (aiohttp.ClientError, ValueError) as error:
        return _trouble(error)
    return None


async def status_of_a_token(session: aiohttp.ClientSession, record: ServedModel, endpoint: Endpoint) -> int:
    """Return the status that a request for one token is answered with. Raises aiohttp.ClientError."""
    url = endpoint.url.chat
    body = {"model": record.spec.model, "messages": [{"role": "user", "content": "."}], "max_tokens": 1}
    if record.spec.api == "responses":
        url = endpoint.url.responses
        body = {"model": record.spec.model, "input": ".", "max_output_tokens": 1, "store": False}
    async with session.post(
        url,
        data=orjson.dumps(body),
        headers=request_headers(record, endpoint) | {"x-request-id": "farm-health-check"},
        allow_redirects=False,
    ) as response:
        return response.status


def _trouble(error: aiohttp.ClientError | ValueError) -> Trouble:
    """Classify an error: a refused connection means a dead process, any other error may be the network's."""
    refused = isinstance(getattr(error, "os_error", None), ConnectionRefusedError)
    return Trouble("dead" if refused else "ill", f"failed a health check: {error or type(error).__name__}")
