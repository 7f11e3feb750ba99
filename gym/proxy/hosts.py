"""Which hosts a policy may be served from: the setting `policy_hosts`.

Invariant: link-local addresses and the metadata services of clouds are refused, whatever the patterns say, unless
the setting names that very host. A host is judged by what the URL says; names are not resolved here, so whoever may
register names in the farm's DNS is trusted.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from yarl import URL

from gym.errors import Invalid

_METADATA = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "instance-data",
        "instance-data.ec2.internal",
        "169.254.169.254",  # most clouds; link-local as well
        "fd00:ec2::254",  # AWS over IPv6
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "168.63.129.16",  # Azure's wire server
    }
)
# Top-level labels that the public DNS does not delegate (RFC 6762 appendix G, RFC 2606, ICANN's .internal, Kubernetes).
_PRIVATE_LABELS = frozenset(
    {"local", "internal", "lan", "home", "corp", "private", "intranet", "localdomain", "svc", "test"}
)
_CARRIER_NAT = IPv4Network("100.64.0.0/10")  # what clusters and overlays use too; `is_private` leaves it out
_NUMERIC = re.compile(r"\d+|0x[0-9a-f]*")

Address = IPv4Address | IPv6Address


def check_hosts(urls: Iterable[str], patterns: Iterable[str]) -> None:
    """Raises Invalid (`host_not_allowed`, `bad_url`) for the first URL whose host the patterns do not allow."""
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
    """Whether lower-case patterns cover a lower-case host: `loopback`, `private`, `any`, networks, fnmatch patterns."""
    address = _address(host)
    patterns = list(patterns)
    if any(_names_exactly(pattern, host, address) for pattern in patterns):
        return True
    if _is_metadata(host, address):
        return False
    return any(_covers(pattern, host, address) for pattern in patterns)


def _names_exactly(pattern: str, host: str, address: Address | None) -> bool:
    if pattern in ("loopback", "private", "any"):
        return False
    if address is None:
        return pattern == host
    network = _network(pattern)
    return network is not None and network.num_addresses == 1 and address == network.network_address


def _covers(pattern: str, host: str, address: Address | None) -> bool:
    match pattern:
        case "any":
            return True
        case "loopback":
            if address is None:
                return host == "localhost" or host.endswith(".localhost")
            return address.is_loopback or address.is_unspecified
        case "private":
            return _is_private(host, address)
    if address is None:
        return fnmatchcase(host, pattern)
    network = _network(pattern)
    return address in network if network is not None else fnmatchcase(str(address), pattern)


def _is_private(host: str, address: Address | None) -> bool:
    if address is None:
        labels = host.split(".")
        if labels[-1] == "localhost":
            return False
        return len(labels) == 1 or labels[-1] in _PRIVATE_LABELS or labels[-2:] == ["home", "arpa"]
    if address.is_loopback or address.is_unspecified:
        return False
    return address.is_private or (address.version == 4 and address in _CARRIER_NAT)


def _is_metadata(host: str, address: Address | None) -> bool:
    if address is None:
        return host in _METADATA
    return address.is_link_local or str(address) in _METADATA


def _address(host: str) -> Address | None:
    """The address that a host is, in all spellings that the resolver understands, such as 127.1 or 2130706433."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        if not _NUMERIC.fullmatch(host.rpartition(".")[2]):
            return None
        try:
            return IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _network(pattern: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(pattern, strict=False)
    except ValueError:
        return None


def _shown(url: str) -> str:
    """A URL for an error text, without user and password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
