"""Cursors of a batch's log, and whether the log has gone back behind one.

A cursor is the id of an entry: the time in ms and the entry's number in the log, `MS-NUMBER`, of which both grow. A log
that lost its last entries (a restored backup, a replica that lagged and was promoted) gives their numbers out again. So
what follows a cursor has a higher number, unless the log has gone back, however much it has grown since.
"""

from __future__ import annotations

from typing import Any

from gym.errors import Conflict
from gym.state.redis.keys import BatchKeys

START = "0-0"
FIRST_NUMBER = 1_000_000  # as in lib.lua; entries below it are of a log without numbers
LOG_WENT_BACK = "log_went_back"


def place_of(cursor: str) -> tuple[int, int]:
    """(time in ms, number) of a cursor."""
    ms, _, number = cursor.partition("-")
    return int(ms), int(number)


class LogWentBack(Conflict):
    """The log does not hold what the reader has read; `resume_after` is where the two last agree."""

    def __init__(self, cursor: str, resume_after: str) -> None:
        super().__init__(
            LOG_WENT_BACK,
            f"the log of this batch went back behind the cursor {cursor}: Redis has lost its last writes, and results "
            f"that came after {resume_after} may come again; go on after that one",
            {"field": "after", "after": cursor, "resume_after": resume_after},
        )
        self.resume_after = resume_after


async def check_position(redis: Any, keys: BatchKeys, cursor: str) -> None:
    """Raise LogWentBack where the log does not hold what a reader at this cursor has read."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.hget(keys.meta, "logged")
    pipeline.xrange(keys.log, min=cursor, max="+", count=1)
    pipeline.xrevrange(keys.log, max=f"({cursor}" if cursor != START else cursor, min="-", count=1)
    logged, following, before = await pipeline.execute()
    _, number = place_of(cursor)
    if number <= FIRST_NUMBER or (following and following[0][0].decode() == cursor):
        return
    last = before[0][0].decode() if before else START
    if place_of(last)[1] >= number:
        raise LogWentBack(cursor, START)  # written since, under a clock that is behind
    newest = place_of(following[0][0].decode())[1] if following else FIRST_NUMBER + int(logged or 0) + 1
    if newest <= number:
        raise LogWentBack(cursor, last)
