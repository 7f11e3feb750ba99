"""Record of results recently given to a reader, to recognize repeats after the log of its batch went back.

A Redis that lost its last writes has lost results, too; their rollouts run again, and are acknowledged again. The
reader learns of it (a warning, `went_back`), and a result that it already has is skipped once (`repeated`).
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

    With `acknowledged`, each result was acknowledged before the next ones were requested, so none may come again.
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
        """Record these results, and the reader's new cursor."""
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
        """Return the cursor to continue after; raise the error if it concerns another cursor."""
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
        """Return the results that were given and that the log still has, in portions; units stay together."""
        portion: list[str] = []
        for _, names in self._lately:
            if portion and len(portion) + len(names) > at_once:
                yield portion
                portion = []
            portion += [rollout_id for rollout_id, _ in names]
        if portion:
            yield portion

    def passes_over(self, results: Sequence[Result]) -> bool:
        """Return whether all of these were given already; after a loss, each repeated result is skipped once."""
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
