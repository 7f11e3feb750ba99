"""A judge worker's part of a slice's life: claims rollouts, asks judges, commits verdicts (`slice_runtime`).

Invariant: every claimed rollout ends in one fenced change of state: a verdict, a failure, or another wait in its
judge's queue; or its claim was found void and it was cancelled. A judge that is away delays its own rollouts only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from gym.batch import BatchSpec
from gym.errors import JudgeFailed, RolloutError, text_of
from gym.jsontypes import JsonObject
from gym.judges.desk import Desk
from gym.state.assignments import Told
from gym.state.ledger.breakers import BreakerKey
from gym.state.ledger.judging import JudgeClaim, Judging
from gym.state.ledger.rollouts import Commit, Rollouts
from gym.state.redis.store import Store
from gym.state.replicas import ReplicaCache
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
from workers.process.held_rollouts import HeldRollouts
from workers.process.slice_runtime import Slice
from workers.process.specs import Specs

BOUNCE_S = 10.0
_LOG = logging.getLogger(__name__)


class JudgeWork:
    """The work of one judge worker, on its event loop; a `SliceWork`."""

    def __init__(
        self,
        worker: str,
        held: HeldRollouts[JudgedRollout],
        *,
        per_judge: int,
        store: Store,
        rollouts: Rollouts,
        judging: Judging,
        specs: Specs,
        committer: Committer,
        desk: Desk,
        replicas: ReplicaCache,
        breakers: JudgeBreakerReports,
        runner: JudgeRunner,
    ) -> None:
        self._worker = worker
        self._held = held
        self._per_judge = per_judge
        self._store = store
        self._rollouts = rollouts
        self._judging = judging
        self._specs = specs
        self._committer = committer
        self._desk = desk
        self._replicas = replicas
        self._breakers = breakers
        self._runner = runner

    async def open(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """Connect; return the services to run until the end, by name."""
        await self._desk.__aenter__()
        await self._replicas.refresh()
        return {
            "committer": self._committer.run(),
            "replicas": self._replicas.keep_fresh(),
            "breakers": self._breakers.keep_fresh(),
            "replicas of parked judges": self._breakers.watch_replicas(),
        }

    async def settle(self) -> None:
        """Wait a moment for changes that are being sent."""
        await self._committer.settle()

    async def close(self) -> None:
        """Disconnect; the services have ended."""
        await self._desk.__aexit__(None, None, None)
        await self._store.close()

    def describe(self) -> JsonObject:
        """Return the worker's description for its lease; called from the lease's thread."""
        return {
            "role": "judge",
            "per_judge": 0 if self._held.draining else self._per_judge,
            "judging": len(self._held.running),
            "judges": self._desk.load(),
        }

    async def spec(self, batch_id: str) -> BatchSpec | None:
        """Return a batch's spec; None as of `Specs.get`."""
        return await self._specs.get(batch_id)

    def is_parked(self, job: Slice[str], spec: BatchSpec) -> bool:  # noqa: ARG002
        """Return False: `JudgeRunner` looks at the circuit breakers of all judges that a rollout asks."""
        return False

    async def bounce(self, job: Slice[str]) -> None:
        """Give rollouts back that were not claimed."""
        async with asyncio.timeout(BOUNCE_S):
            await self._wait_again([(job.batch_id, member, token) for member, token in job.wanted])

    async def claim(self, job: Slice[str], here: set[str]) -> Sequence[JudgeClaim]:  # noqa: ARG002
        """Claim the rollouts; the token of each judging keeps a job that was delivered twice from running twice."""
        return await self._judging.claim(job.batch_id, self._worker, job.claim_id, job.wanted)

    def make(self, claim: JudgeClaim, spec: BatchSpec, probe: BreakerKey | None) -> JudgedRollout:
        """Return a claim as a run that has not started."""
        return JudgedRollout(claim, spec, time.monotonic(), probe)

    async def prepare(self, runs: Sequence[JudgedRollout], probe: BreakerKey | None) -> None:
        """Read the circuit breakers where they matter now, and let a probe reach its judge.

        Other rollouts that wait here must be parked before a probe; a rollout whose time is over fails with the reason.
        """
        if probe is not None or any(judged.ends_at <= time.monotonic() for judged in runs):
            await self._breakers.refresh()
        if probe is not None:
            self._breakers.reopen(probe)

    async def run(self, run: JudgedRollout) -> None:
        """Judge a rollout and record the outcome."""
        found = await self._runner.run(run)
        run.committing = True
        took_s = time.monotonic() - run.began
        try:
            await self._record(run, found, took_s)
        except Exception as fault:  # noqa: BLE001  whatever it is, the rollout is to end
            await self._commit_failed(run, unrecordable_verdict(run, found, fault), took_s)

    async def cut_off(self, run: JudgedRollout) -> None:
        """Let another judge worker continue; only for runs with a `give_up_at`, which judging does not set."""
        await self.hand_back([run])

    async def hand_back(self, runs: Sequence[JudgedRollout]) -> None:
        """Let other judge workers continue these rollouts."""
        await self._wait_again([(run.claim.batch_id, run.claim.member, run.claim.token) for run in runs])

    async def _wait_again(self, items: Sequence[tuple[str, str, str]]) -> None:
        """Take (batch, member, token); the dispatcher finds unrecorded ones when they are overdue."""
        calls = [self._judging.again_call(batch_id, member, token, b"", 0) for batch_id, member, token in items]
        await asyncio.gather(*map(self._committer.send, calls))

    async def probe_lost(self, probe: BreakerKey) -> None:
        """Report that a probe arrived and was not run."""
        await self._breakers.probe_lost(probe)

    def relieve(self) -> int:
        """Return 0: judging has no threads that could hang."""
        return 0

    async def compared(self, told: Told | None) -> None:
        """Do nothing: a judge worker holds no sessions."""

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
                line = b"" if error is None else try_line(claim, error, self._worker)
                # it joins the queue of the judge that it waits for
                judge = error.judge if isinstance(error, JudgeFailed) else ""
                await self._committer.send(again(line, delay_s, judge=judge))
                if error is not None:
                    self._committer.add_total("judge_retries")
            case JudgeDecision():
                record = judged_record(claim, found, worker=self._worker, took_s=took_s)
                await self._commit(judged, record)
            case error:
                await self._commit(judged, unjudged_record(claim, error, worker=self._worker, took_s=took_s))

    async def _commit_failed(self, judged: JudgedRollout, error: RolloutError, took_s: float) -> None:
        """Commit that judging failed, and only that if the known fields of the rollout cannot be stored either."""
        claim = judged.claim
        _LOG.error("%s:%s: %s", claim.batch_id, claim.member, error.message, extra={"action": "unrecordable"})
        try:
            await self._commit(judged, unjudged_record(claim, error, worker=self._worker, took_s=took_s))
        except Exception as fault:  # noqa: BLE001  there is a plainer one
            _LOG.warning("%s:%s: %s", claim.batch_id, claim.member, text_of(fault), extra={"action": "unrecordable"})
            await self._commit(judged, bare_unjudged(judged, error, worker=self._worker))

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
