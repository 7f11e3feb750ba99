"""A real sandbox for each test; skipped, with the reason, only where none works."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gym.sandbox.base import SandboxProvider, SandboxUnavailable
from gym.sandbox.choose import find_provider
from gym.sandbox.limits import MIB, Limits
from gym.sandbox.pool import close_loop_pool
from gym.sandbox.process import Sandbox, start_sandbox

LIMITS = Limits(cpu_s=30, wall_s=30, memory_bytes=256 * MIB, processes=16, work_bytes=16 * MIB, file_bytes=8 * MIB)


@pytest.fixture(scope="session")
def provider() -> SandboxProvider:
    try:
        return find_provider()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
async def sandbox(provider: SandboxProvider) -> AsyncIterator[Sandbox]:
    started = await start_sandbox(provider, LIMITS)
    yield started
    await started.close()


@pytest.fixture
async def pools(provider: SandboxProvider) -> AsyncIterator[None]:
    yield
    await close_loop_pool()
