"""The judge server over HTTP.

| call | effect |
|---|---|
| `POST /v1/scores` `{items: [{answer, question?, reference?}]}` | `{kind, model, version, scores: [number or null]}` |
| `GET /v1/judge` | description and load: kind, model, version, capacity, in_flight, waiting, batches, items |
| `GET /health` | 200 once the model is loaded |

Invariant: the server holds at most `capacity` items. A call that would exceed that is answered 429 with `Retry-After`
(backpressure), so the queue is bounded and callers go to another replica. Items of different calls share batches.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gym.jsontypes import JsonObject
from gym.judges.batching import MicroBatcher
from gym.plain.values import NotPlain, number
from workers.judge_server.item import Item
from workers.judge_server.scorer import Scorer

MAX_BODY_BYTES = 64 * 2**20
RETRY_AFTER_S = 1
_LOG = logging.getLogger(__name__)


class _ItemBody(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    answer: str
    question: str = ""
    reference: str = ""


class _ScoresBody(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)  # callers send `model`, but there is only one

    items: Annotated[list[_ItemBody], Field(min_length=1, max_length=4096)]


class JudgeServer:
    """The routes around one model."""

    def __init__(
        self,
        kind: str,
        scorer: Scorer,
        *,
        batch_size: int,
        batch_wait_s: float,
        capacity: int,
        api_key: str | None = None,
    ) -> None:
        self.kind = kind
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()
        self.scorer = scorer
        self.capacity = capacity
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="scores")
        self.batcher: MicroBatcher[Item, float | None] = MicroBatcher(
            self._score, max_items=batch_size, max_wait_s=batch_wait_s
        )

    def app(self) -> web.Application:
        """Return the app that aiohttp runs."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/v1/scores", self._scores),
                web.get("/v1/judge", self._judge),
                web.get("/health", self._health),
            ]
        )
        app.on_cleanup.append(self._close)
        return app

    def describe(self) -> JsonObject:
        """Answer with the server's description and load."""
        return {
            "kind": self.kind,
            "model": self.scorer.model,
            "version": self.scorer.version,
            "capacity": self.capacity,
            "in_flight": self.in_flight,
            "waiting": self.batcher.waiting,
            "batches": self.batcher.batches,
            "items": self.batcher.items,
        }

    async def _score(self, items: list[Item]) -> Sequence[float | None]:
        loop = asyncio.get_running_loop()
        scores: Sequence[object] = await loop.run_in_executor(self._executor, self.scorer.scores, items)
        return [_plain_score(score) for score in scores]

    async def _scores(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "").encode()
        if self._expected is not None and not hmac.compare_digest(given, self._expected):
            return _refused(401, "this judge server asks for its key, as `Authorization: Bearer KEY`")
        try:
            body = _ScoresBody.model_validate(orjson.loads(await request.read()))
        except orjson.JSONDecodeError as error:
            return _refused(400, f"the body is not JSON: {error}")
        except ValidationError as error:
            first = error.errors()[0]
            return _refused(422, f"field `{'.'.join(map(str, first['loc']))}`: {first['msg']}")
        if len(body.items) > self.capacity:
            return _refused(
                413, f"{len(body.items)} items are over the capacity of {self.capacity}; send fewer at a time"
            )
        if self.in_flight + len(body.items) > self.capacity:
            message = f"{self.in_flight} items are in the house and the capacity is {self.capacity}"
            return _refused(429, message, {"Retry-After": str(RETRY_AFTER_S)})
        self.in_flight += len(body.items)
        self.idle.clear()
        try:
            items = [Item(item.answer, item.question, item.reference) for item in body.items]
            scores = await asyncio.gather(*(self.batcher.submit(item) for item in items))
        finally:
            self.in_flight -= len(body.items)
            if not self.in_flight:
                self.idle.set()
        return _json({"kind": self.kind, "model": self.scorer.model, "version": self.scorer.version, "scores": scores})

    async def _judge(self, _: web.Request) -> web.Response:
        return _json(self.describe())

    async def _health(self, _: web.Request) -> web.Response:
        return _json({"status": "ready"})

    async def _close(self, _: web.Application) -> None:
        await self.batcher.close()
        self._executor.shutdown(wait=False, cancel_futures=True)


def _plain_score(score: object) -> float | None:
    """Return a model's number as a float; None, with a warning, if it is not finite or not a number."""
    if score is None:
        return None
    try:
        return number(score, "the score")
    except NotPlain as error:
        _LOG.warning("an item is not scored: %s", error, extra={"action": "score_unreadable"})
        return None


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, headers=headers, content_type="application/json")


def _refused(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return _json({"error": {"code": status, "message": message}}, status, headers)
