"""What a reader was given lately, to know what comes again after the log of its batch went back.

A Redis that lost its last writes has lost results, too; their rollouts run again, and are acknowledged anew. A reader
is told of it (a warning, `went_back`), and what it was given already is passed over once (`repeated`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence

from gym.client.records import Result
from gym.errors import Conflict

LOG_WENT_BACK = "log_went_back"
MOST_REMEMBERED = 100_000
_LOG = logging.getLogger(__name__)


class Given:
    """The last results of one reader, up to `most`; `went_back` counts how often the log did.

    With `acknowledged`, each was acknowledged before the next were asked for, so none of them comes again by right.
    """

    def __init__(self, batch_id: str, *, acknowledged: bool = False, most: int = MOST_REMEMBERED) -> None:
        self._acknowledged = acknowledged
        self.went_back = 0
        self.repeated = 0
        self._batch_id = batch_id
        self._most = most
        self._held = 0
        self._lately: deque[tuple[str, list[tuple[str, int]]]] = deque()
        self._lost: set[str] = set()
        self._used: set[tuple[str, int]] = set()

    def note(self, cursor: str | None, results: Sequence[Result]) -> None:
        """These were given, and the reader stands at this cursor now."""
        if cursor is None or not results:
            return
        self._lately.append((cursor, [(result.rollout_id, result.attempt) for result in results]))
        self._held += len(results)
        if self._acknowledged:
            self._used.update(self._lately[-1][1])
        while self._held > self._most and len(self._lately) > 1:
            forgotten = self._lately.popleft()[1]
            self._held -= len(forgotten)
            self._used.difference_update(forgotten)

    def went_back_to(self, error: Conflict) -> str:
        """The cursor to go on after; raises the error where it is another one. What was given after it runs again."""
        if error.code != LOG_WENT_BACK:
            raise error
        self.went_back += 1
        resume_after = str(error.details["resume_after"])
        while self._lately and _place(self._lately[-1][0]) > _place(resume_after):
            _, names = self._lately.pop()
            self._held -= len(names)
            self._used.difference_update(names)
            self._lost |= {rollout_id for rollout_id, _ in names}
        _LOG.warning("%s; %d results that were given may come again", error.message, len(self._lost))
        return resume_after

    def remembered(self, at_once: int) -> Iterator[list[str]]:
        """The rollouts that were given and that the log still has, in portions; what came together stays together."""
        portion: list[str] = []
        for _, names in self._lately:
            if portion and len(portion) + len(names) > at_once:
                yield portion
                portion = []
            portion += [rollout_id for rollout_id, _ in names]
        if portion:
            yield portion

    def passes_over(self, results: Sequence[Result]) -> bool:
        """Whether all of these were given already; what runs again after a loss is passed over once."""
        if not self._lost and not self._used:
            return False
        names = [(result.rollout_id, result.attempt) for result in results]
        if not all(name[0] in self._lost or name in self._used for name in names):
            return False
        if not self.went_back and not self.repeated:
            _LOG.warning("results of batch %s come again: Redis has lost their acknowledgement", self._batch_id)
        self._lost -= {rollout_id for rollout_id, _ in names}
        self.repeated += len(names)
        return True


def _place(cursor: str) -> tuple[int, int]:
    ms, _, number = cursor.partition("-")
    return int(ms), int(number)
