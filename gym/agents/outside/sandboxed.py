"""An agent that is a program in its own sandbox.

No network but the model proxy, no file of the host that it could change.

The sandbox is one of `gym.sandbox`, which can also read the paths in the settings. The worker listens on a Unix socket
in it and forwards each connection to the proxy. Inside, `gym.agents.outside.sandbox_forwarder` offers that socket on
the sandbox's own loopback.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from gym.agents.base import Episode
from gym.agents.outside import sandbox_forwarder
from gym.agents.outside.base import Access, AgentProxy, AgentReport, OutsideAgent
from gym.agents.outside.command import environment_of, filled, outcome_of, prompt_of
from gym.agents.settings import CommandSettings
from gym.errors import AgentFailed, AgentUnreachable, TimedOut
from gym.plain import exact_json
from gym.sandbox.base import MAX_CODE_CHARS, Mount, SandboxFailed, SandboxUnavailable
from gym.sandbox.choose import find_provider
from gym.sandbox.limits import MIB, SandboxLimits
from gym.sandbox.process import start_sandbox
from gym.sandbox.settings import SandboxSettings

PORT = 8701  # on the sandbox's own loopback
WORK = "/work"
_DOOR = "/farm"  # path of the socket inside


class SandboxedAgent(OutsideAgent):
    """Agent that starts one program, each time in a new sandbox."""

    def __init__(self, name: str, proxy: AgentProxy, settings: CommandSettings, sandbox: SandboxSettings) -> None:
        super().__init__(name, proxy)
        self._settings = settings
        self._sandbox = sandbox

    async def drive(self, episode: Episode, access: Access) -> AgentReport:
        """Run the program in a sandbox; see OutsideAgent."""
        at = urlsplit(access.base_url)
        inside = replace(access, base_url=at._replace(scheme="http", netloc=f"127.0.0.1:{PORT}").geturl())
        prompt, task = prompt_of(episode.task.params), exact_json.dumps(episode.task.params).decode()
        words = {
            "prompt": prompt,
            "prompt_file": f"{WORK}/prompt.txt",
            "task_file": f"{WORK}/task.json",
            "base_url": f"{inside.base_url}/v1",
            "model": access.model,
            "rollout_id": episode.rollout_id,
            "directory": WORK,
        }
        asked = {
            "port": PORT,
            "socket": f"{_DOOR}/proxy",
            "files": {words["prompt_file"]: prompt, words["task_file"]: task},
            "stdin": {"prompt": prompt, "task": task, "none": ""}[self._settings.stdin],
            "environment": environment_of(self._settings, inside, words, Path(WORK)),
            "argv": [filled(part, words) for part in self._settings.argv],
        }
        said = orjson.dumps(asked).decode()
        if len(said) > MAX_CODE_CHARS:
            raise AgentFailed(f"the task is too long for {self.name}: {len(said)} of {MAX_CODE_CHARS} characters")
        remaining_s = episode.deadline - asyncio.get_running_loop().time()
        wall_s = min(self._settings.timeout_s or math.inf, max(remaining_s, 1.0))
        async with socket_to(
            at.hostname or "", at.port or (443 if at.scheme == "https" else 80), at.scheme
        ) as directory:
            return await self._run(access, said, wall_s, Mount(directory, _DOOR))

    async def _run(self, access: Access, said: str, wall_s: float, proxy: Mount) -> AgentReport:
        settings = self._settings
        limits = SandboxLimits(
            cpu_s=wall_s,
            wall_s=wall_s,
            memory_bytes=settings.memory_mib * MIB,
            work_bytes=settings.work_mib * MIB,
            file_bytes=settings.work_mib * MIB,
            processes=settings.processes,
            output_bytes=settings.output_kib * 1024,
            open_files=1024,
        )
        mounts = (proxy, *(Mount(path, path) for path in settings.readable))
        try:
            sandbox = await start_sandbox(find_provider(self._sandbox), limits, mounts=mounts, loopback=True)
        except SandboxUnavailable as error:
            raise AgentUnreachable(f"no sandbox for the agent {self.name}: {error}") from error
        try:
            outcome = await sandbox.run(["{python}", "-I", "-S", "-c", _gate(), said])
        except SandboxFailed as error:
            raise AgentFailed(f"the sandbox of the agent {self.name} is gone: {error}") from error
        finally:
            await sandbox.close()
        if outcome.stopped == "wall":
            raise TimedOut(f"the agent {self.name} took longer than {wall_s:g} s")
        if outcome.stopped is not None:
            raise AgentFailed(f"the agent {self.name} was stopped: too much {outcome.stopped}")
        code = outcome.exit_code or 0
        return outcome_of(
            self.name, settings, access, code if code >= 0 else 128 - code, outcome.stdout, outcome.stderr
        )


@cache
def _gate() -> str:
    return Path(sandbox_forwarder.__file__).read_text()


def _open_to_all(directory: Path) -> None:
    """Let every user connect: the sandbox's user differs from a worker that is root. Callers still need a key."""
    directory.chmod(0o755)
    (directory / "proxy").chmod(0o666)


@asynccontextmanager
async def socket_to(host: str, port: int, scheme: str) -> AsyncIterator[str]:
    """Make a directory with a socket `proxy` that forwards each connection to an address."""
    joined: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  the callback is a coroutine
        joined.add(task)
        try:
            there = await asyncio.open_connection(host, port, ssl=scheme == "https" or None)
            await sandbox_forwarder.join((reader, writer), there)
        except OSError:
            writer.close()
        finally:
            joined.discard(task)

    with tempfile.TemporaryDirectory(prefix="farm-agent-") as directory:
        server = await asyncio.start_unix_server(connected, f"{directory}/proxy")
        _open_to_all(Path(directory))
        try:
            yield directory
        finally:
            server.close()
            for task in joined:
                task.cancel()
            await asyncio.gather(*joined, return_exceptions=True)
