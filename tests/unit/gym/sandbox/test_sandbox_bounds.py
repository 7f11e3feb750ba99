# ruff: noqa: E501  programs are easier to read on one line
"""Kernel memory that a program makes counts towards its limits, or cannot be made."""

from __future__ import annotations

import pytest

from gym.sandbox.base import SandboxFailed, SandboxOutcome, SandboxProvider
from gym.sandbox.limits import MIB, SandboxLimits
from gym.sandbox.process import Sandbox, start_sandbox

pytestmark = pytest.mark.anyio
SMALL = SandboxLimits(cpu_s=30, wall_s=30, memory_bytes=256 * MIB, work_bytes=16 * MIB, files=2_000)


async def python(sandbox: Sandbox, code: str) -> SandboxOutcome:
    return await sandbox.run(["{python}", "-I", "-c", code])


@pytest.mark.parametrize("place", ["/work", "/tmp", "/dev/shm"])
async def test_files_without_content_are_bounded(provider: SandboxProvider, place: str) -> None:
    sandbox = await start_sandbox(provider, SMALL)
    code = f"import os\nfor n in range(400_000): os.close(os.open(f'{place}/{{n}}', os.O_CREAT))"
    outcome = await python(sandbox, code)
    assert outcome.stopped == "files" or "No space left" in outcome.stderr
    with pytest.raises(SandboxFailed, match="closed"):
        await python(sandbox, "print(1)")
    await sandbox.close()


async def test_files_of_short_programs_are_counted_too(provider: SandboxProvider) -> None:
    sandbox = await start_sandbox(provider, SandboxLimits(files=64))
    assert (await python(sandbox, "for n in range(80): open(f'/work/{n}', 'w').close()")).stopped == "files"
    await sandbox.close()


async def test_what_sockets_hold_counts_as_memory(provider: SandboxProvider) -> None:
    sandbox = await start_sandbox(provider, SMALL)
    fill = "import os, socket, time\nfor _ in range(24):\n    if os.fork() == 0: break\nheld = []\ntry:\n    while True:\n        pair = socket.socketpair(); held.append(pair)\n        for end in pair:\n            end.setblocking(False)\n            try:\n                while True: end.send(b'x' * 60_000)\n            except BlockingIOError: pass\nexcept OSError: pass\ntime.sleep(100)"
    assert (await python(sandbox, fill)).stopped == "memory"
    await sandbox.close()


async def test_buffers_cannot_be_made_larger(sandbox: Sandbox) -> None:
    code = "import fcntl, os, socket\na, b = socket.socketpair()\nfor act in (lambda: a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**22), lambda: a.setsockopt(socket.SOL_SOCKET, 32, 2**22), lambda: fcntl.fcntl(os.pipe()[1], fcntl.F_SETPIPE_SZ, 2**20)):\n    try: act(); print('open')\n    except PermissionError: print('refused')"
    assert (await python(sandbox, code)).stdout == "refused\n" * 3


async def test_descriptors_are_bounded(sandbox: Sandbox) -> None:
    code = "import os\nheld = []\ntry:\n    while True: held.append(os.open('/dev/null', 0))\nexcept OSError: print(len(held) < 64)"
    assert (await python(sandbox, code)).stdout == "True\n"


async def test_dev_shm_is_as_small_as_work_and_counted(provider: SandboxProvider) -> None:
    sandbox = await start_sandbox(provider, SMALL)
    code = "import os\nfor n in range(8):\n    try: open(f'/dev/shm/{n}', 'wb').write(b'x' * 6_000_000)\n    except OSError: pass\nfound = os.statvfs('/dev/shm'); print((found.f_blocks - found.f_bfree) * found.f_frsize <= 16 * 2**20)"
    assert (await python(sandbox, code)).stdout == "True\n"
    await sandbox.close()


REFUSED = {
    "pidfd_open": (434, "os.getpid(), 0"),
    "io_uring_setup": (425, "8, 0"),
    "userfaultfd": (323, "0"),
    "bpf": (321, "0, 0, 0"),
    "keyctl": (250, "0, 0"),
    "add_key": (248, "0, 0, 0, 0"),
    "perf_event_open": (298, "0, 0, 0, 0, 0"),
    "memfd_create": (319, "b'x', 0"),
    "shmget": (29, "0, 4096, 0o1600"),
    "msgget": (68, "0, 0o1600"),
    "semget": (64, "0, 1, 0o1600"),
    "mq_open": (240, "b'x', 0o102, 0o600, 0"),
    "inotify_init1": (294, "0"),
    "fanotify_init": (300, "0, 0"),
    "ptrace": (101, "0, 0, 0, 0"),
    "process_vm_readv": (310, "1, 0, 0, 0, 0, 0"),
    "unshare": (272, "0x10000000"),
    "open_tree": (428, "-100, b'/', 0"),
    "landlock_create_ruleset": (444, "0, 0, 1"),
}


@pytest.mark.parametrize("call", REFUSED)
async def test_a_call_that_no_program_needs_is_refused(sandbox: Sandbox, call: str) -> None:
    number, arguments = REFUSED[call]
    code = f"import ctypes, os, platform\nlibc = ctypes.CDLL(None, use_errno=True)\nassert platform.machine() == 'x86_64'\nprint(libc.syscall({number}, {arguments}), ctypes.get_errno())"
    outcome = await python(sandbox, code)
    if "AssertionError" in outcome.stderr:
        pytest.skip("the numbers are those of x86_64")
    assert outcome.stdout == "-1 1\n"
