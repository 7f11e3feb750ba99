"""Error responses over plain ASGI, for middleware in front of both the api and the proxy."""

from __future__ import annotations

import orjson
from starlette.types import Send

from gym.errors import RequestError


async def send_error(error: RequestError, send: Send) -> None:
    """Send the error in the API's shape and close the connection, since the body has not been read."""
    body = orjson.dumps({"error": {"code": error.code, "message": error.message, "details": error.details}})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
