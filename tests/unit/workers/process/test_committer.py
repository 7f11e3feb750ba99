"""Changes that are sent to a Redis that cannot take them at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from gym.state.redis.keys import Keys
from gym.state.redis.store import COMMIT, ScriptCall
from workers.process.committer import Committer

pytestmark = pytest.mark.anyio


class Pipeline:
    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.counted: list[tuple[Any, ...]] = []

    def eval(self, *arguments: Any) -> None:
        self.counted.append(arguments[2:])

    def ltrim(self, *arguments: Any) -> None: ...

    async def execute(self, *, raise_on_error: bool) -> None:
        if self.redis.away:
            self.redis.away -= 1
            raise RedisConnectionError("away")
        self.redis.counted += [each for each in self.counted if each[1] == "HINCRBY"]


class Redis:
    away = 0

    def __init__(self) -> None:
        self.counted: list[tuple[Any, ...]] = []

    def pipeline(self, *, transaction: bool) -> Pipeline:
        return Pipeline(self)


class Store:
    """A store with prepared answers, one list for each round trip."""

    def __init__(self, *rounds: Any) -> None:
        self.keys = Keys()
        self.redis = Redis()
        self.rounds = list(rounds)
        self.sent: list[list[Any]] = []

    async def run_many(self, calls: list[ScriptCall]) -> list[Any]:
        self.sent.append([call.args[0] for call in calls])
        answers = self.rounds.pop(0)
        if isinstance(answers, Exception):
            raise answers
        assert isinstance(answers, list)
        return answers


async def answers_to(store: Any, changes: int) -> list[Any]:
    committer = Committer(store)
    sent = [asyncio.create_task(committer.send(ScriptCall(COMMIT, [], [number]))) for number in range(changes)]
    await asyncio.sleep(0)
    committer.add_total("ended", changes)
    running = asyncio.create_task(committer.run())
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*sent, return_exceptions=True)
        while not store.redis.counted:  # noqa: ASYNC110  the fake has no event for it
            await asyncio.sleep(0.01)
    running.cancel()
    return answers


@pytest.mark.parametrize(
    "cannot", [OutOfMemoryError("full"), BusyLoadingError("loading"), ResponseError("MISCONF disk")]
)
async def test_a_change_that_redis_cannot_take_now_is_sent_again_alone(cannot: Exception) -> None:
    store = Store([1, cannot, 3], [2])
    assert await answers_to(store, 3) == [1, 2, 3]
    assert store.sent == [[0, 1, 2], [1]]


async def test_while_redis_is_away_everything_waits() -> None:
    store = Store(RedisConnectionError("away"), [1, 2])
    assert await answers_to(store, 2) == [1, 2]
    assert store.sent == [[0, 1], [0, 1]]


async def test_what_a_script_refuses_for_good_is_told_to_who_asked() -> None:
    wrong = ResponseError("wrong number of arguments")
    assert await answers_to(Store([1, wrong]), 2) == [1, wrong]


async def test_counters_that_could_not_be_sent_are_sent_later_and_no_change_twice() -> None:
    store = Store([1])
    store.redis.away = 1
    assert await answers_to(store, 1) == [1]
    assert store.sent == [[0]]
    assert store.redis.counted == [(store.keys.totals, "HINCRBY", "ended", 1)]


async def test_a_change_that_cannot_be_sent_at_all_is_given_back_and_the_others_are_sent() -> None:
    odd = UnicodeEncodeError("utf-8", "\ud83c", 0, 1, "surrogates not allowed")
    store = Store(odd, odd, [["second"]])
    committer = Committer(store)  # type: ignore[arg-type]
    service = asyncio.get_running_loop().create_task(committer.run())
    async with asyncio.timeout(5):
        answers = await asyncio.gather(
            *(committer.send(ScriptCall(COMMIT, ["k"], [name])) for name in "ab"), return_exceptions=True
        )
    service.cancel()
    assert answers == [odd, ["second"]]
