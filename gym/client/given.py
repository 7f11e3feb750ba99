"""What a reader was given lately, to know what comes again after the log of its batch went back.

A Redis that lost its last writes has lost results, too; their rollouts run again, and are acknowledged anew. A reader
is told of it (a warning, `went_back`), and what it was given already is passed over once (`repeated`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from gym.client.records import Result
from gym.errors import Conflict

LOG_WENT_BACK = "log_went_back"
MOST_REMEMBERED = 100_000
_LOG = logging.getLogger(__name__)


class Given:
    """The last results of one reader, up to `most`; `went_back` counts how often the log did."""

    def __init__(self, batch_id: str, *, most: int = MOST_REMEMBERED) -> None:
        self.went_back = 0
        self.repeated = 0
        self._batch_id = batch_id
        self._most = most
        self._held = 0
        self._lately: deque[tuple[str, list[tuple[str, int]]]] = deque()
        self._lost: set[str] = set()
        self._kept: set[tuple[str, int]] = set()

    def note(self, cursor: str | None, results: Sequence[Result]) -> None:
        """These were given, and the reader stands at this cursor now."""
        if cursor is None or not results:
            return
        self._lately.append((cursor, [(result.rollout_id, result.attempt) for result in results]))
        self._held += len(results)
        while self._held > self._most and len(self._lately) > 1:
            self._held -= len(self._lately.popleft()[1])

    def went_back_to(self, error: Conflict, *, unacknowledged: bool = False) -> str | None:
        """Where to go on, `None` for the start; raises the error where it is another one.

        What was given after that place runs again. With `unacknowledged`, what was given before may come again as it
        was, since its acknowledgement may be lost.
        """
        if error.code != LOG_WENT_BACK:
            raise error
        self.went_back += 1
        resume_after = str(error.details["resume_after"])
        for cursor, names in self._lately:
            if _place(cursor) > _place(resume_after):
                self._lost |= {rollout_id for rollout_id, _ in names}
            elif unacknowledged:
                self._kept |= set(names)
        self._lately.clear()
        self._held = 0
        _LOG.warning("%s; %d results that were given may come again", error.message, len(self._lost))
        return resume_after

    def passes_over(self, results: Sequence[Result]) -> bool:
        """Whether all of these were given before the log went back; each is passed over once."""
        if not self._lost and not self._kept:
            return False
        names = [(result.rollout_id, result.attempt) for result in results]
        if not all(rollout_id in self._lost or (rollout_id, attempt) in self._kept for rollout_id, attempt in names):
            return False
        self._lost -= {rollout_id for rollout_id, _ in names}
        self._kept -= set(names)
        self.repeated += len(names)
        return True


def _place(cursor: str) -> tuple[int, int]:
    ms, _, number = cursor.partition("-")
    return int(ms), int(number)
