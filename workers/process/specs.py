"""The options of batches, which never change, kept by a worker that has their rollouts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gym.batch import BatchSpec
from gym.state.batch_spec import spec_of
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Store, will_pass
from gym.state.redis.unreadable import DECODE_ERRORS, complain

AGAIN_S = 0.5
MOST_SPECS = 1000


class Specs:
    """The options cache of one worker; while `draining` nothing is waited for."""

    def __init__(self, store: Store, *, draining: Callable[[], bool]) -> None:
        self._store = store
        self._draining = draining
        self._known: dict[str, BatchSpec] = {}

    async def get(self, batch_id: str) -> BatchSpec | None:
        """Ask for a batch's options until Redis answers; `None` if they are gone or unreadable, or a drain began.

        The dispatcher puts an unreadable batch in quarantine and raises an alarm.
        """
        spec = self._known.get(batch_id)
        while spec is None:
            try:
                spec = await spec_of(self._store, batch_id)
            except RedisError as error:
                if self._draining() or not will_pass(error):
                    return None
                await asyncio.sleep(AGAIN_S)
                continue
            except DECODE_ERRORS as error:
                complain("spec of batch", batch_id, error)
                return None
            if spec is None:
                return None
            if len(self._known) >= MOST_SPECS:
                self._known.clear()
            self._known[batch_id] = spec
        return spec
