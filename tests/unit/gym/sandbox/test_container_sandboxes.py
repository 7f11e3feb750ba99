# ruff: noqa: E501  programs are easier to read on one line
"""Sandboxes of a real container engine, by Docker's client and by Podman's."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gym.sandbox.base import SandboxOutcome, SandboxProvider
from gym.sandbox.choose import find_provider
from gym.sandbox.limits import MIB, SandboxLimits
from gym.sandbox.process import Sandbox, start_sandbox
from gym.sandbox.settings import SandboxSettings

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("boxes", ["docker", "podman"], indirect=True)]
LIMITS = SandboxLimits(wall_s=30, memory_bytes=256 * MIB, work_bytes=16 * MIB, file_bytes=8 * MIB, files=2_000)


@pytest.fixture
def provider(boxes: SandboxSettings) -> SandboxProvider:
    return find_provider(boxes)


@pytest.fixture
async def sandbox(provider: SandboxProvider) -> AsyncIterator[Sandbox]:
    started = await start_sandbox(provider, LIMITS)
    yield started
    await started.close()


async def python(sandbox: Sandbox, code: str) -> SandboxOutcome:
    return await sandbox.run(["{python}", "-I", "-c", code])


async def test_the_farms_own_filter_holds(sandbox: Sandbox) -> None:
    code = "import ctypes, socket\nlibc = ctypes.CDLL(None, use_errno=True)\nfor flags in (0x10000000, 0x10020000):\n    print(libc.unshare(flags), ctypes.get_errno())\nfor family in (socket.AF_INET, socket.AF_NETLINK, socket.AF_VSOCK, socket.AF_ALG):\n    try: socket.socket(family, socket.SOCK_STREAM)\n    except OSError as error: print(error.errno)"
    said = (await python(sandbox, code)).stdout.split()
    assert said == ["-1", "1", "-1", "1", *[str(errno.EAFNOSUPPORT)] * 4]


async def test_nothing_but_the_bounded_places_can_be_written(sandbox: Sandbox) -> None:
    code = "import os\nfound = []\nfor folder, folders, _ in os.walk('/'):\n    folders[:] = [each for each in folders if folder != '/' or each not in ('proc', 'sys')]\n    try:\n        open(f'{folder}/made', 'w').close(); found.append(folder)\n    except OSError: pass\nprint(sorted(found))"
    places = eval((await python(sandbox, code)).stdout)
    assert {"/work", "/tmp"} <= set(places) <= {"/work", "/tmp", "/dev/shm"}


async def test_files_without_content_are_bounded(sandbox: Sandbox) -> None:
    code = "import os\nfor n in range(400_000): os.close(os.open(f'/work/{n}', os.O_CREAT))"
    outcome = await python(sandbox, code)
    assert outcome.stopped == "files" or "No space left" in outcome.stderr


async def test_descriptors_are_those_of_the_program_alone(sandbox: Sandbox) -> None:
    code = "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"
    assert (await python(sandbox, code)).stdout == "[0, 1, 2]\n"


async def test_process_1_takes_no_signal(sandbox: Sandbox) -> None:
    code = (
        "import os\nfor number in range(1, 65):\n    try: os.kill(1, number)\n    except OSError: pass\nprint('alive')"
    )
    assert (await python(sandbox, code)).stdout == "alive\n"
    assert (await python(sandbox, "print('still')")).stdout == "still\n"


async def test_no_container_is_left(provider: SandboxProvider, tmp_path: Path) -> None:
    started = await start_sandbox(provider, LIMITS)
    await started.close()
    assert provider.sweep(tmp_path) == 0
