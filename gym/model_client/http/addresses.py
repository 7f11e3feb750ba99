"""Kinds of IP addresses, for rules on the hosts that users may have the farm call. Pure.

An IPv6 address that leads to an IPv4 address is treated as that one, since a translator or tunnel forwards the call.
Sources: IANA's special-purpose address registries; RFC 4291 (mapped, compatible), 6052 (NAT64), 3056 (6to4), 4380
(Teredo), 5214 (ISATAP).
"""

from __future__ import annotations

import re
import socket
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class AddressKind(StrEnum):
    """Kind of address. `FORBIDDEN`: link-local addresses, metadata services; `RESERVED`: not used by servers."""

    LOOPBACK = "loopback"
    PRIVATE = "private"
    PUBLIC = "public"
    RESERVED = "reserved"
    FORBIDDEN = "forbidden"


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


_LOOPBACK = _networks("127.0.0.0/8", "0.0.0.0/32", "::1/128", "::/128")
_PRIVATE = _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "100.64.0.0/10")
_FORBIDDEN = _networks(
    "169.254.0.0/16",  # link-local, with most clouds' metadata service
    "fe80::/10",
    "fd00:ec2::/32",  # AWS over IPv6
    "fd20:ce::/32",  # Google over IPv6
    "fd00:42::42/128",  # Scaleway
    "100.100.100.200/32",  # Alibaba
    "192.0.0.0/24",  # Oracle's is 192.0.0.192
    "168.63.129.16/32",  # Azure's wire server
)
_RESERVED = _networks(
    "0.0.0.0/8",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "100::/64",
    "2001:db8::/32",
    "3fff::/20",
    "5f00::/16",
    "64:ff9b:1::/48",
    "fec0::/10",
    "ff00::/8",
)
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)
_NUMERIC = re.compile(r"\d+|0x[0-9a-f]*")


def kind_of(address: Address) -> AddressKind:
    """Return the kind of an address, or of the IPv4 address that it leads to."""
    led_to = leads_to(address)
    for kind, networks in (
        (AddressKind.LOOPBACK, _LOOPBACK),
        (AddressKind.FORBIDDEN, _FORBIDDEN),
        (AddressKind.PRIVATE, _PRIVATE),
        (AddressKind.RESERVED, _RESERVED),
    ):
        if any(led_to in network for network in networks):
            return kind
    return AddressKind.PUBLIC


def leads_to(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address embeds, or else the address itself."""
    if isinstance(address, IPv4Address) or address.is_loopback or address.is_unspecified:
        return address
    number = int(address)
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or address in _COMPATIBLE or (number >> 32) & 0xFFFFFFFF in _ISATAP:
        return IPv4Address(number & 0xFFFFFFFF)
    return address


def covers_on_purpose(network: Network, address: Address) -> bool:
    """Return whether a listed network covers an address; a reserved one only if it is within that range."""
    if not _in(address, network):
        return False
    if kind_of(address) is not AddressKind.RESERVED:
        return True
    return any(network.version == known.version and network.subnet_of(known) for known in _RESERVED)  # type: ignore[arg-type]  # of one version


def _in(address: Address, network: Network) -> bool:
    return address in network or leads_to(address) in network


def read_address(host: str) -> Address | None:
    """Parse a host as an address, in all spellings that the resolver accepts, such as 127.1 or 2130706433."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        if not _NUMERIC.fullmatch(host.rpartition(".")[2]):
            return None
        try:
            return IPv4Address(socket.inet_aton(host))
        except OSError:
            return None


def read_network(pattern: str) -> Network | None:
    """Parse a pattern of the settings as a network; None if it is none."""
    try:
        return ip_network(pattern, strict=False)
    except ValueError:
        return None
