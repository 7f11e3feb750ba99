"""A real sandbox for each test; skipped, with the reason, only where none works."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from gym.sandbox.base import SandboxProvider, SandboxUnavailable
from gym.sandbox.choose import find_provider
from gym.sandbox.limits import MIB, SandboxLimits
from gym.sandbox.pool import close_loop_pool
from gym.sandbox.process import Sandbox, start_sandbox
from gym.sandbox.settings import SandboxSettings
from tests.unit.gym.sandbox.engines import IMAGE, Engine, NoEngine, docker, podman

LIMITS = SandboxLimits(
    cpu_s=30, wall_s=30, memory_bytes=256 * MIB, processes=16, work_bytes=16 * MIB, file_bytes=8 * MIB
)


LITTLE: dict[str, Any] = {"warm": 0}
LOOPS = {"uvloop": ("asyncio", {"use_uvloop": True}), "asyncio": ("asyncio", {"use_uvloop": False})}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The worker's event loop; it starts processes in another way than asyncio's does."""
    return LOOPS["uvloop"]


@pytest.fixture(scope="session")
def podman_engine() -> Iterator[Engine]:
    """Podman, with its settings in this process's environment."""
    with contextlib.ExitStack() as stack:
        yield _entered(stack, podman())


@pytest.fixture(scope="session")
def docker_engine(podman_engine: Engine) -> Iterator[Engine]:
    """Docker's client in front of that Podman."""
    with contextlib.ExitStack() as stack:
        yield _entered(stack, docker(podman_engine))


def _entered(stack: contextlib.ExitStack, starting: contextlib.AbstractContextManager[Engine]) -> Engine:
    try:
        found = stack.enter_context(starting)
    except NoEngine as error:
        pytest.skip(f"no container engine: {error}")
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    for name, value in found.environment.items():
        patch.setenv(name, value)
    return found


@pytest.fixture(params=["bubblewrap", "docker", "podman"])
def boxes(request: pytest.FixtureRequest) -> SandboxSettings:
    """The settings of each provider; those that do not work here are skipped with the reason."""
    if request.param != "bubblewrap":
        found: Engine = request.getfixturevalue(f"{request.param}_engine")
        return SandboxSettings(
            **LITTLE, provider="docker", docker_command=found.command, docker_arguments=found.arguments, image=IMAGE
        )
    settings = SandboxSettings(**LITTLE, provider="bubblewrap")
    try:
        find_provider(settings)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    return settings


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
