"""Tools that run a model's code: a base class for environments, each rollout with a sandbox of its own.

class Puzzle(SandboxedEnvironment[PuzzleRow]):  # offers python_exec and bash
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gym.environments.base import Environment, RowT, tool
from gym.errors import EnvironmentFailed, EnvironmentUnavailable
from gym.jsontypes import JsonObject
from gym.sandbox.base import SandboxEnded, SandboxFailed, SandboxOutcome, SandboxUnavailable
from gym.sandbox.choose import find_provider
from gym.sandbox.pool import loop_pool
from gym.sandbox.process import Sandbox
from gym.sandbox.settings import SandboxSettings

_STOPPED = {
    "wall": "it took too long and was stopped",
    "cpu": "it used too much CPU time and was stopped",
    "memory": "it used too much memory and was stopped",
    "processes": "it started too many processes and was stopped",
    "output": "it printed too much and was stopped; the output is cut",
    "files": "it made too many files and was stopped; the working directory is empty again",
}
_ENDED = "it ended the sandbox it ran in; the working directory is empty again"


class SandboxedEnvironment(Environment[RowT]):
    """An environment with the tools `python_exec` and `bash`; disabled where no sandbox works."""

    apart = True

    def __init__(self, row: RowT, *, seed: int) -> None:
        super().__init__(row, seed=seed)
        self._sandbox: Sandbox | None = None
        self._used = False

    @classmethod
    def check_machine(cls, sandbox: SandboxSettings) -> None:
        """Raise SandboxUnavailable if no sandbox works."""
        find_provider(sandbox)

    @tool
    async def python_exec(
        self, code: Annotated[str, Field(description="A Python program; print what you need.")]
    ) -> JsonObject:
        """Run a Python program in a sandbox without network. Files in the working directory stay, variables do not."""
        return await self._run("{python}", "-I", "-c", code)

    @tool
    async def bash(self, command: Annotated[str, Field(description="A bash script.")]) -> JsonObject:
        """Run a bash script in a sandbox without network. Files in the working directory stay, processes do not."""
        return await self._run("/bin/bash", "-c", command)

    async def sandbox(self) -> Sandbox:
        """Return the rollout's sandbox, started at its first use, and again after a program has ended it.

        Raises EnvironmentUnavailable.
        """
        if self._sandbox is None:
            try:
                self._sandbox = await loop_pool().take()
            except SandboxUnavailable as error:
                raise EnvironmentUnavailable(f"no sandbox: {error}") from error
        return self._sandbox

    async def new_sandbox(self) -> Sandbox:
        """Start a sandbox unused by this rollout's programs, and close an earlier one.

        Raises EnvironmentUnavailable.
        """
        if self._sandbox is not None and (self._used or not self._sandbox.is_usable):
            await self.close()
        sandbox = await self.sandbox()
        self._used = True
        return sandbox

    async def close(self) -> None:
        """Kill the sandbox and all its processes."""
        sandbox, self._sandbox, self._used = self._sandbox, None, False
        if sandbox is not None:
            await sandbox.close()

    async def _run(self, *argv: str) -> JsonObject:
        sandbox = await self.sandbox()
        self._used = True
        try:
            outcome = await sandbox.run(argv)
        except SandboxEnded:
            await self.close()
            return {"stdout": "", "stderr": "", "exit_code": None, "error": _ENDED}
        except SandboxFailed as error:
            raise EnvironmentFailed(f"the sandbox is gone: {error}") from error
        if outcome.stopped == "files":
            await self.close()
        return _shown(outcome)


def _shown(outcome: SandboxOutcome) -> JsonObject:
    shown: JsonObject = {"stdout": outcome.stdout, "stderr": outcome.stderr, "exit_code": outcome.exit_code}
    if outcome.stopped is not None:
        shown["error"] = _STOPPED[outcome.stopped]
    return shown
