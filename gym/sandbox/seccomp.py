"""System-call filter for programs in a sandbox, as a BPF program for seccomp.

Refused calls fail with EPERM, and sockets of a refused family with EAFNOSUPPORT. `clone3` and calls newer than the list
fail with ENOSYS, so that the C library falls back to calls whose arguments can be inspected. Format: `linux/filter.h`,
`linux/seccomp.h`. Other architectures have no filter and so no sandbox.
"""

from __future__ import annotations

import platform
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gym.sandbox.system_calls import LAST_KNOWN, LOOKED_INTO, REFUSED

_LOAD, _AND, _EQUAL, _MORE, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x35, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT, _ARGUMENT_BYTES = 0, 4, 16, 8
_X32_BIT = 0x40000000
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_ALL_BITS = 0xFFFFFFFF
_MOST_JUMPS = 200  # a jump goes at most 255 steps forward

_NEW_NAMESPACES = 0x7E020080  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_SHARED_ANONYMOUS = 0x21  # MAP_SHARED and MAP_ANONYMOUS: memory that outlives every process that maps it
_F_SETPIPE_SZ = 1031
_SOL_SOCKET = 1
_BUFFER_OPTIONS = (7, 8, 26, 32, 33, 50)  # SO_SNDBUF, SO_RCVBUF, both by force, SO_ATTACH_FILTER and its BPF
_LOOPBACK_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_NETLINK)
_PROTOCOLS: dict[int, tuple[int, ...]] = {
    socket.AF_INET: (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP),
    socket.AF_NETLINK: (0,),  # NETLINK_ROUTE, by which programs list network interfaces
}


@dataclass(frozen=True, slots=True)
class _Test:
    """Test of the low half of an argument."""

    argument: int
    equals: int
    mask: int = _ALL_BITS
    negated: bool = False


@dataclass(frozen=True, slots=True)
class _Rule:
    """Rule that refuses a call if all its tests hold."""

    call: str
    tests: tuple[_Test, ...]
    errno: int = _EPERM


def _rules(families: Sequence[int]) -> Iterator[_Rule]:
    yield _Rule("clone", (_Test(0, 0, mask=_NEW_NAMESPACES, negated=True),))
    for request in (_TIOCSTI, _TIOCLINUX):
        yield _Rule("ioctl", (_Test(1, request),))
    yield _Rule("mmap", (_Test(3, _SHARED_ANONYMOUS, mask=_SHARED_ANONYMOUS),))
    yield _Rule("fcntl", (_Test(1, _F_SETPIPE_SZ),))
    for option in _BUFFER_OPTIONS:
        yield _Rule("setsockopt", (_Test(1, _SOL_SOCKET), _Test(2, option)))
    for call in ("socket", "socketpair"):
        yield _Rule(call, tuple(_Test(0, family, negated=True) for family in families), _EAFNOSUPPORT)
    for family in set(families) & _PROTOCOLS.keys():
        others = tuple(_Test(2, protocol, negated=True) for protocol in _PROTOCOLS[family])
        yield _Rule("socket", (_Test(0, family), *others), _EAFNOSUPPORT)
    # 0 is the calling process; another could be process 1, which has the same user
    for call in ("prlimit64", "sched_setparam", "sched_setscheduler", "sched_setattr", "sched_setaffinity"):
        yield _Rule(call, (_Test(0, 0, negated=True),))
    for argument in (0, 1):
        yield _Rule("setpriority", (_Test(argument, 0, negated=True),))


def filter_program(machine: str | None = None, *, loopback: bool = False) -> bytes:
    """Return the filter for a machine as a sequence of `struct sock_filter`. Raises ValueError for an unknown machine.

    `loopback` also allows Internet sockets, for which the sandbox has its own loopback and nothing else.
    """
    name = machine or platform.machine()
    if name not in _ARCHITECTURES:
        raise ValueError(f"there is no seccomp filter for {name}; there are those for {', '.join(_ARCHITECTURES)}")
    audit_code, column = _ARCHITECTURES[name]
    steps = [
        _step(_LOAD, _ARCH_AT),
        _step(_EQUAL, audit_code, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
    ]
    if name == "x86_64":
        steps += [_step(_AT_LEAST, _X32_BIT, 0, 1), _step(_RETURN, _KILL)]
    steps += [_step(_MORE, LAST_KNOWN, 0, 1), _step(_RETURN, _ERRNO | _ENOSYS)]
    steps += [_step(_EQUAL, LOOKED_INTO["clone3"][column] or 0, 0, 1), _step(_RETURN, _ERRNO | _ENOSYS)]
    steps += _refused(sorted(number for numbers in REFUSED.values() if (number := numbers[column]) is not None))
    families = _LOOPBACK_FAMILIES if loopback else (socket.AF_UNIX,)
    for rule in _rules(families):
        number = LOOKED_INTO[rule.call][column]
        if number is not None:
            steps += _looked_into(number, rule)
    steps.append(_step(_RETURN, _ALLOW))
    return b"".join(steps)


def _refused(numbers: Sequence[int]) -> Iterable[bytes]:
    for first in range(0, len(numbers), _MOST_JUMPS):
        some = numbers[first : first + _MOST_JUMPS]
        for place, number in enumerate(some):
            last = place == len(some) - 1
            yield _step(_EQUAL, number, len(some) - 1 - place, int(last))
        yield _step(_RETURN, _ERRNO | _EPERM)


def _looked_into(number: int, rule: _Rule) -> list[bytes]:
    """Return the steps of one rule; the number of the call is in the accumulator before and after them."""
    steps = [_step(_RETURN, _ERRNO | rule.errno), _step(_LOAD, _NUMBER_AT)]
    for test in reversed(rule.tests):
        to_end = len(steps) - 1
        jumps = (to_end, 0) if test.negated else (0, to_end)
        steps.insert(0, _step(_EQUAL, test.equals, *jumps))
        if test.mask != _ALL_BITS:
            steps.insert(0, _step(_AND, test.mask))
        steps.insert(0, _step(_LOAD, _ARGUMENTS_AT + _ARGUMENT_BYTES * test.argument))
    return [_step(_EQUAL, number, 0, len(steps)), *steps]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
