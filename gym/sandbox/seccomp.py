"""The system calls that no program in a sandbox needs and escapes are made of, as a BPF program for seccomp.

Refused calls fail with EPERM, `clone3` with ENOSYS so that the C library falls back to `clone`, whose flags can be
seen. Numbers: Linux's `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`; format:
`linux/filter.h`, `linux/seccomp.h`. Another architecture has no filter and so no sandbox.
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT, _SECOND_ARGUMENT_AT = 0, 4, 16, 24
_NEW_NAMESPACES = 0x7E020080  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME
_X32_BIT = 0x40000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_IOCTL_X86, _IOCTL_ARM = 16, 29


@dataclass(frozen=True, slots=True)
class _Machine:
    arch: int
    clone: int
    ioctl: int
    refused: tuple[int, ...]


_NEWER = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 440, 442, 443, 447, 448, 450)
# fmt: off
_MACHINES = {
    # ptrace, syslog, chroot, mount and swap, modules, quotactl, keys, perf, bpf, userfaultfd, kexec, SysV IPC, memfd …
    "x86_64": _Machine(
        0xC000003E,
        56,
        _IOCTL_X86,
        (
            29, 30, 31, 64, 65, 66, 67, 68, 69, 70, 71, 101, 103, 134, 135, 139, 153, 154, 155, 156, 159, 161,
            163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 174, 175, 176, 177, 178, 179, 180, 212,
            220, 227, 237, 238, 239, 240, 241, 242, 243, 244, 245, 246, 248, 249, 250, 256, 272, 278, 279,
            298, 300, 303, 304, 305, 308, 310, 311, 312, 313, 319, 320, 321, 323, *_NEWER,
        ),
    ),
    "aarch64": _Machine(
        0xC00000B7,
        220,
        _IOCTL_ARM,
        (
            18, 39, 40, 41, 42, 51, 58, 60, 75, 89, 92, 97, 104, 105, 106, 112, 116, 117, 142, 161, 162, 170,
            171, 180, 181, 182, 183, 184, 185, 186, 187, 188, 189, 190, 191, 192, 193, 194, 195, 196, 197,
            217, 218, 219, 224, 225, 235, 236, 237, 238, 239, 241, 262, 264, 265, 266, 268, 270, 271, 272,
            273, 279, 280, 282, 294, *_NEWER,
        ),
    ),
}
# fmt: on


def filter_program(machine: str | None = None) -> bytes:
    """The filter for a machine as `struct sock_filter` one after another. Raises ValueError where there is none."""
    name = machine or platform.machine()
    found = _MACHINES.get(name)
    if found is None:
        raise ValueError(f"there is no seccomp filter for {name}; there are those for {', '.join(_MACHINES)}")
    steps = [
        _step(_LOAD, _ARCH_AT),
        _step(_EQUAL, found.arch, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
    ]
    if name == "x86_64":
        steps += [_step(_AT_LEAST, _X32_BIT, 0, 1), _step(_RETURN, _KILL)]
    steps += [_step(_EQUAL, 435, 0, 1), _step(_RETURN, _ERRNO | _ENOSYS)]
    for number in found.refused:
        steps += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ERRNO | _EPERM)]
    steps += [
        _step(_EQUAL, found.clone, 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT_AT),
        _step(_ANY_BIT, _NEW_NAMESPACES, 0, 1),
        _step(_RETURN, _ERRNO | _EPERM),
        _step(_RETURN, _ALLOW),
        _step(_EQUAL, found.ioctl, 0, 4),
        _step(_LOAD, _SECOND_ARGUMENT_AT),
        _step(_EQUAL, _TIOCSTI, 1, 0),
        _step(_EQUAL, _TIOCLINUX, 0, 1),
        _step(_RETURN, _ERRNO | _EPERM),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(steps)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
