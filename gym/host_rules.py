"""The hosts that a farm's settings allow for policies and judges."""

from __future__ import annotations

from collections.abc import Iterable

from yarl import URL

from gym.config import Settings, base_url, is_loopback, proxy_url
from gym.errors import Invalid
from gym.model_client.http.addresses import (
    AddressKind,
    kind_of,
    read_address,
)
from gym.model_client.http.hosts import HostRules, _shown, hosts_of, plain_host


def policy_rules(settings: Settings) -> HostRules:
    """Return the rules for policies. A farm that other machines can reach allows only the hosts in its settings."""
    local = is_loopback(settings.host)
    patterns = settings.policy_hosts
    if patterns is None:
        patterns = ("loopback", "private") if local else ()
    urls = [url for policy in settings.policies.values() for url in policy.base_urls]
    return HostRules(
        patterns=tuple(pattern.strip().lower() for pattern in patterns),
        named=hosts_of(urls),
        shows_texts=local and not settings.api.keys,
    )


def judge_rules(settings: Settings) -> HostRules:
    """Return the rules for judges, whose addresses the settings give or a judge server publishes in Redis."""
    urls = [url for judge in settings.judges.values() for url in judge.base_urls]
    patterns = tuple(pattern.strip().lower() for pattern in settings.judge_hosts)
    return HostRules(patterns=patterns, named=hosts_of(urls))


def check_not_own_proxy(urls: Iterable[str], settings: Settings) -> None:
    """Refuse a URL that is visibly the farm's own proxy, with Invalid (`policy_loops`).

    Other loops are cut at their first call (`gym.model_client.http.hops`).
    """
    own = {_place(URL(url)) for url in (proxy_url(settings), base_url(settings.host, settings.proxy.port))}
    for url in urls:
        if _place(URL(url)) in own:
            raise Invalid(
                "policy_loops",
                f"{_shown(url)} is this farm's own proxy, which would call itself without end; give the address of the "
                "model server",
            )


def _place(url: URL) -> tuple[str, int | None]:
    """Return host and port, with one name for all names of this machine."""
    host = plain_host(url.raw_host or "")
    address = read_address(host)
    is_here = host == "localhost" if address is None else kind_of(address) is AddressKind.LOOPBACK
    return "localhost" if is_here else host, url.port
