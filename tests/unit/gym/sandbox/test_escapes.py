# ruff: noqa: E501  programs are easier to read on one line
"""Programs that try to get out, to harm or to stay; each is really run."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import anyio
import psutil
import pytest

from gym.sandbox.base import SandboxOutcome, SandboxProvider
from gym.sandbox.limits import MIB, SandboxLimits
from gym.sandbox.process import Sandbox, start_sandbox
from tests.unit.gym.sandbox.conftest import LIMITS

pytestmark = pytest.mark.anyio


async def python(sandbox: Sandbox, code: str) -> SandboxOutcome:
    return await sandbox.run(["{python}", "-I", "-c", code])


async def bash(sandbox: Sandbox, code: str) -> SandboxOutcome:
    return await sandbox.run(["/bin/bash", "-c", code])


async def still_works(sandbox: Sandbox) -> bool:
    """And nothing of the earlier call is left: process 1 and the one that looks."""
    outcome = await python(sandbox, "import os; print([n for n in os.listdir('/proc') if n.isdigit()].__len__())")
    return outcome.stdout == "2\n"


async def test_a_fork_bomb_is_bounded_and_gone_and_harms_no_neighbour(
    sandbox: Sandbox, provider: SandboxProvider
) -> None:
    neighbour = await start_sandbox(provider, SandboxLimits())
    bomb = "import os, time\nfor _ in range(200):\n    if os.fork() == 0: time.sleep(100)\n"
    async with anyio.create_task_group() as group:
        group.start_soon(python, sandbox, bomb)
        assert (await python(neighbour, "print(1)")).stdout == "1\n"
    await neighbour.close()
    outcome = await python(sandbox, bomb)
    assert outcome.stopped == "processes" or "BlockingIOError" in outcome.stderr
    assert await still_works(sandbox)


async def test_memory_of_one_process_is_limited(sandbox: Sandbox) -> None:
    assert "MemoryError" in (await python(sandbox, "x = bytearray(10**9)")).stderr


async def test_memory_of_all_processes_together_is_limited(sandbox: Sandbox) -> None:
    code = "import os, time\n[os.fork() for _ in range(3)]\nx = b'x' * (100 * 2**20)\ntime.sleep(100)"
    assert (await python(sandbox, code)).stopped == "memory"
    assert await still_works(sandbox)


async def test_memory_that_is_no_address_space_cannot_be_had(sandbox: Sandbox) -> None:
    code = "import os\ntry: os.memfd_create('x')\nexcept PermissionError: print('no')"
    assert (await python(sandbox, code)).stdout == "no\n"
    filled = await bash(sandbox, "for i in 1 2 3 4; do head -c 7M /dev/zero > ~/$i; done; du -sm ~ | cut -f1")
    assert "No space left" in filled.stderr
    assert int(filled.stdout) <= 17


async def test_proc_shows_no_process_of_the_host_and_not_the_first_ones_pipes(sandbox: Sandbox) -> None:
    seen = await bash(
        sandbox, f"ls /proc | grep -c -x '[0-9]*'; ls /proc/{os.getpid()}; cat /proc/1/environ /proc/1/mem"
    )
    assert int(seen.stdout.split()[0]) <= 5
    assert "No such file" in seen.stderr
    assert seen.stderr.count("Permission denied") == 2
    assert "Permission denied" in (await bash(sandbox, "ls /proc/1/fd /proc/1/root")).stderr


FAMILIES = (
    "AF_INET",
    "AF_INET6",
    "AF_NETLINK",
    "AF_PACKET",
    "AF_VSOCK",
    "AF_ALG",
    "AF_QIPCRTR",
    "AF_BLUETOOTH",
    "AF_CAN",
)


@pytest.mark.parametrize("family", FAMILIES)
async def test_only_unix_sockets_can_be_made(sandbox: Sandbox, family: str) -> None:
    code = f"import socket\nfor kind in (1, 2, 3, 5):\n    try: socket.socket(socket.{family}, kind); print('open')\n    except OSError as e: print(e.errno)"
    assert (await python(sandbox, code)).stdout.split() == [str(errno.EAFNOSUPPORT)] * 4
    pair = "import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))"
    assert (await python(sandbox, pair)).stdout == "b'x'\n"


async def test_there_is_no_network_not_even_the_hosts_loopback(provider: SandboxProvider) -> None:
    sandbox = await start_sandbox(provider, LIMITS, loopback=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = f"import socket\nprint(len(open('/proc/net/dev').readlines()))\nsocket.create_connection(('127.0.0.1', {port}), 5)"
        outcome = await python(sandbox, code)
    await sandbox.close()
    assert outcome.stdout == "3\n"  # two lines of headings and the sandbox's own loopback
    assert "refused" in outcome.stderr or "unreachable" in outcome.stderr


async def test_a_symlink_leads_nowhere_outside(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    outcome = await bash(sandbox, f"ln -s {tmp_path}/secret s; cat s; echo x > s; ln -s / r; cat r/etc/shadow r/root/x")
    assert outcome.stdout == ""
    assert (tmp_path / "secret").read_text() == "secret"


async def test_the_parent_cannot_be_signalled(sandbox: Sandbox) -> None:
    code = f"kill -9 1; kill -STOP 1; kill -9 $PPID; kill -9 {os.getpid()}; echo alive"
    assert (await bash(sandbox, code)).stdout == "alive\n"
    assert await still_works(sandbox)


async def test_killing_everything_kills_only_itself(sandbox: Sandbox) -> None:
    await bash(sandbox, "kill -9 -1; sleep 1")
    assert await still_works(sandbox)


async def test_a_gigabyte_of_output_is_stopped_and_cut(sandbox: Sandbox) -> None:
    outcome = await bash(sandbox, "head -c 1000000000 /dev/zero | tr '\\0' x")
    assert outcome.stopped == "output"
    assert len(outcome.stdout) <= 64 * 1024


async def test_sleeping_for_ever_is_ended(provider: SandboxProvider) -> None:
    sandbox = await start_sandbox(provider, SandboxLimits(wall_s=1))
    assert (await bash(sandbox, "trap '' TERM INT HUP; sleep 1000000")).stopped == "wall"
    assert await still_works(sandbox)
    await sandbox.close()


async def test_a_busy_loop_is_ended_by_its_cpu_time(provider: SandboxProvider) -> None:
    sandbox = await start_sandbox(provider, SandboxLimits(cpu_s=0.5, wall_s=60))
    assert (await python(sandbox, "while True: pass")).stopped == "cpu"
    await sandbox.close()


async def test_zombies_and_daemons_are_reaped(sandbox: Sandbox) -> None:
    code = "import os, time\nfor n in range(8):\n    if os.fork() == 0:\n        os.setsid()\n        n % 2 and time.sleep(100)\n        os._exit(0)"
    assert (await python(sandbox, code)).exit_code == 0
    assert await still_works(sandbox)


@pytest.mark.parametrize("place", ["/x", "/etc/x", "/usr/x", "/dev/x", "/proc/sys/kernel/hostname", "/sys/x"])
async def test_nothing_can_be_written_outside(sandbox: Sandbox, place: str) -> None:
    assert (await bash(sandbox, f"echo x > {place}")).exit_code != 0


@pytest.mark.parametrize("call", ["unshare -Ur true", "mount -t tmpfs x /tmp", "chroot / true"])
async def test_calls_that_escapes_are_made_of_are_refused(sandbox: Sandbox, call: str) -> None:
    assert (await bash(sandbox, call)).exit_code != 0


async def test_a_file_has_a_largest_size(sandbox: Sandbox) -> None:
    outcome = await bash(sandbox, "head -c 20000000 /dev/zero > big; stat -c %s big")
    assert int(outcome.stdout) <= 8 * MIB


async def test_nothing_outlives_close(provider: SandboxProvider) -> None:
    sandbox = await start_sandbox(provider, SandboxLimits())
    children = psutil.Process(sandbox.pid).children(recursive=True)
    async with anyio.create_task_group() as group:
        group.start_soon(bash, sandbox, "sleep 1000 & sleep 1000")
        with anyio.fail_after(60):
            while len(children) < 3:
                children = psutil.Process(sandbox.pid).children(recursive=True)
                await anyio.sleep(0.02)
        group.cancel_scope.cancel()
    await sandbox.close()
    gone, left = psutil.wait_procs(children, timeout=30)
    assert (len(gone), left) == (len(children), [])
