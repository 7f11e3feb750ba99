"""An agent outside the farm, for one rollout: let in at the model proxy, watched, and read back when it has ended.

Invariant: the trajectory is what the proxy captured under the rollout's id for this attempt, whatever the agent says it
did. What it adds of its own is its last word, where that is another than the model's, since that is what it answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from gym.agents.base import Episode
from gym.agents.outside.keys import AgentKeys, Grant
from gym.captures.call import MAX_TURNS
from gym.captures.conversation import rebuild
from gym.captures.recording import Captures
from gym.errors import AgentFailed, AgentUnreachable, ErrorKind, ModelRejected, ModelUnreachable, RolloutError
from gym.jsontypes import JsonObject
from gym.rollout import StopReason
from gym.state.agent_secret import agent_secret
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Store

WATCH_S = 1.0
COLLECT_S = 5.0  # when the rollout has been cut off; else it may take until the rollout's deadline
AGAIN_S = 0.5
KEY_MARGIN_S = 60.0
HIDDEN = "…"
_REASONS = {
    "max_tokens": StopReason.MAX_TOKENS,
    "content_filter": StopReason.CONTENT_FILTER,
    "context_overflow": StopReason.CONTEXT_OVERFLOW,
}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How one rollout's agent reaches the model: `base_url` is without `/v1`, `model` a name for the policy."""

    base_url: str
    key: str
    model: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport:
    """How an agent ended: what it answered, None where that is the model's last message; why, where it says so."""

    text: str | None = None
    reason: StopReason | None = None


class Door:
    """The model proxy as the agents of this process are let in at it."""

    def __init__(self, store: Store, proxy_url: str) -> None:
        self._store = store
        self._captures = Captures(store)
        self._proxy_url = proxy_url

    async def let_in(self, episode: Episode) -> Access:
        """A key for this attempt, which begins with nothing captured. Raises AgentUnreachable without Redis."""
        policy = episode.policy()
        remaining_s = episode.deadline - asyncio.get_running_loop().time()
        grant = Grant(
            rollout_id=episode.rollout_id,
            attempt=episode.attempt,
            policy=None if policy.inline else policy.name,
            max_calls=episode.limits.max_turns,
            until=time.time() + remaining_s + KEY_MARGIN_S,
        )
        try:
            keys = AgentKeys(await agent_secret(self._store))
            await self._captures.start_over(episode.rollout_id, episode.attempt)
        except RedisError as error:
            raise AgentUnreachable(f"the agent cannot be let in at the proxy: {error}") from error
        url = f"{self._proxy_url}/rollouts/{episode.rollout_id}"
        return Access(
            base_url=url,
            key=keys.issue(grant),
            model=policy.spec.model if policy.inline else policy.name,
            attempt=episode.attempt,
        )

    async def watch(self, episode: Episode) -> None:
        """Keep the episode from stalling while calls are made, until cancelled."""
        before = None
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                progress = await self._captures.progress(episode.rollout_id, episode.attempt)
            except RedisError as error:
                _LOG.warning("captured calls not seen: %s", error, extra={"action": "agent_watch_failed"})
                continue
            if progress != before or progress.waits:
                episode.touch()
            if progress.answered > (before.answered if before is not None else 0):
                episode.last_reply = time.monotonic()
            before = progress

    async def collect(self, episode: Episode) -> tuple[list[JsonObject], list[JsonObject]]:
        """The calls that were answered and the last that failed; waits for Redis."""
        while True:
            try:
                found = await self._captures.of_attempt(episode.rollout_id, episode.attempt)
                await self._captures.end(episode.rollout_id, episode.attempt)
            except RedisError as error:
                _LOG.warning("captured calls not read: %s", error, extra={"action": "agent_collect_failed"})
                await asyncio.sleep(AGAIN_S)
            else:
                return found


class OutsideAgent(ABC):
    """What agents of every kind have in common. One serves all rollouts of a process."""

    def __init__(self, name: str, door: Door) -> None:
        self.name = name
        self._door = door

    @abstractmethod
    async def drive(self, episode: Episode, access: Access) -> AgentReport:
        """Have the agent do its work. Raises AgentFailed, or another RolloutError where a tool raised it.

        When this returns or raises, nothing of the agent is at work any more as far as that can be brought about.
        """

    async def run(self, episode: Episode) -> StopReason:
        """See `gym.agents.base.Agent`."""
        access = await self._door.let_in(episode)
        watch = asyncio.get_running_loop().create_task(self._door.watch(episode))
        records: list[JsonObject] = []
        failures: list[JsonObject] = []
        said, failure = AgentReport(), None
        try:
            try:
                said = without_key(await self.drive(episode, access), access.key)
            except AgentFailed as error:
                failure = type(error)(error.message.replace(access.key, HIDDEN))  # one that may be retried stays so
            records, failures = await self._door.collect(episode)
        except BaseException:
            with suppress(TimeoutError):
                async with asyncio.timeout(COLLECT_S):
                    records, failures = await self._door.collect(episode)
            raise
        finally:
            watch.cancel()
            settle(episode, records, said.text)
        reason = reason_of(records, failures)
        if failure is not None and reason is None:
            raise cause_of(self.name, failure, records, failures)
        if not episode.trajectory.items:
            raise AgentFailed(f"the agent {self.name} made no model call through the proxy and said nothing")
        return reason or said.reason or StopReason.COMPLETED


def without_key(said: AgentReport, key: str) -> AgentReport:
    """Return what an agent said without the key that it was given, which a program may print."""
    return said if said.text is None else replace(said, text=said.text.replace(key, HIDDEN))


def settle(episode: Episode, records: Sequence[JsonObject], text: str | None) -> None:
    """Make what was captured the episode's trajectory, with the agent's last word."""
    own = episode.trajectory
    if records:
        found = episode.trajectory = rebuild(records)
        found.tool_calls = own.tool_calls or found.tool_calls
        episode.model_s = sum(call.facts.duration_s for call in found.calls)
    else:
        found = own
        found.tokens_complete = False
    if text is not None and text.strip() != found.final_text.strip():
        part = {"type": "output_text", "text": text, "annotations": []}
        found.items.append({"type": "message", "role": "assistant", "status": "completed", "content": [part]})


def reason_of(records: Sequence[JsonObject], failures: Sequence[JsonObject]) -> StopReason | None:
    """Why its model calls ended it, whatever the agent made of that; None where they did not."""
    last = _last_failure(records, failures)
    if last is not None:
        return StopReason.MAX_TURNS if last["kind"] == MAX_TURNS else None
    return _REASONS.get(records[-1]["finish"]) if records else None


def cause_of(
    name: str, failure: AgentFailed, records: Sequence[JsonObject], failures: Sequence[JsonObject]
) -> RolloutError:
    """Who is to blame for an agent that failed: the model server, where its last call did before it."""
    last = _last_failure(records, failures)
    if last is not None:
        message = f"{last['message']}; the agent {name} then failed: {failure.message}"
        if last["kind"] == ErrorKind.MODEL_UNREACHABLE:
            return ModelUnreachable(message)
        if last["kind"] == ErrorKind.MODEL_REJECTED:
            return ModelRejected(message, upstream_status=last["status"])
    return failure


def _last_failure(records: Sequence[JsonObject], failures: Sequence[JsonObject]) -> JsonObject | None:
    """The error of the last call, where that one failed."""
    if not failures or (records and records[-1]["started_s"] > failures[-1]["started_s"]):
        return None
    error: JsonObject = failures[-1]["error"]
    return error
