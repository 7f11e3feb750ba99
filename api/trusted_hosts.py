"""Check of host names for a farm without API keys: plain ASGI middleware at the edge of a server process.

Without keys the farm trusts every request on its loopback address, and web pages in a browser on the machine can send
some: by a host name that resolves to 127.0.0.1 (DNS rebinding), or by cross-site requests. So `Host` must be a loopback
name or one of `api.trusted_hosts`, and a request that a browser sends for another site is refused.

With keys there is no check: a browser adds no key by itself. Calls through Redis never pass here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors_plain import send_error
from gym.config import Settings, is_loopback
from gym.errors import Forbidden, Misdirected, RequestError

MOST_SEEN = 64
_OF_BROWSERS = frozenset({b"origin", b"sec-fetch-site"})  # servers give the names of headers in lower case
Headers = Iterable[tuple[bytes, bytes]]


class TrustedHosts:
    """Middleware that lets a request through, or answers 421 for its `Host` or 403 for its origin."""

    def __init__(self, app: ASGIApp, trusted: Iterable[str]) -> None:
        self._app = app
        self._trusted = frozenset(_plain(name) for name in trusted)
        self._seen: set[bytes] = set()  # values of Host that have passed the check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request, then pass it on."""
        if scope["type"] == "http":
            try:
                self.check(scope["headers"])
            except RequestError as error:
                await send_error(error, send)
                return
        await self._app(scope, receive, send)

    def check(self, headers: Headers) -> None:
        """Raise Misdirected or Forbidden for a request that must not pass."""
        if not self._is_plain(headers):
            self._look(headers)

    def _is_plain(self, headers: Headers) -> bool:
        """Return whether a request has no browser headers and a Host that has passed before."""
        good = 0
        for name, value in headers:
            if name == b"host":
                if value not in self._seen:
                    return False
                good += 1
            elif name in _OF_BROWSERS:
                return False
        return good == 1

    def _look(self, headers: Headers) -> None:
        found: dict[bytes, list[str]] = {}
        for name, value in headers:
            found.setdefault(name.lower(), []).append(value.decode("latin-1").strip())
        hosts = found.get(b"host", [])
        if len(hosts) != 1 or not self._knows(_host_of(f"//{hosts[0]}")):
            shown = ", ".join(hosts)[:200] or "nothing"
            raise Misdirected(
                "host_not_trusted",
                f"the header Host says {shown}: without API keys the farm answers to localhost, 127.0.0.1 and [::1] "
                "only; call it by one of these, add the name to api.trusted_hosts "
                "(FARM_API_TRUSTED_HOSTS='[\"NAME\"]'), or give the farm api.keys",
                {"host": shown},
            )
        origins = found.get(b"origin", [])
        site, mode = (found.get(name, [""])[0] for name in (b"sec-fetch-site", b"sec-fetch-mode"))
        # a browser sends no Origin with the GET of an image or a script, but marks it as cross-site
        embedded = not origins and site == "cross-site" and mode != "navigate"
        if embedded or not all(self._knows(_host_of(origin)) for origin in origins):
            shown = ", ".join(origins)[:200] or "another site"
            raise Forbidden(
                "origin_not_trusted",
                f"the request comes from a web page of {shown}: without API keys the farm serves pages of loopback "
                "names and of api.trusted_hosts only",
                {"origin": shown},
            )
        if len(self._seen) < MOST_SEEN:
            self._seen.add(next(value for name, value in headers if name.lower() == b"host"))

    def _knows(self, host: str | None) -> bool:
        return host is not None and (is_loopback(host) or host in self._trusted)


def trusted_hosts(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Return the app behind the check, or the app itself if there are keys."""
    if settings.api.keys:
        return app
    own = () if settings.proxy.url is None else (_host_of(settings.proxy.url) or "",)
    return TrustedHosts(app, (settings.host, *settings.api.trusted_hosts, *own))


def _host_of(url: str) -> str | None:
    """Return the host of a URL in normal form, or None."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or parts.username is not None or parts.path not in ("", "/"):
        return None
    return _plain(host)


def _plain(name: str) -> str:
    """Normalize a host: a name in lower case, an address in its canonical spelling."""
    bare = name.strip().strip("[]").lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return bare
