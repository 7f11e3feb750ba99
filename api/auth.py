"""Authorization: the check of `api.keys`, as plain ASGI middleware in front of the app.

Without keys in the settings there is no check; `gym.config` allows that on loopback only. Calls through Redis carry no
key: Redis itself checks which user may use which channel, and the channel determines the scope.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import error_response
from api.keys import KeyRing, given_key, needed_scope
from gym.config import ApiKey
from gym.errors import Forbidden, RequestError
from gym.relay.call import EXTENSION
from gym.relay.frames import Asker

# health probes have no keys, and the API description is not secret
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})


class ApiKeyAuth:
    """Middleware that lets a request through or answers 401 or 403."""

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._keys = KeyRing(keys) if keys else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request, then pass it on."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                self._check(scope)
            except RequestError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        asker = _asker(scope)
        if asker is not None:
            _check_asker(asker, scope["method"])
        elif self._keys is not None:
            self._keys.check(scope["method"], scope["headers"])


def _check_asker(asker: Asker, method: str) -> None:
    needed = needed_scope(method)
    if needed == "submit" and asker.scope != "submit":
        raise Forbidden(
            "forbidden",
            f"the Redis user {asker.name} has the scope read; this call needs the scope {needed}, which "
            f"`farm redis-acl {asker.name}` grants",
            {"scope": needed},
        )


def caller_of(scope: Scope) -> bytes | None:
    """Return an identifier of the caller (the key or the Redis user), or None if the caller has neither."""
    asker = _asker(scope)
    return f"redis:{asker.name}".encode() if asker is not None else given_key(scope["headers"])


def _asker(scope: Scope) -> Asker | None:
    asker: Asker | None = scope.get("extensions", {}).get(EXTENSION)
    return asker
