"""Who may call what: API keys with scopes, as plain ASGI middleware in front of the app.

`GET` needs `read`, everything else `submit`: a trainer registers its policies with the key that it submits with.
`admin` covers everything. Without keys in the settings there is no check, which `gym.config` allows on loopback only.
Calls that came through Redis have no key: Redis itself has checked who may use their channel, which names the scope.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import error_response
from gym.config import ApiKey
from gym.config import Scope as KeyScope
from gym.errors import Forbidden, RequestError, Unauthorized
from gym.relay.call import EXTENSION
from gym.relay.frames import Asker

# Probes have no keys, and what the API looks like is no secret.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})


class ApiKeyAuth:
    """Lets a request through, or answers 401 or 403 for it."""

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self._app = app
        self._keys = [(_digest(key.key.encode()), frozenset(key.scopes)) for key in keys]

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
        needed = needed_scope(scope["method"])
        asker: Asker | None = scope.get("extensions", {}).get(EXTENSION)
        if asker is not None:
            if needed == "submit" and asker.scope != "submit":
                raise Forbidden(
                    "forbidden",
                    f"the Redis user {asker.name} may read; the call needs the scope {needed}, which "
                    f"`farm redis-acl {asker.name}` gives",
                    {"scope": needed},
                )
            return
        if not self._keys:
            return
        scopes = self._scopes(given_key(scope["headers"]))
        if scopes is None:
            raise Unauthorized(
                "unauthorized",
                "no API key, or one that the farm does not know; send one of the setting api.keys as "
                "`Authorization: Bearer KEY` or `x-api-key: KEY`",
            )
        if needed not in scopes and "admin" not in scopes:
            raise Forbidden(
                "forbidden",
                f"this key may {', '.join(sorted(scopes)) or 'do nothing'}; the call needs the scope {needed}",
                {"scope": needed},
            )

    def _scopes(self, given: bytes | None) -> frozenset[str] | None:
        """The scopes of a key, `None` for an unknown one; always compared with every key."""
        if given is None:
            return None
        digest = _digest(given)
        found: frozenset[str] | None = None
        for known, scopes in self._keys:
            if hmac.compare_digest(known, digest):
                found = scopes
        return found


def needed_scope(method: str) -> KeyScope:
    """The scope that a method needs."""
    return "read" if method in ("GET", "HEAD", "OPTIONS") else "submit"


def given_key(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """The key that a request carries, `None` where there is none."""
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization":
            scheme, _, credentials = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return credentials.strip()
    return None


def _digest(key: bytes) -> bytes:
    """Keys are compared by digests of one length, so the time taken says nothing of the key."""
    return hashlib.sha256(key).digest()
