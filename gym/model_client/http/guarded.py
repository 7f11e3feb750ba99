"""aiohttp connectors that check the addresses of a host at each connect."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from gym.model_client.http.hosts import HostRules, hosts_of


class GuardedResolver(AbstractResolver):
    """Resolver that returns only allowed addresses. aiohttp calls it for names, not for IP addresses."""

    def __init__(self, rules: HostRules) -> None:
        self._rules = rules
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Resolve a name. Raises OSError if no address is allowed."""
        found = await self._resolver.resolve(host, port, family)
        allowed = [each for each in found if self._rules.allows(host, each["host"])]
        if not allowed:
            raise OSError(None, f"{host} has no address that may be called")
        return allowed

    async def close(self) -> None:
        """Close the underlying resolver."""
        await self._resolver.close()


def no_redirects() -> aiohttp.TraceConfig:
    """Return a trace that fails a request at a redirect, for calls without an option for that."""

    async def refuse(_session: aiohttp.ClientSession, _context: Any, seen: aiohttp.TraceRequestRedirectParams) -> None:
        raise aiohttp.ClientConnectionError(f"{seen.url} redirects, which is not followed")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(refuse)
    return trace


def connector_to(urls: Iterable[str], **options: Any) -> aiohttp.TCPConnector:
    """Return a connector for servers that the settings name: at any address but link-local ones and metadata services.

    Such an address is allowed only if the URL itself contains it.
    """
    return aiohttp.TCPConnector(resolver=GuardedResolver(HostRules(named=hosts_of(urls))), **options)
