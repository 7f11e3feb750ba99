"""Environments that hang, for the tests beside this file; loaded by the farm that they run."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from gym.environments.base import Environment, Row, tool


class StubbornRow(Row):
    hang: str = ""  # where it never returns from


class Stubborn(Environment[StubbornRow]):
    """Blocks for ever where its row says so."""

    name = "stubborn"
    row_model = StubbornRow
    blocking = True

    def _step(self, name: str) -> None:
        if self.row.hang == name:
            threading.Event().wait()

    def setup(self) -> None:
        self._step("setup")

    @tool
    def work(self) -> str:
        """Work."""
        self._step("tool")
        return "done"

    def verify(self, trajectory: Any) -> float:
        self._step("verify")
        return 1.0

    def close(self) -> None:
        self._step("close")

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        return {"responses_create_params": {"input": "[[call work]]"}}


class Deaf(Stubborn):
    """Hangs in ways that no thread contains: on the event loop, or swallowing its cancellation."""

    name = "deaf"
    blocking = False

    @tool
    async def work(self) -> str:
        """Work."""
        if self.row.hang == "loop":
            time.sleep(3600)  # noqa: ASYNC251  that is the point
        while self.row.hang == "cancellation":
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue
        return "done"
