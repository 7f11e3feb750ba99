"""Who may call what: the check of `api.keys`, as plain ASGI middleware in front of the app.

Without keys in the settings there is no check, which `gym.config` allows on loopback only.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import error_response
from api.keys import KeyRing
from gym.config import ApiKey
from gym.errors import RequestError

# Probes have no keys, and what the API looks like is no secret.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})


class ApiKeyAuth:
    """Lets a request through, or answers 401 or 403 for it."""

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._keys = KeyRing(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                self._keys.check(scope["method"], scope["headers"])
            except RequestError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
