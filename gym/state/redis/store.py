"""The connection to Redis, and the scripts that run there.

Scripts are called by their digest; a server that does not know one (it was restarted, or is new) is sent it and called
again. The client may repeat commands after a broken connection, so every script is idempotent.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    ClusterError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gym.state.redis.keys import Keys

Argument = str | bytes | int | float

MOST_JOINED, MOST_JOINED_BYTES = 64, 2**21
"""Calls that go as one, a few milliseconds of Redis's time, and their arguments, but for those of a single call."""

RedisAway = (RedisConnectionError, RedisTimeoutError)
# answers of a server that is there but cannot serve; redis-py has no class for these
_CANNOT_SERVE = ("BUSY ", "MISCONF", "LOADING", "NOREPLICAS", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "UNKILLABLE")


def will_pass(error: Exception) -> bool:
    """Return whether the same command may succeed later: the server is away, or reports a temporary state."""
    return isinstance(error, (*RedisAway, ReadOnlyError, ClusterError, TryAgainError)) or (
        isinstance(error, RedisError) and str(error).startswith(_CANNOT_SERVE)
    )


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and its SHA-1, by which Redis knows it."""

    name: str
    text: bytes
    sha: str


def load_script(name: str, *libraries: str, of_batch: bool = True) -> Script:
    """Return a script of `gym/state/scripts` behind its libraries; those of a batch share `lib` and its keys."""
    folder = files("gym.state") / "scripts"
    parts = ("lib", *libraries, name) if of_batch else (name,)
    text = b"".join((folder / f"{part}.lua").read_bytes() for part in parts)
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest())


PUBLISH = load_script("publish")
PUBLISH_CHECK = load_script("publish_check")
PUBLISH_STEP = load_script("publish_step")
TAKE = load_script("take", "dispatch")
PROBE = load_script("probe", "dispatch")
CLAIM = load_script("claim")
BOUNCE = load_script("bounce")
COMMIT = load_script("commit")
RETRY = load_script("retry")
REFUND = load_script("refund")
ALONE = load_script("alone")
BREAKER = load_script("breaker", of_batch=False)
RECOVER = load_script("recover")
CANCEL = load_script("cancel")
STOP_STEP = load_script("stop_step")
SEAL = load_script("seal")
REQUEUE = load_script("requeue")
REQUEUE_UNREADABLE = load_script("requeue_unreadable")
END_UNREADABLE = load_script("end_unreadable")
AUDIT = load_script("audit")
ADOPT = load_script("adopt")
PUT_ASIDE = load_script("put_aside")
INSIST = load_script("insist", of_batch=False)
DROP = load_script("drop")
REMOVE = load_script("remove")
LEASE = load_script("lease", "feed")
ACK = load_script("ack", "feed")
GROUPS_ENDED = load_script("groups_ended", "feed")
FOLD = load_script("fold", of_batch=False)
LEAD = load_script("lead", of_batch=False)
ALARM = load_script("alarm", of_batch=False)
POLICY_REPORT = load_script("policy_report", of_batch=False)
ASK_JUDGE = load_script("ask_judge")
JUDGE_TAKE = load_script("judge_take")
JUDGE_CLAIM = load_script("judge_claim")
JUDGE_AGAIN = load_script("judge_again")
JUDGE_PARK = load_script("judge_park")
JUDGE_RELEASE = load_script("judge_release")
JUDGE_RECOVER = load_script("judge_recover")
REJUDGE = load_script("rejudge")


def insisting(key: str, command: str, *args: Argument) -> tuple[Any, ...]:
    """Return the arguments of a pipeline's `eval` for one write that a full Redis accepts too.

    The key never expires.
    """
    return (INSIST.text, 1, key, command, *args)


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """One run of a script, for sending several in one round trip.

    Calls that `join` may be merged if they share script and keys: the script takes the arguments of each in turn, and
    returns an answer for each.
    """

    script: Script
    keys: Sequence[str]
    args: Sequence[Argument]
    joins: bool = False


class Store:
    """A Redis client, the names of the keys, and the means to run scripts."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self.redis: Any = redis  # redis-py types the answers of its async client as if it were the sync one
        self.keys = keys

    @classmethod
    def connect(cls, url: str, *, prefix: str = "farm", timeout_s: float = 10.0) -> Store:
        """Return a store that connects on first use; a read or write is bounded by `timeout_s`."""
        redis = Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=min(timeout_s, 5.0),
            health_check_interval=25,
            # a server that does not answer in time is not retried: the caller is to know
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 2, supported_errors=(RedisConnectionError,)),
            max_connections=512,
        )
        return cls(redis, Keys(prefix))

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()

    async def answers(self, *, within_s: float) -> bool:
        """Return whether the server answers in time."""
        ping = asyncio.ensure_future(self.redis.ping())
        done, _ = await asyncio.wait({ping}, timeout=within_s)
        if not done:
            ping.cancel()
            ping.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return bool(done) and ping.exception() is None

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Return the script's answer."""
        try:
            return await self.redis.evalsha(script.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self.redis.eval(script.text, len(keys), *keys, *args)

    async def run_many(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Return the answers of several scripts, sent in one round trip; joinable calls are merged.

        Calls of different scripts on the same keys keep their order. An answer may be an exception of redis-py, which
        the caller must check for.
        """
        groups = _joined(calls)
        answers: list[Any] = [None] * len(calls)
        apart: list[int] = []
        for group, answer in zip(
            groups, await self._run_each([_as_one(calls, group) for group in groups]), strict=True
        ):
            if not isinstance(answer, Exception) and calls[group[0]].joins:
                each = answer
            elif len(group) > 1 and not will_pass(answer) and not isinstance(answer, OutOfMemoryError):
                apart += group  # one of them is at fault; the others run separately
                continue
            else:
                each = [answer] * len(group)
            for number, one in zip(group, each, strict=True):
                answers[number] = one
        for number, answer in zip(apart, await self._run_each([calls[number] for number in apart]), strict=True):
            answers[number] = answer if isinstance(answer, Exception) else answer[0]
        return answers

    async def _run_each(self, calls: Sequence[ScriptCall]) -> list[Any]:
        if not calls:
            return []
        if len(calls) == 1:
            try:
                return [await self.run(calls[0].script, calls[0].keys, calls[0].args)]
            except ResponseError as error:
                return [error]
        answers = await self._pipeline(calls)
        missed = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missed:
            for script in {calls[number].script.sha: calls[number].script for number in missed}.values():
                await self.redis.script_load(script.text)
            again = await self._pipeline([calls[number] for number in missed])
            for number, answer in zip(missed, again, strict=True):
                answers[number] = answer
        return answers

    async def _pipeline(self, calls: Sequence[ScriptCall]) -> list[Any]:
        pipeline = self.redis.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    async def insist(self, key: str, command: str, *args: Argument) -> Any:
        """Run one write that a full Redis accepts too (`insisting`)."""
        return await self.run(INSIST, [key], [command, *args])

    async def wake_dispatcher(self) -> None:
        """Wake the dispatcher, which also looks for work by itself."""
        pipeline = self.redis.pipeline(transaction=False)
        pipeline.eval(*insisting(self.keys.wake, "LPUSH", "1"))
        pipeline.ltrim(self.keys.wake, 0, 0)
        await pipeline.execute()

    async def now_ms(self) -> int:
        """Return the server's clock, on which all times of the farm are based."""
        seconds, micros = await self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000


def _joined(calls: Sequence[ScriptCall]) -> list[list[int]]:
    """Return the numbers of the calls, grouped by merged call."""
    groups: list[list[int]] = []
    latest: dict[str, tuple[Script, list[int], int]] = {}  # by the first key: script, group, bytes
    for number, call in enumerate(calls):
        target = call.keys[0] if call.keys else ""
        size = sum(len(arg) for arg in call.args if isinstance(arg, str | bytes))
        script, group, held = latest.get(target, (None, [], 0))
        fits = len(group) < MOST_JOINED and held + size <= MOST_JOINED_BYTES
        if not call.joins or script is not call.script or not fits:
            group, held = [], 0
            groups.append(group)
        group.append(number)
        latest[target] = (call.script, group, held + size)
    return groups


def _as_one(calls: Sequence[ScriptCall], group: Sequence[int]) -> ScriptCall:
    first = calls[group[0]]
    if len(group) == 1:
        return first
    return ScriptCall(first.script, first.keys, [arg for number in group for arg in calls[number].args])


async def end_tasks(tasks: Iterable[asyncio.Task[Any]], *, again_s: float = 0.5) -> None:
    """Cancel tasks that use Redis until they have ended: its client may swallow a cancellation."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=again_s)
