"""Cache of verdicts by judge, judge version and question.

Concurrent equal questions are deduplicated: one is sent, the others wait for its verdict. Only verdicts are cached: a
question that failed is asked again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

import orjson

from gym.judges.base import Verdict


class VerdictStore(Protocol):
    """Store of verdicts; `gym.state.verdicts` keeps them in Redis. Neither method raises if it is unreachable."""

    async def get(self, judge: str, version: str, digest: str) -> Verdict | None: ...

    async def put(self, judge: str, version: str, digest: str, verdict: Verdict) -> None: ...


def digest_of(fields: dict[str, str]) -> str:
    """Return the cache key of a question: a digest of all texts in the judge's prompt."""
    return hashlib.sha256(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


class VerdictCache:
    """Cache of one judge. Without a store every question is sent."""

    def __init__(self, judge: str, store: VerdictStore | None) -> None:
        self._judge = judge
        self._store = store
        self._asking: dict[tuple[str, str], asyncio.Future[Verdict]] = {}
        self.hits = 0

    async def get_or_ask(
        self, version: str, digest: str, ask: Callable[[], Awaitable[Verdict]], *, fresh: bool = False
    ) -> Verdict:
        """Return the cached verdict, or call `ask` and cache its verdict. `fresh` ignores stored verdicts."""
        if self._store is None:
            return await ask()
        key = (version, digest)
        while (under_way := self._asking.get(key)) is not None:
            # the asking caller may be cancelled: then the next waiter asks
            await asyncio.wait({under_way})
            if not under_way.cancelled():
                self.hits += 1
                return replace(under_way.result(), cached=True)
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._asking[key] = answer
        try:
            verdict = None if fresh else await self._store.get(self._judge, version, digest)
            if verdict is not None:
                self.hits += 1
                verdict = replace(verdict, cached=True)
            else:
                verdict = await ask()
                await self._store.put(self._judge, version, digest, verdict)
            answer.set_result(verdict)
        except Exception as error:
            answer.set_exception(error)
            answer.exception()  # marks the exception as retrieved: there may be no other waiter
            raise
        finally:
            del self._asking[key]
            if not answer.done():
                answer.cancel()
        return verdict
