"""What a judge worker does with a slice of rollouts: stored asks to judges, verdicts to rewards, rewards committed.

Invariant: every claimed rollout ends in one fenced change of state: a verdict, a failure, or another wait in line; or
its claim has been found void and it was cancelled. A judge that is away costs its own rollouts time and nobody a slot.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from functools import partial

import orjson

from gym.batch import BatchSpec
from gym.config import Settings
from gym.environments.registry import load_registry
from gym.errors import JudgeFailed, RolloutError, text_of
from gym.host_rules import judge_rules
from gym.jsontypes import JsonObject
from gym.judges.desk import Desk
from gym.results.blobs import BlobStore
from gym.state.ledger.breakers import BreakerKey, Breakers
from gym.state.ledger.judging import JudgeClaim, Judging
from gym.state.ledger.rollouts import Commit, Rollouts
from gym.state.redis.driver import RedisError
from gym.state.redis.keys import Keys
from gym.state.redis.store import Store, end_tasks, will_pass
from gym.state.replicas import ReplicaCache
from gym.state.verdicts import StoredVerdicts
from workers.judging.breaker_reports import JudgeBreakerReports
from workers.judging.record import (
    bare_unjudged,
    judged_record,
    judged_sums,
    try_line,
    unjudged_record,
    unrecordable_verdict,
)
from workers.judging.runner import JudgeDecision, JudgedRollout, JudgeRunner, ParkedJudgement, PendingJudgement
from workers.process.committer import Committer
from workers.process.slots import Slots
from workers.process.specs import AGAIN_S, Specs
from workers.process.unheld import Unheld, compare_every_s

WATCH_S = 0.5
ANSWER_S = 2.0  # for Redis, before something is handed back
WATCHING_S = 3.0
_LOG = logging.getLogger(__name__)


class JudgingRuntime:
    """Lives on the judge worker's event loop."""

    def __init__(self, settings: Settings, worker: str, slots: Slots, redis_url: str) -> None:
        self.worker = worker
        self.slots = slots
        self.draining = False
        self.exhausted = False  # as of `Runtime`: judging has no threads that could hang
        self._per_judge = settings.judging.concurrency
        self._store = Store.connect(redis_url, prefix=settings.redis.prefix, timeout_s=settings.redis.timeout_s)
        self._rollouts = Rollouts(self._store)
        self._judging = Judging(self._store)
        self._committer = Committer(self._store)
        self._specs = Specs(self._store, draining=self._drains)
        self._replicas = ReplicaCache(self._store, settings.judges, judge_rules(settings))
        self._desk = Desk(
            settings.judges,
            self._replicas,
            published_version=self._replicas.version,
            store=StoredVerdicts(self._store, keep_s=settings.judging.keep_verdicts_s),
            hosts=judge_rules(settings),
        )
        self._breakers = JudgeBreakerReports(
            Breakers(self._store, settings.breakers), self._committer, self._desk, self._replicas
        )
        self._runner = JudgeRunner(
            registry=load_registry(settings.environments, sandbox=settings.sandbox),
            desk=self._desk,
            judging=self._judging,
            blobs=BlobStore(settings.data_dir / "blobs", inline_bytes=settings.results.inline_bytes),
            parked=self._breakers.parked,
        )
        self._running: dict[asyncio.Task[None], JudgedRollout] = {}
        self._beginning: set[tuple[str, str, str]] = set()
        self._unheld = Unheld(
            self._store,
            self._committer,
            worker,
            every_s=compare_every_s(settings.worker.lease_ttl_s),
            spec=self._specs.get,
            held=self._held,
        )
        self._services: list[asyncio.Task[None]] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended = 0

    @property
    def keys(self) -> Keys:
        """The names in Redis that this worker uses."""
        return self._store.keys

    async def open(self) -> None:
        """Connect and start the services."""
        await self._desk.__aenter__()
        await self._replicas.refresh()
        loop = asyncio.get_running_loop()
        self._services = [
            loop.create_task(self._committer.run(), name="committer"),
            loop.create_task(self._replicas.keep_fresh(), name="replicas"),
            loop.create_task(self._breakers.keep_fresh(), name="breakers"),
            loop.create_task(self._breakers.watch_replicas(), name="replicas of what is parked"),
            loop.create_task(self._watch(), name="watch"),
        ]

    async def close(self) -> None:
        """Stop the services; `drain` comes first."""
        await self._committer.settle()
        await end_tasks(self._services)
        await self._desk.__aexit__(None, None, None)
        await self._store.close()

    def describe(self) -> JsonObject:
        """What the worker says of itself with its lease; called from the lease's thread."""
        return {
            "role": "judge",
            "per_judge": 0 if self.draining else self._per_judge,
            "judging": len(self._running),
            "ended": self._ended,
            "draining": self.draining,
            "judges": self._desk.load(),
        }

    async def judge_slice(
        self, batch_id: str, wanted: Sequence[tuple[str, str]], probe: BreakerKey | None = None
    ) -> int:
        """Claim what is still ours to judge, judge it side by side, and return how many that were."""
        started: list[asyncio.Task[None]] = []
        beginning = {(batch_id, member, "") for member, _ in wanted}
        try:
            spec = None if self.draining else await self._specs.get(batch_id)
            if self.draining:
                await self._hand_back([(batch_id, member, token) for member, token in wanted])
            elif spec is not None:
                self._beginning |= beginning
                claims = await self._claim(batch_id, wanted)
                if self._drains():  # since then
                    await self._hand_back([(batch_id, claim.member, claim.token) for claim in claims])
                else:
                    started = await self._begin(claims, spec, probe)
        finally:
            self._beginning -= beginning
            self.slots.free(len(wanted) - len(started))
        if probe is not None and not started:
            await self._breakers.probe_lost(probe)
        if started:
            await asyncio.wait(started)
        return len(started)

    def _drains(self) -> bool:
        return self.draining

    async def _claim(self, batch_id: str, wanted: Sequence[tuple[str, str]]) -> list[JudgeClaim]:
        """Tried until Redis answers, since what it claimed without our hearing of it would be nobody's."""
        claim_id = secrets.token_hex(8)
        while True:
            try:
                return await self._judging.claim(batch_id, self.worker, claim_id, wanted)
            except RedisError as error:
                _LOG.warning("slice of %s not claimed: %s", batch_id, error, extra={"action": "claim_failed"})
                if self.draining or not will_pass(error):
                    return []
            await asyncio.sleep(AGAIN_S)

    async def _hand_back(self, items: Sequence[tuple[str, str, str]]) -> None:
        """(batch, member, token) that are not judged here; what is not recorded in time is found when it is overdue."""
        calls = [self._judging.again_call(batch_id, member, token, b"", 0) for batch_id, member, token in items]
        try:
            await asyncio.wait_for(asyncio.gather(*map(self._committer.send, calls)), timeout=10)
        except (RedisError, TimeoutError) as error:
            _LOG.warning("%d not handed back: %s", len(items), error, extra={"action": "bounce_failed"})

    async def _begin(
        self, claims: Sequence[JudgeClaim], spec: BatchSpec, probe: BreakerKey | None
    ) -> list[asyncio.Task[None]]:
        began = time.monotonic()
        judged = [JudgedRollout(claim, spec, began, probe) for claim in claims]
        # before a probe, what waits here is parked; and what comes too late is told why
        if probe is not None or any(each.ends_at <= began for each in judged):
            await self._breakers.refresh()
        if probe is not None:
            self._breakers.reopen(probe)
        return [self._start(each) for each in judged]

    def _start(self, judged: JudgedRollout) -> asyncio.Task[None]:
        claim = judged.claim
        name = f"{claim.batch_id}:{claim.member}"
        task = asyncio.get_running_loop().create_task(self._judge(judged), name=name)
        self._running[task] = judged
        self._idle.clear()
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        self._ended += 1
        self.slots.free()
        if not self._running:
            self._idle.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("judging of %s was not recorded: %s", task.get_name(), error, extra={"action": "commit_failed"})

    async def _judge(self, judged: JudgedRollout) -> None:
        found = await self._runner.run(judged)
        judged.committing = True
        took_s = time.monotonic() - judged.began
        try:
            await self._record(judged, found, took_s)
        except Exception as fault:  # noqa: BLE001  whatever it is, the rollout is to end
            await self._commit_failed(judged, unrecordable_verdict(judged, found, fault), took_s)

    async def _record(
        self,
        judged: JudgedRollout,
        found: JudgeDecision | PendingJudgement | ParkedJudgement | RolloutError,
        took_s: float,
    ) -> None:
        claim = judged.claim
        failure = (
            found.error if isinstance(found, PendingJudgement) else found if isinstance(found, RolloutError) else None
        )
        await self._breakers.ended(judged, failure)
        again = partial(self._judging.again_call, claim.batch_id, claim.member, claim.token)
        match found:
            case ParkedJudgement(judge):
                await self._committer.send(again(b"", 0, judge=judge, clock_goes_on=True))
            case PendingJudgement(delay_s, error):
                line = b"" if error is None else try_line(claim, error, self.worker)
                # it waits in the line of the judge that it waits for
                judge = error.judge if isinstance(error, JudgeFailed) else ""
                await self._committer.send(again(line, delay_s, judge=judge))
                if error is not None:
                    self._committer.add_total("judge_retries")
            case JudgeDecision():
                record = judged_record(claim, found, worker=self.worker, took_s=took_s)
                await self._commit(judged, record)
            case error:
                await self._commit(judged, unjudged_record(claim, error, worker=self.worker, took_s=took_s))

    async def _commit_failed(self, judged: JudgedRollout, error: RolloutError, took_s: float) -> None:
        """Commit that judging failed, and only that where what is known of the rollout cannot be stored either."""
        claim = judged.claim
        _LOG.error("%s:%s: %s", claim.batch_id, claim.member, error.message, extra={"action": "unrecordable"})
        try:
            await self._commit(judged, unjudged_record(claim, error, worker=self.worker, took_s=took_s))
        except Exception as fault:  # noqa: BLE001  there is a plainer one
            _LOG.warning("%s:%s: %s", claim.batch_id, claim.member, text_of(fault), extra={"action": "unrecordable"})
            await self._commit(judged, bare_unjudged(judged, error, worker=self.worker))

    async def _commit(self, judged: JudgedRollout, record: JsonObject) -> None:
        claim, spec = judged.claim, judged.spec
        first = claim.old_outcome is None
        commit = Commit(
            outcome=record["outcome"],
            record=orjson.dumps(record),
            trajectory=b"",
            usable=record["reward"] is not None,
            # a result that is judged again was counted when it was judged first
            early_stop=spec.early_stop.min_usable if spec.early_stop is not None and first else 0,
            sums=judged_sums(claim, record),
        )
        answer = self._rollouts.committed(await self._committer.send(self._rollouts.commit_call(claim, commit)))
        if not answer.verdict:
            self._committer.add_total("fenced")
        elif not first:
            self._committer.add_total("rejudged")

    async def _watch(self) -> None:
        """Stop what was cancelled or given to others, and hand back what is not here."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                async with asyncio.timeout(WATCHING_S):
                    await self._stop_void_claims()
                    if not self.draining:  # a drain hands back what is left
                        await self._unheld.hand_back_when_due()
            except (RedisError, TimeoutError) as error:
                _LOG.warning("claims not checked: %s", error, extra={"action": "watch_failed"})

    async def _stop_void_claims(self) -> None:
        tasks = [(task, judged) for task, judged in self._running.items() if not judged.committing]
        if not tasks:
            return
        standing = await self._rollouts.still_mine([judged.claim for _, judged in tasks], self.worker)
        for (task, judged), mine in zip(tasks, standing, strict=True):
            if not mine and not judged.committing:
                task.cancel()

    def _held(self) -> set[tuple[str, str, str]]:
        """The (batch, member, token) that this worker has or is about to have, the token empty of what it claims."""
        claims = [judged.claim for judged in self._running.values()]
        return {(claim.batch_id, claim.member, claim.token) for claim in claims} | self._beginning

    async def reaches_redis(self) -> bool:
        """Return whether something can be handed back now."""
        return await self._store.answers(within_s=ANSWER_S)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, wait for what runs, and hand back what is left."""
        self.draining = True
        self.slots.close()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            if not await self.reaches_redis():
                _LOG.warning("%d rollouts are left to their lease", len(self._running), extra={"action": "drain_away"})
                for task in self._running:
                    task.cancel()
                return
            left = [(task, judged) for task, judged in self._running.items() if not judged.committing]
            _LOG.info("handing %d rollouts back", len(left), extra={"action": "drain_release"})
            for task, _ in left:
                task.cancel()
            if left:
                await asyncio.wait([task for task, _ in left], timeout=10)
            await self._hand_back(
                [(judged.claim.batch_id, judged.claim.member, judged.claim.token) for _, judged in left]
            )
