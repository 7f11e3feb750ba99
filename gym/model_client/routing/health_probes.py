"""What an endpoint is asked to find out how it is, each time on a connection of its own."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp
import orjson

from gym.model_client.routing.endpoint import Endpoint, Finding, request_headers
from gym.model_client.routing.served_model import ServedModel

_NO_SUCH_PATH = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class Trouble:
    """What was found; `text` is for people and names no secret."""

    finding: Finding
    text: str


async def trouble_by_its_account(
    session: aiohttp.ClientSession, record: ServedModel, endpoint: Endpoint
) -> Trouble | None:
    """What `GET /health` says, or `/v1/models` where a server has no such path; waits for ever where it is silent.

    Any answer below 500 will do: a server that wants another key, or knows neither path, lives.
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
    """What comes of asking for one token, an answer of any kind being one; waits for ever where it is silent."""
    try:
        await status_of_a_token(session, record, endpoint)
    except (aiohttp.ClientError, ValueError) as error:
        return _trouble(error)
    return None


async def status_of_a_token(session: aiohttp.ClientSession, record: ServedModel, endpoint: Endpoint) -> int:
    """The status that a request for one token is answered with. Raises aiohttp.ClientError."""
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
    """A refused connection is the end of a process; anything else may be the network's."""
    refused = isinstance(getattr(error, "os_error", None), ConnectionRefusedError)
    return Trouble("dead" if refused else "ill", f"failed a health check: {error or type(error).__name__}")
