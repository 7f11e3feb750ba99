"""Cursors of a batch's log, and the check whether the log has gone back behind one.

A cursor is the id of an entry, `MS-NUMBER`: the time in ms and the entry's number in the log; both grow. A log that
lost its last entries (a restored backup, a lagging replica that was promoted) gives their numbers out again. So an
entry after a cursor has a higher number, unless the log has gone back, however much it has grown since.
"""

from __future__ import annotations

from typing import Any

from gym.errors import Conflict
from gym.state.redis.keys import BatchKeys

START = "0-0"
FIRST_NUMBER = 1_000_000  # as in lib.lua; entries below it are of a log without numbers
LOG_WENT_BACK = "log_went_back"


def place_of(cursor: str) -> tuple[int, int]:
    """Return (time in ms, number) of a cursor."""
    ms, _, number = cursor.partition("-")
    return int(ms), int(number)


class LogWentBack(Conflict):
    """The log lacks entries that the reader has read; `resume_after` is the last cursor on which both agree."""

    def __init__(self, cursor: str, resume_after: str) -> None:
        super().__init__(
            LOG_WENT_BACK,
            f"the log of this batch went back behind the cursor {cursor}: Redis has lost its last writes, and results "
            f"that came after {resume_after} may come again; go on after that one",
            {"field": "after", "after": cursor, "resume_after": resume_after},
        )
        self.resume_after = resume_after


async def check_position(redis: Any, keys: BatchKeys, cursor: str) -> None:
    """Raise LogWentBack if the log lacks entries that a reader at this cursor has read."""
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
