"""Model calls of agents outside the workers, recorded under the rollout that they name.

A call begins, and is then recorded or given up. The most recent failed calls are kept too. Invariants: a request that
has been answered is answered from its record. Of equal requests under way one is sampled and the others wait. A record
is appended once, by the process that began the call, and never changes. A call of a superseded attempt records nothing.
If the proxy dies during a call, the call is abandoned after `LEASE_S`. The captured size of a rollout grows with the
deltas of its turns, is bounded, and expires after `KEEP_S`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Literal

from gym.captures.call import CallAnswer, CallFailure, CallRequest, OpenCall, answered, failed, left_out, unpack
from gym.captures.continuation import RecentTurns, goes_on_from, prompt_digest, turn_of
from gym.captures.conversation import Head, body_digest, chain, rebuild
from gym.errors import Conflict, TooLarge
from gym.ids import new_id
from gym.jsontypes import JsonObject
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Argument, ScriptCall, Store, load_script
from gym.trajectory import Trajectory, TurnTokens

KEEP_S = 24 * 3600
ENDED_S = 600  # a call that comes late is still refused or answered from its record
MAX_BYTES = 64 * 2**20
LEASE_S = 10.0
RENEW_S = 3.0
GIVE_UP_S = 2.0
MOST_FAILURES = 100
_LOG = logging.getLogger(__name__)


_BEGIN, _RECORD, _MARK = (load_script(f"capture_{what}", of_batch=False) for what in ("begin", "record", "mark"))


@dataclass(frozen=True, slots=True)
class CaptureProgress:
    """Calls of an attempt: those that have begun, were answered, and failed (the last hundred)."""

    begun: int
    answered: int
    failed: int

    @property
    def waits(self) -> bool:
        return self.begun > self.answered + self.failed


class Captures:
    """The captured calls of all rollouts; run `keep_leases` in each process that begins calls."""

    def __init__(self, store: Store, *, max_bytes: int = MAX_BYTES, lease_s: float = LEASE_S) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._lease_ms = int(lease_s * 1000)
        self._owner = new_id("capture")
        self._begun = 0
        self._underway: dict[str, OpenCall] = {}
        self._recent = RecentTurns()

    async def begin(self, request: CallRequest) -> OpenCall | JsonObject | Literal["wait"]:
        """Return the call, to be recorded or given up; the record of an equal one; or "wait" while another samples it.

        Raises Conflict for a superseded attempt, TooLarge if the rollout has reached its size limit.
        """
        keys = self._store.keys.capture(request.rollout_id, request.attempt)
        messages = request.chat["messages"]
        digests = chain(messages)
        settings = request.settings
        asked = {name: value for name, value in request.body.items() if name not in ("stream", "stream_options")}
        digest, settings_digest = body_digest(request.dialect, request.policy, asked), body_digest(settings)
        self._begun += 1
        owner = f"{self._owner}-{self._begun}"
        ttl_ms = KEEP_S * 1000
        fixed: list[Argument] = [
            request.attempt,
            digest,
            owner,
            self._lease_ms,
            self._max_bytes,
            ttl_ms,
            settings_digest,
            left_out(digests),
        ]
        verdict, *rest = await self._store.run(_BEGIN, keys.scripted(), [*fixed, *digests[left_out(digests) :]])
        match verdict:
            case b"recorded":
                return unpack(rest[0])
            case b"underway":
                return "wait"
            case b"stale":
                raise Conflict(
                    "attempt_superseded",
                    f"rollout {request.rollout_id} is at attempt {rest[0]}, so attempt {request.attempt} is over",
                )
            case b"full":
                raise TooLarge(
                    "capture_full",
                    f"rollout {request.rollout_id} has captured {self._max_bytes} bytes, which is the most; "
                    "use another rollout id",
                )
        turn, known, before, found, settings_known, started_ms, failed_before = rest
        call = OpenCall(
            request=request,
            keys=keys,
            owner=owner,
            digest=digest,
            turn=turn,
            started_s=started_ms / 1000,
            digests=digests,
            known=known,
            before=before,
            head=Head.unpack(found.decode()),
            prompt=prompt_digest(request.chat, policy=request.policy, model=request.model),
            settings=None if settings_known else settings,
            settings_digest=settings_digest,
            failed_before=bool(failed_before),
        )
        self._underway[owner] = call
        return call

    async def record(self, call: OpenCall, answer: CallAnswer) -> JsonObject:
        """Append the call and return its record. Raises Conflict if this caller has lost it.

        If another process took the call over and answered it, that record is returned.
        """
        record, pairs = answered(call, answer)
        fixed: list[Argument] = [
            call.request.attempt,
            call.digest,
            call.owner,
            KEEP_S * 1000,
            record,
            call.settings_digest,
        ]
        verdict, *rest = await self._store.run(_RECORD, call.keys.scripted(), [*fixed, *pairs])
        self._underway.pop(call.owner, None)
        if verdict == b"lost":
            raise Conflict(
                "call_lost", f"the call of rollout {call.request.rollout_id} was taken over by another; repeat it"
            )
        if answer.tokens is not None and len(rest) > 1:
            self._recent.keep(call.keys.calls, rest[1], answer.tokens, after=call.head)
        return unpack(rest[0])

    async def earlier_turn(self, call: OpenCall, *, rebuild: bool) -> TurnTokens | None:
        """Return the tokens of the turn that the call continues, None if it continues none.

        Without `rebuild` only this process's cache is searched.
        """
        if call.head is None or not goes_on_from(call.head, call.request.chat["messages"][call.before :], call.prompt):
            return None
        turn = self._recent.find(call.keys.calls, call.head.place)
        if turn is None and rebuild:
            packed = await self._store.redis.lrange(call.keys.calls, 0, call.head.place)
            turn = turn_of([unpack(record) for record in packed], call.head.place)
        return turn

    async def give_up(self, call: OpenCall, failure: CallFailure | None = None) -> None:
        """Record a failed call, so that a waiting caller may sample. Does nothing if the call has been recorded.

        The failure is kept beside the calls. Without Redis it is lost, and the lease expires.
        """
        if self._underway.pop(call.owner, None) is None:
            return
        args: list[Argument] = [call.digest, call.owner, 0, call.turn]
        if failure is not None:
            args += [failed(call, failure), MOST_FAILURES, KEEP_S * 1000]
        try:
            async with asyncio.timeout(GIVE_UP_S):
                await self._store.run(_MARK, call.keys.scripted(), args)
        except (RedisError, TimeoutError) as error:
            _LOG.warning("call %s not given up: %s", call.call_id, error, extra={"action": "capture_not_given_up"})

    async def keep_leases(self) -> None:
        """Renew the leases of the calls under way until cancelled."""
        while True:
            await asyncio.sleep(RENEW_S)
            calls = [
                ScriptCall(_MARK, call.keys.scripted(), [call.digest, call.owner, self._lease_ms, call.turn])
                for call in self._underway.values()
            ]
            try:
                if calls:
                    await self._store.run_many(calls)
            except RedisError as error:
                _LOG.warning("leases of calls not renewed: %s", error, extra={"action": "capture_leases"})

    async def records(self, rollout_id: str) -> list[JsonObject]:
        """Return the answered calls of the latest attempt, in order; empty if nothing was captured."""
        return (await self.both(rollout_id))[0]

    async def both(self, rollout_id: str) -> tuple[list[JsonObject], list[JsonObject]]:
        """Return the answered calls of the latest attempt and its most recent failed ones, each in order."""
        attempt = await self._store.redis.get(self._store.keys.capture(rollout_id, 0).current)
        if attempt is None:
            return [], []
        return await self.of_attempt(rollout_id, int(attempt))

    async def of_attempt(self, rollout_id: str, attempt: int) -> tuple[list[JsonObject], list[JsonObject]]:
        """As `both`, of one attempt."""
        keys = self._store.keys.capture(rollout_id, attempt)
        calls = await self._store.redis.lrange(keys.calls, 0, -1)
        failures = await self._store.redis.lrange(keys.failures, 0, -1)
        return [unpack(packed) for packed in calls], [unpack(packed) for packed in failures]

    async def start_over(self, rollout_id: str, attempt: int) -> None:
        """Forget the calls of this attempt and refuse those of earlier ones, before its agent is started (again).

        Does nothing if a later attempt has begun.
        """
        keys = self._store.keys.capture(rollout_id, attempt)
        current = await self._store.redis.get(keys.current)
        if current is not None and int(current) > attempt:
            return
        pipeline = self._store.redis.pipeline(transaction=True)
        pipeline.set(keys.current, attempt, ex=KEEP_S)
        pipeline.delete(keys.calls, keys.index, keys.failures)
        await pipeline.execute()

    async def progress(self, rollout_id: str, attempt: int) -> CaptureProgress:
        """Return the progress of an attempt's calls."""
        keys = self._store.keys.capture(rollout_id, attempt)
        pipeline = self._store.redis.pipeline(transaction=False)
        pipeline.hget(keys.index, "turns")
        pipeline.llen(keys.calls)
        pipeline.llen(keys.failures)
        begun, answered, failed = await pipeline.execute()
        return CaptureProgress(int(begun or 0), answered, failed)

    async def end(self, rollout_id: str, attempt: int) -> None:
        """Let the captured calls expire soon; they are stored elsewhere now."""
        for key in self._store.keys.capture(rollout_id, attempt).scripted():
            await self._store.redis.expire(key, ENDED_S)

    async def trajectory(self, rollout_id: str) -> Trajectory | None:
        """Return the trajectory of the rollout's latest attempt, None if nothing was captured."""
        records = await self.records(rollout_id)
        return rebuild(records) if records else None
