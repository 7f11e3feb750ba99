"""Who may call what: the check of `api.keys`, as plain ASGI middleware in front of the app.

Without keys in the settings there is no check, which `gym.config` allows on loopback only. Calls that came through
Redis have no key: Redis itself has checked who may use their channel, which names the scope.
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

# Probes have no keys, and what the API looks like is no secret.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})


class ApiKeyAuth:
    """Lets a request through, or answers 401 or 403 for it."""

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._keys = KeyRing(keys) if keys else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
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
            f"the Redis user {asker.name} may read; the call needs the scope {needed}, which "
            f"`farm redis-acl {asker.name}` gives",
            {"scope": needed},
        )


def caller_of(scope: Scope) -> bytes | None:
    """What tells one caller from another: the key, or the Redis user; `None` where there is neither."""
    asker = _asker(scope)
    return f"redis:{asker.name}".encode() if asker is not None else given_key(scope["headers"])


def _asker(scope: Scope) -> Asker | None:
    asker: Asker | None = scope.get("extensions", {}).get(EXTENSION)
    return asker
