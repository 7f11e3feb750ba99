"""A counter that writes down when it was set up and when it was closed, so that a session which leaks is seen.

The farm of a chaos run loads it by its path. A line is `open|close PROCESS SESSION`, appended in one write.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from gym.environments.stateful_counter import CounterRow, StatefulCounter
from gym.jsontypes import JsonObject


class JournaledRow(CounterRow):
    """A counter's row, and the file for its comings and goings."""

    journal: Path


class JournaledCounter(StatefulCounter):
    """As `stateful_counter`."""

    name = "journaled_counter"
    row_model = JournaledRow  # type: ignore[assignment]  # a row of its own, as every environment has one
    row: JournaledRow

    def setup(self) -> None:
        """Note the beginning."""
        self._session = uuid.uuid4().hex
        self._note("open")

    def close(self) -> None:
        """Note the end."""
        self._note("close")

    @classmethod
    def example_row(cls) -> JsonObject:
        """One addition."""
        return {**StatefulCounter.example_row(), "environment": cls.name, "journal": os.devnull}

    def _note(self, event: str) -> None:
        with self.row.journal.open("ab", buffering=0) as journal:
            journal.write(f"{event} {os.getpid()} {self._session}\n".encode())
