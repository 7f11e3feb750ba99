"""Rules for the hosts that may serve a policy: the setting `policy_hosts`.

The host of a URL is checked at registration (`check_hosts`). Its resolved addresses are checked at each connect
(`HostRules.allows`), since a name may resolve differently by then.

Invariant: link-local addresses and the metadata services of clouds are refused by all patterns, unless the
settings name that exact host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from yarl import URL

from gym.errors import Invalid
from gym.model_client.http.addresses import (
    Address,
    AddressKind,
    covers_on_purpose,
    kind_of,
    leads_to,
    read_address,
    read_network,
)

_METADATA_NAMES = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "instance-data",
        "instance-data.ec2.internal",
        "metadata.tencentyun.com",
        "metadata.platformequinix.com",
    }
)
# Top-level labels that the public DNS does not delegate (RFC 6762 appendix G, RFC 2606, ICANN's .internal, Kubernetes).
_PRIVATE_LABELS = frozenset(
    {"local", "internal", "lan", "home", "corp", "private", "intranet", "localdomain", "svc", "test"}
)
_CLASSES = frozenset({"loopback", "private", "any"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRules:
    """Hosts that a process may call for users who register policies.

    `patterns` are those of the settings, `named` the hosts of the settings' own policies. `shows_texts`: error
    texts of all hosts may be shown, as on a farm that is reachable only from its own machine.
    """

    patterns: tuple[str, ...] = ("any",)
    named: frozenset[str] = frozenset()
    shows_texts: bool = True

    @property
    def all_patterns(self) -> tuple[str, ...]:
        """Patterns, with the named hosts."""
        return (*self.patterns, *sorted(self.named))

    def allows(self, host: str, found: str) -> bool:
        """Return whether a host may be called at an address that it resolves to."""
        host = plain_host(host)
        address = read_address(found)
        if address is None:
            return False
        if read_address(host) is not None:
            return host_allowed(host, self.all_patterns) and host_allowed(found.partition("%")[0], self.all_patterns)
        kind = kind_of(address)
        exactly = host in self.named or host in self.patterns
        if kind is AddressKind.FORBIDDEN:
            return (exactly and host in _METADATA_NAMES) or _is_listed(address, self.all_patterns)
        if exactly or _covers_address(address, kind, self.all_patterns):
            return True
        # a pattern of names says nothing of addresses, but was not meant for this machine
        by_name = any(pattern not in _CLASSES and fnmatchcase(host, pattern) for pattern in self.patterns)
        return by_name and kind in (AddressKind.PRIVATE, AddressKind.PUBLIC)

    def remembered(self) -> Callable[[str, str], bool]:
        """Return `allows` with a cache, for checks at every connect."""
        return lru_cache(maxsize=4096)(self.allows)

    def names(self, host: str) -> bool:
        """Return whether the settings name this host, not only its class, so that its error texts may be shown."""
        if self.shows_texts:
            return True
        host = plain_host(host)
        address = read_address(host)
        if host in self.named:
            return True
        return any(pattern not in _CLASSES and _covers(pattern, host, address) for pattern in self.patterns)


EVERY_HOST = HostRules()  # but metadata services and the like


def plain_host(host: str) -> str:
    """Normalise a host for comparison with patterns."""
    return host.strip("[]").lower().rstrip(".")


def hosts_of(urls: Iterable[str]) -> frozenset[str]:
    """Return the hosts of URLs; unreadable URLs are skipped."""
    found = set()
    for url in urls:
        try:
            found.add(plain_host(URL(url).raw_host or ""))
        except ValueError:
            continue
    return frozenset(found - {""})


def check_hosts(urls: Iterable[str], patterns: Iterable[str]) -> None:
    """Check the hosts of URLs. Raises Invalid (`host_not_allowed`, `bad_url`) for the first one not allowed."""
    allowed = [pattern.strip().lower() for pattern in patterns]
    for url in urls:
        try:
            host = (URL(url).raw_host or "").lower().rstrip(".")
        except ValueError:
            host = ""
        if not host:
            raise Invalid("bad_url", f"{_shown(url)!r} has no host that can be read; expected http://HOST:PORT")
        if not host_allowed(host, allowed):
            raise Invalid(
                "host_not_allowed",
                f"a policy may not be served from {host}: the setting policy_hosts allows "
                f"{', '.join(allowed) or 'nothing'}; "
                f"add {host!r} (or `any`) to policy_hosts (FARM_POLICY_HOSTS='[\"{host}\"]') where the farm is "
                "configured, or serve the policy from a host that is allowed",
                {"host": host, "policy_hosts": allowed},
            )


def host_allowed(host: str, patterns: Iterable[str]) -> bool:
    """Return whether patterns cover a host (lower case): `loopback`, `private`, `any`, networks, fnmatch patterns."""
    address = read_address(host)
    patterns = list(patterns)
    if _is_listed(address, patterns) if address is not None else host in patterns and host not in _CLASSES:
        return True
    if host in _METADATA_NAMES or (address is not None and kind_of(address) is AddressKind.FORBIDDEN):
        return False
    return any(_covers(pattern, host, address) for pattern in patterns)


def _is_listed(address: Address, patterns: Iterable[str]) -> bool:
    """Return whether the patterns list an address itself, in any spelling."""
    for pattern in patterns:
        network = read_network(pattern)
        if network is not None and network.num_addresses == 1:
            listed = network.network_address
            if address == listed or leads_to(address) == leads_to(listed):
                return True
    return False


def _covers(pattern: str, host: str, address: Address | None) -> bool:
    if address is not None:
        return _covers_address(address, kind_of(address), (pattern,))
    match pattern:
        case "any":
            return True
        case "loopback":
            return host == "localhost" or host.endswith(".localhost")
        case "private":
            labels = host.split(".")
            if labels[-1] == "localhost":
                return False
            return len(labels) == 1 or labels[-1] in _PRIVATE_LABELS or labels[-2:] == ["home", "arpa"]
    return fnmatchcase(host, pattern)


def _covers_address(address: Address, kind: AddressKind, patterns: Iterable[str]) -> bool:
    """Return whether classes, networks or patterns cover an address that is not forbidden."""
    for pattern in patterns:
        network = read_network(pattern)
        if pattern == "any":
            covered = kind is not AddressKind.RESERVED
        elif pattern in ("loopback", "private"):
            covered = kind == pattern
        elif network is not None:
            covered = covers_on_purpose(network, address)
        else:
            covered = kind is not AddressKind.RESERVED and fnmatchcase(str(leads_to(address)), pattern)
        if covered:
            return True
    return False


def _shown(url: str) -> str:
    """Return a URL for an error text, without user and password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
