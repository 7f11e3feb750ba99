"""An agent outside the farm, for one rollout: admitted at the model proxy, watched, and read back at its end.

Invariant: the trajectory is the proxy's capture under the rollout's id for this attempt, not the agent's account. The
agent adds only its final answer, if that differs from the model's last message.
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
from gym.agents.outside.keys import AgentKeys, Grant, agent_secret
from gym.captures.call import MAX_TURNS
from gym.captures.conversation import rebuild
from gym.captures.recording import Captures
from gym.errors import AgentFailed, AgentUnreachable, ErrorKind, ModelRejected, ModelUnreachable, RolloutError
from gym.jsontypes import JsonObject
from gym.rollout import StopReason
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
    """Access of one rollout's agent to the model: `base_url` is without `/v1`, `model` a name for the policy."""

    base_url: str
    key: str
    model: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport:
    """Report on an agent's end.

    Its answer (None if that is the model's last message) and the reason, if it gives one.
    """

    text: str | None = None
    reason: StopReason | None = None


class AgentProxy:
    """The model proxy, as the agents of this process reach it."""

    def __init__(self, store: Store, proxy_url: str) -> None:
        self._store = store
        self._captures = Captures(store)
        self._proxy_url = proxy_url

    async def admit(self, episode: Episode) -> Access:
        """Issue a key for this attempt, whose capture starts empty. Raises AgentUnreachable without Redis."""
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
        """Return the answered calls and the last failed one; waits for Redis."""
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
    """Common base of the agents outside. One instance serves all rollouts of a process."""

    def __init__(self, name: str, proxy: AgentProxy) -> None:
        self.name = name
        self._proxy = proxy

    @abstractmethod
    async def drive(self, episode: Episode, access: Access) -> AgentReport:
        """Run the agent. Raises AgentFailed, or another RolloutError if a tool raised it.

        When this returns or raises, the agent's work has been stopped as far as possible.
        """

    async def run(self, episode: Episode) -> StopReason:
        """Drive the agent and settle its trajectory; see `gym.agents.base.Agent`."""
        access = await self._proxy.admit(episode)
        watch = asyncio.get_running_loop().create_task(self._proxy.watch(episode))
        records: list[JsonObject] = []
        failures: list[JsonObject] = []
        said, failure = AgentReport(), None
        try:
            try:
                said = without_key(await self.drive(episode, access), access.key)
            except AgentFailed as error:
                failure = type(error)(error.message.replace(access.key, HIDDEN))  # one that may be retried stays so
            records, failures = await self._proxy.collect(episode)
        except BaseException:
            with suppress(TimeoutError):
                async with asyncio.timeout(COLLECT_S):
                    records, failures = await self._proxy.collect(episode)
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
    """Return an agent's text without its key, which a program may print."""
    return said if said.text is None else replace(said, text=said.text.replace(key, HIDDEN))


def settle(episode: Episode, records: Sequence[JsonObject], text: str | None) -> None:
    """Make the captured calls the episode's trajectory, with the agent's final answer."""
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
    """Return the stop reason implied by the last model call, or None. It overrides the agent's report."""
    last = _last_failure(records, failures)
    if last is not None:
        return StopReason.MAX_TURNS if last["kind"] == MAX_TURNS else None
    return _REASONS.get(records[-1]["finish"]) if records else None


def cause_of(
    name: str, failure: AgentFailed, records: Sequence[JsonObject], failures: Sequence[JsonObject]
) -> RolloutError:
    """Return the cause of an agent's failure.

    The model server's error, if its last call failed before the agent did.
    """
    last = _last_failure(records, failures)
    if last is not None:
        message = f"{last['message']}; the agent {name} then failed: {failure.message}"
        if last["kind"] == ErrorKind.MODEL_UNREACHABLE:
            return ModelUnreachable(message)
        if last["kind"] == ErrorKind.MODEL_REJECTED:
            return ModelRejected(message, upstream_status=last["status"])
    return failure


def _last_failure(records: Sequence[JsonObject], failures: Sequence[JsonObject]) -> JsonObject | None:
    """Return the error of the last call, if that one failed."""
    if not failures or (records and records[-1]["started_s"] > failures[-1]["started_s"]):
        return None
    error: JsonObject = failures[-1]["error"]
    return error
