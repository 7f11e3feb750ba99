"""API keys and what each may do, whoever asks for them: the API's middleware, or the model proxy.

`GET` needs `read`, everything else `submit`: a trainer registers its policies with the key that it submits with.
`admin` covers everything.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from gym.config import ApiKey, Scope
from gym.errors import Forbidden, Unauthorized


class KeyRing:
    """The keys of the settings; kept as digests."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = [(_digest(key.key.encode()), frozenset(key.scopes)) for key in keys]

    def check(self, method: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Whether a request may be made. Raises Unauthorized, Forbidden."""
        needed = needed_scope(method)
        scopes = self._scopes(given_key(headers))
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


def needed_scope(method: str) -> Scope:
    """The scope that a method needs."""
    return "read" if method in ("GET", "HEAD", "OPTIONS") else "submit"


def given_key(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """The key that a request carries, `None` where there is none."""
    for name, value in headers:
        if name in (b"x-api-key", b"x-goog-api-key"):
            return value.strip()
        if name == b"authorization":
            scheme, _, credentials = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return credentials.strip()
    return None


def _digest(key: bytes) -> bytes:
    """Keys are compared by digests of one length, so the time taken says nothing of the key."""
    return hashlib.sha256(key).digest()
