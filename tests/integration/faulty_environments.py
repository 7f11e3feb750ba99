"""Environments that fail as their rows say: for tests that a farm loads them into."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from gym.environments.base import Environment, Row, tool
from gym.errors import EnvironmentUnavailable
from gym.jsontypes import JsonObject
from gym.trajectory import Trajectory

TOGETHER_S = 1.0


class SandboxedRow(Row):
    """`away` and `busy` are files: while they exist, no sandbox is available, and tools do not end."""

    away: Path = Path("/nowhere")
    busy: Path = Path("/nowhere")


class Sandboxed(Environment[SandboxedRow]):
    """Needs a sandbox that may be away."""

    name = "sandboxed"
    row_model = SandboxedRow

    def setup(self) -> None:
        if self.row.away.exists():
            raise EnvironmentUnavailable("no sandbox is free")

    @tool
    async def work(self) -> str:
        """Do something."""
        while self.row.busy.exists():  # noqa: ASYNC110  the test deletes it
            await asyncio.sleep(0.05)
        return "done"

    def verify(self, trajectory: Trajectory) -> float:
        return 1.0

    @classmethod
    def example_row(cls) -> JsonObject:
        return {"responses_create_params": {"input": "Hello"}, "away": "/nowhere"}


class DeadlyRow(Row):
    """`deaths` is a file that grows by a byte with each death; rows that do not kill wait for two of them."""

    kills: bool
    deaths: Path


class Deadly(Environment[DeadlyRow]):
    """Kills its worker where the row says so, as a fault in native code would."""

    name = "deadly"
    row_model = DeadlyRow
    agent = "single_turn"

    async def setup(self) -> None:
        if self.row.kills:
            await asyncio.sleep(TOGETHER_S)
            with self.row.deaths.open("ab") as deaths:
                deaths.write(b"x")
            os.kill(os.getpid(), signal.SIGKILL)
        while self.row.deaths.stat().st_size < 2:  # noqa: ASYNC110  the file is written by another process
            await asyncio.sleep(0.05)

    def verify(self, trajectory: Trajectory) -> float:
        return 1.0

    @classmethod
    def example_row(cls) -> JsonObject:
        return {"responses_create_params": {"input": "Hello"}, "kills": False, "deaths": "/nowhere"}
