"""Publication of large requests in bounded steps.

Invariant: one script makes all rows of a request visible and counted, or none. Task ids are compared before it, and
rows go to the backlog after it. During either, no other request is published in the batch. The steps after publication
are named in Redis, so any process may take them. A process that dies before publication leaves nothing visible.
"""

from __future__ import annotations

import asyncio
import time

from gym.errors import Unavailable
from gym.state.redis.store import PUBLISH_CHECK, PUBLISH_STEP, Store

AT_ONCE = 500
"""Rows that one script call looks at; larger requests take several."""

PAUSE_S = 0.002
TURN_MS = 10_000
WAIT_S = 60.0


async def check_tasks(store: Store, batch_id: str, request_id: str, staged: int) -> tuple[str, str]:
    """Drop repeats of the batch's tasks from a request; return the verdict and a conflicting id.

    The verdict is `checked`, or one of `publish.lua`. Raises Unavailable if other requests are published for too long.
    """
    keys = store.keys.batch(batch_id)
    names = [
        *keys.scripted(),
        keys.stage(request_id),
        keys.stage_tasks(request_id),
        keys.stage_progress(request_id),
        keys.publisher,
    ]
    turn = Turn(store, batch_id)
    while True:
        verdict, left, task = await store.run(PUBLISH_CHECK, names, [request_id, staged, AT_ONCE, TURN_MS])
        if verdict == b"busy":
            await turn.wait()
        elif verdict != b"checked" or not left:
            return verdict.decode(), task.decode()
        else:
            await asyncio.sleep(PAUSE_S)


async def publish_step(store: Store, batch_id: str, request_id: str) -> int:
    """Put further rows of a published request into the backlog; returns how many are left."""
    keys = store.keys.batch(batch_id)
    names = [*keys.scripted(), keys.stage(request_id), keys.stage_tasks(request_id)]
    return int(await store.run(PUBLISH_STEP, names, [request_id, AT_ONCE]))


async def finish(store: Store, batch_id: str, request_id: str) -> None:
    """Put all rows of a published request into the backlog."""
    while await publish_step(store, batch_id, request_id):  # noqa: ASYNC110  a pause, in which others have Redis
        await asyncio.sleep(PAUSE_S)


class Turn:
    """Waits until no other request is being published in a batch, and helps it, since its process may be gone."""

    def __init__(self, store: Store, batch_id: str) -> None:
        self._store = store
        self._batch_id = batch_id
        self._give_up_at = time.monotonic() + WAIT_S

    async def wait(self) -> None:
        """Return when it may be time to try again. Raises Unavailable after a minute."""
        other = await self._store.redis.hget(self._store.keys.batch(self._batch_id).meta, "publishing")
        if other is not None:
            await finish(self._store, self._batch_id, other.decode())
        elif time.monotonic() >= self._give_up_at:
            raise Unavailable(
                "being_published",
                f"other rows of batch {self._batch_id} are being published; nothing was added, send the request again",
                {"batch_id": self._batch_id},
                retry_after_s=1,
            )
        else:
            await asyncio.sleep(0.05)
