"""A counter that writes down when it was set up and when it was closed, so that a session which leaks is seen.

Another one asks a judge too, when it has ended where it should. The farm of a chaos run loads both by their path.
A line is `open|close PROCESS SESSION`, appended in one write.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from gym.environments.builtin.stateful_counter import CounterRow, StatefulCounter
from gym.jsontypes import JsonObject
from gym.judges.base import Ask, Question, Verdict
from gym.trajectory import Trajectory

JUDGE = "chaos"


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


class JudgedCounter(JournaledCounter):
    """As `journaled_counter`, where a judge has the last word."""

    name = "judged_counter"
    judges = (JUDGE,)

    def verify(self, trajectory: Trajectory) -> float | Ask:  # type: ignore[override]  # a counter alone asks no judge
        """Ask the judge about a counter that is right."""
        if self.count != self.row.expected_count:
            return 0.0
        return Ask((Question(judge=JUDGE, answer=trajectory.final_text, reference="[[say Verdict: EQUAL]]"),))

    @classmethod
    def judged(cls, ask: Ask, verdicts: Sequence[Verdict]) -> float:
        """Reward what the judge found equal."""
        return verdicts[0].score
