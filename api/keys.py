"""API keys and their scopes, for the API's middleware and the model proxy.

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
    """The keys of the settings, stored as digests."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = [(_digest(key.key.encode()), frozenset(key.scopes)) for key in keys]

    def check(self, method: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Check whether a request is permitted. Raises Unauthorized, Forbidden."""
        needed = needed_scope(method)
        scopes = self._scopes(given_key(headers))
        if scopes is None:
            raise Unauthorized(
                "unauthorized",
                "the API key is missing or unknown; send one of the setting api.keys as "
                "`Authorization: Bearer KEY` or `x-api-key: KEY`",
            )
        if needed not in scopes and "admin" not in scopes:
            raise Forbidden(
                "forbidden",
                f"the scopes of this key: {', '.join(sorted(scopes)) or 'none'}; the call needs the scope {needed}",
                {"scope": needed},
            )

    def _scopes(self, given: bytes | None) -> frozenset[str] | None:
        """Return the scopes of a key, None if unknown. Every key is compared, so that timing reveals nothing."""
        if given is None:
            return None
        digest = _digest(given)
        found: frozenset[str] | None = None
        for known, scopes in self._keys:
            if hmac.compare_digest(known, digest):
                found = scopes
        return found


def needed_scope(method: str) -> Scope:
    """Return the scope that a method needs."""
    return "read" if method in ("GET", "HEAD", "OPTIONS") else "submit"


def given_key(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """Return the key that a request carries, or None."""
    for name, value in headers:
        if name in (b"x-api-key", b"x-goog-api-key"):
            return value.strip()
        if name == b"authorization":
            scheme, _, credentials = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return credentials.strip()
    return None


def _digest(key: bytes) -> bytes:
    """Digest of a key. Equal lengths make comparison time independent of the key."""
    return hashlib.sha256(key).digest()
