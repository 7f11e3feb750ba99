"""Choice of the provider: the first that runs one sandbox on this machine, bubblewrap first, once per process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from gym.errors import SettingsError
from gym.sandbox.base import SandboxProvider, SandboxUnavailable
from gym.sandbox.bubblewrap import Bubblewrap
from gym.sandbox.docker import Docker
from gym.sandbox.left_over import pid_directory
from gym.sandbox.limits import SandboxLimits
from gym.sandbox.process import start_sandbox
from gym.sandbox.settings import SandboxSettings

_TRIAL = "import os; print('inside', os.getpid(), len(open('/proc/net/dev').readlines()) - 2)"

logger = logging.getLogger(__name__)


def find_provider(settings: SandboxSettings | None = None) -> SandboxProvider:
    """Return the first provider that works, and sweep the sandboxes of dead owners. Raises SandboxUnavailable."""
    settings = settings or SandboxSettings()
    found = _found(settings)
    if isinstance(found, str):
        raise SandboxUnavailable(found)
    return found


def require_named(settings: SandboxSettings) -> None:
    """Check the provider that the settings name. Raises SettingsError if it does not work."""
    if settings.provider in ("bubblewrap", "docker"):
        try:
            find_provider(settings)
        except SandboxUnavailable as error:
            raise SettingsError(
                f"sandbox.provider is {settings.provider}: {error}; mend that, or give `auto` or `none`, "
                "which disable the environments that need a sandbox"
            ) from error


@lru_cache(maxsize=8)
def _found(settings: SandboxSettings) -> SandboxProvider | str:
    name = settings.provider
    if name == "none":
        return "the setting sandbox.provider is none"
    docker = Docker(command=settings.docker_command, arguments=settings.docker_arguments, image=settings.image)
    known: dict[str, SandboxProvider] = {"bubblewrap": Bubblewrap(), "docker": docker}
    try:
        found = first_working(tuple(known.values()) if name == "auto" else (known[name],))
        found.sweep(pid_directory())
    except SandboxUnavailable as error:
        return str(error)
    return found


def first_working(providers: Sequence[SandboxProvider]) -> SandboxProvider:
    """Try each in turn, in a thread with its own event loop. Raises SandboxUnavailable with the reason of each."""
    reasons = []
    for provider in providers:
        try:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, try_once(provider)).result()
        except SandboxUnavailable as error:
            reasons.append(f"{provider.name}: {error}")
        else:
            return provider
    raise SandboxUnavailable(f"no sandbox works on this machine ({'; '.join(reasons)})")


async def try_once(provider: SandboxProvider) -> None:
    """Run a program in a sandbox and check its isolation. Raises SandboxUnavailable."""
    sandbox = await start_sandbox(provider, SandboxLimits())
    try:
        outcome = await sandbox.run(["{python}", "-I", "-c", _TRIAL])
    except Exception as error:
        raise SandboxUnavailable(f"the trial failed: {error}") from error
    finally:
        await sandbox.close()
    if not outcome.stdout.startswith("inside "):
        raise SandboxUnavailable(f"the trial printed {outcome.stdout[:100]!r}, {outcome.stderr[:200]!r}")
    if outcome.stdout.split()[2] != "1":
        raise SandboxUnavailable("the trial saw a network")
