"""The life of a slice of rollouts in a worker or a judge worker: claim, start, watch, drain, hand back.

`SliceWork` is the part that differs between the two: the claim script, running a claim, and committing its outcome.

Invariant: every claimed rollout ends in one fenced change of state, or its claim was found void and it was cancelled.
Its slot is freed exactly once. Nothing interrupts a rollout whose outcome is being committed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from gym.batch import BatchSpec
from gym.jsontypes import JsonObject
from gym.state.assignments import Told
from gym.state.ledger.breakers import BreakerKey
from gym.state.ledger.rollouts import ClaimedRollout
from gym.state.redis.driver import RedisError
from gym.state.redis.store import end_tasks, will_pass
from workers.process.held_rollouts import HeldRollouts
from workers.process.slots import Slots
from workers.process.specs import AGAIN_S

WATCH_S = 0.5
ANSWER_S = 2.0  # Redis's time to answer before a hand-back
CHECK_S = 3.0  # limit for one comparison of the claims with Redis
HAND_BACK_S = 6.0  # for rollouts to stop, and again for the changes to be made
_LOG = logging.getLogger(__name__)

F = TypeVar("F")  # the fence of a rollout that is not claimed yet: its attempt, or the token of its judging


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Generic[F]):
    """Rollouts of one batch that arrived in one job, each (member, fence). `probe`: the circuit breaker they probe."""

    batch_id: str
    wanted: Sequence[tuple[str, F]]
    environment: str = ""
    probe: BreakerKey | None = None
    claim_id: str = field(default_factory=lambda: secrets.token_hex(8))  # makes the claim of a slice repeatable


class SliceRun(Protocol):
    """A claimed rollout under way. `give_up_at` is of `time.monotonic()`."""

    alone: bool  # it runs beside nothing else and takes no slot
    loose: bool  # its outcome was recorded without it, since it did not end
    committing: bool
    stopping: bool
    give_up_at: float
    ended: asyncio.Event

    @property
    def claim(self) -> ClaimedRollout: ...

    def stop(self, task: asyncio.Task[None]) -> None:
        """Cancel its task; sets `stopping`."""

    def find_stalled(self, now: float) -> bool:
        """Return whether it has been idle for too long, and note that as the reason of its end."""


C = TypeVar("C", bound=ClaimedRollout)
R = TypeVar("R", bound=SliceRun)


class SliceWork(Protocol[C, R, F]):
    """The part of a slice's life that differs between rollouts and judging."""

    async def open(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """Connect; return the services to run until the end, by name."""

    async def settle(self) -> None:
        """Wait a moment for changes that are being sent."""

    async def close(self) -> None:
        """Disconnect; the services have ended."""

    def describe(self) -> JsonObject:
        """Return the worker's description for its lease; called from the lease's thread."""

    async def spec(self, batch_id: str) -> BatchSpec | None:
        """Return a batch's spec; None if the batch is gone or unreadable, or a drain began."""

    def is_parked(self, job: Slice[F], spec: BatchSpec) -> bool:
        """Return whether an open circuit breaker holds these rollouts back."""

    async def bounce(self, job: Slice[F]) -> None:
        """Give rollouts back that were not claimed."""

    async def claim(self, job: Slice[F], here: set[str]) -> Sequence[C]:
        """Claim the rollouts; repeatable. `here` are the batch's members that this worker holds already."""

    def make(self, claim: C, spec: BatchSpec, probe: BreakerKey | None) -> R:
        """Return a claim as a run that has not started."""

    async def prepare(self, runs: Sequence[R], probe: BreakerKey | None) -> None:
        """Prepare runs; called before they start."""

    async def run(self, run: R) -> None:
        """Run a claim and commit its outcome, unless it is loose by then."""

    async def cut_off(self, run: R) -> None:
        """Commit the end of a run that ignores its cancellation."""

    async def hand_back(self, runs: Sequence[R]) -> None:
        """Let other workers continue these attempts."""

    async def probe_lost(self, probe: BreakerKey) -> None:
        """Report that a probe arrived and was not run."""

    def relieve(self) -> int:
        """Give up threads that hang, and return their number. Called at each look of the watch."""

    async def compared(self, told: Told | None) -> None:
        """React to a comparison with Redis; `told` is None if none was due."""


class ClaimLedger(Protocol):
    """The authority on claims: `gym.state.ledger.rollouts.Rollouts`."""

    async def still_mine(self, claims: Sequence[ClaimedRollout], worker: str | None = None) -> list[bool]:
        """Return for each claim whether it is still valid."""


class Reconciler(Protocol):
    """Finder of rollouts that Redis assigns to this worker and that it does not hold: `Unheld`."""

    async def hand_back_when_due(self) -> Told | None:
        """Compare and hand back."""


class SliceRuntime(Generic[C, R, F]):
    """One per worker process, on its event loop."""

    def __init__(
        self,
        work: SliceWork[C, R, F],
        held: HeldRollouts[R],
        *,
        worker: str,
        slots: Slots,
        ledger: ClaimLedger,
        unheld: Reconciler,
        answers: Callable[[float], Coroutine[Any, Any, bool]],
        most_hung: float,
        on_exhausted: Callable[[], None],
    ) -> None:
        """`answers` says whether Redis replies within so many seconds.

        `on_exhausted` is called once when `most_hung` threads and runs hang, and must bring about a drain and an end.
        """
        self.worker = worker
        self.slots = slots
        self.exhausted = False
        self._work = work
        self._held = held
        self._ledger = ledger
        self._unheld = unheld
        self._answers = answers
        self._most_hung = most_hung
        self._on_exhausted = on_exhausted
        self._services: list[asyncio.Task[None]] = []
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def draining(self) -> bool:
        """Return whether the worker starts nothing more."""
        return self._held.draining

    def describe(self) -> JsonObject:
        """Return the worker's description for its lease; called from the lease's thread."""
        return {"ended": self._held.ended, "draining": self.draining, **self._work.describe()}

    async def open(self) -> None:
        """Connect and start the services."""
        services = {**await self._work.open(), "watch": self._watch()}
        loop = asyncio.get_running_loop()
        self._services = [loop.create_task(service, name=name) for name, service in services.items()]

    async def close(self) -> None:
        """Stop the services; `drain` comes first."""
        await self._work.settle()
        await end_tasks(self._services)
        await self._work.close()

    async def run(self, job: Slice[F]) -> int:
        """Claim the rollouts that this worker may still run, run them concurrently, and return their number."""
        started: list[R] = []
        try:
            with self._held.claiming(job.batch_id, [member for member, _ in job.wanted]) as here:
                started = await self._begin(await self.claim(job, here), job.probe)
        finally:
            self.slots.free(len(job.wanted) - len(started))
        if job.probe is not None and not started:
            await self._work.probe_lost(job.probe)
        for run in started:
            await run.ended.wait()
        return len(started)

    async def claim(self, job: Slice[F], here: set[str], *, even_parked: bool = False) -> list[R]:
        """Claim a slice; while draining, or if a circuit breaker is open, give it back instead.

        A probe is claimed in spite of the breaker. Other parts than `run` hold `claiming` around this.
        """
        spec = None if self.draining else await self._work.spec(job.batch_id)
        parked = spec is not None and not even_parked and job.probe is None and self._work.is_parked(job, spec)
        if self.draining or parked:
            await self._bounce(job)
        elif spec is not None:
            claims = await self._claim_until_answered(job, here)
            return [self._work.make(claim, spec, job.probe) for claim in claims]
        return []

    async def _claim_until_answered(self, job: Slice[F], here: set[str]) -> Sequence[C]:
        """Retry until Redis replies: if a reply were lost, the rollouts would be claimed here and never run."""
        while True:
            try:
                return await self._work.claim(job, here)
            except RedisError as error:
                _LOG.warning("slice of %s not claimed: %s", job.batch_id, error, extra={"action": "claim_failed"})
                if self.draining or not will_pass(error):
                    return []
            await asyncio.sleep(AGAIN_S)

    async def _bounce(self, job: Slice[F]) -> None:
        """Give rollouts back; the dispatcher finds the others when they are overdue."""
        try:
            await self._work.bounce(job)
        except (RedisError, TimeoutError) as error:
            _LOG.warning("slice of %s not given back: %s", job.batch_id, error, extra={"action": "bounce_failed"})

    async def _begin(self, runs: Sequence[R], probe: BreakerKey | None) -> list[R]:
        if runs and not self.draining:
            await self._work.prepare(runs, probe)
        if self.draining:
            await self._hand_back(runs)
            return []
        for run in runs:
            self.start(run)
        return list(runs)

    def start(self, run: R) -> None:
        """Run a claim; `run.ended` is set when its end is recorded."""
        self._keep(self._work.run(run), run)
        self._idle.clear()

    def _keep(self, work: Coroutine[Any, Any, None], run: R) -> None:
        name = f"{run.claim.batch_id}:{run.claim.member}"
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._held.running[task] = run
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        held = self._held
        held.loose.discard(task)
        run = held.running.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if run is None:
            return  # it was cut loose: another task has recorded its end
        held.ended += 1
        run.ended.set()
        if not run.alone:
            self.slots.free()
        if not held.running:
            self._idle.set()
        if error is not None:
            _LOG.error("rollout %s was not recorded: %s", task.get_name(), error, extra={"action": "commit_failed"})

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            await self.look(time.monotonic())

    async def look(self, now: float) -> None:
        """Stop stalled and overdue runs and those with void claims, and reconcile with Redis in both directions."""
        self._stop_overdue(now)
        hung = self._work.relieve() + len(self._held.loose)
        if hung >= self._most_hung and not self.exhausted:
            self.exhausted = True
            _LOG.error("%d environment calls hang; this worker drains and ends", hung, extra={"action": "exhausted"})
            self._on_exhausted()
        try:
            async with asyncio.timeout(CHECK_S):
                await self._stop_void_claims()
                if not self.draining:  # a drain hands everything back anyway
                    await self._work.compared(await self._unheld.hand_back_when_due())
        except (RedisError, TimeoutError) as error:
            _LOG.warning("claims not checked: %s", error, extra={"action": "watch_failed"})

    def _stop_overdue(self, now: float) -> None:
        for task, run in list(self._held.running.items()):
            if run.committing:
                continue
            if not run.stopping and run.find_stalled(now):
                run.stop(task)
            if now > run.give_up_at:
                self._cut_loose(task, run)

    def _cut_loose(self, task: asyncio.Task[None], run: R) -> None:
        """End a rollout whose code swallows its cancellation; its task is counted and no longer waited for."""
        name = task.get_name()
        _LOG.error("rollout %s does not end", name, extra={"action": "rollout_loose"})
        run.loose = run.committing = True
        del self._held.running[task]
        self._held.loose.add(task)
        self._keep(self._work.cut_off(run), run)

    async def _stop_void_claims(self) -> None:
        tasks = [(task, run) for task, run in self._held.running.items() if not run.committing]
        if not tasks:
            return
        valid = await self._ledger.still_mine([run.claim for _, run in tasks], self.worker)
        for (task, run), mine in zip(tasks, valid, strict=True):
            if not mine and not run.stopping and not run.committing:
                run.stop(task)

    async def reaches_redis(self) -> bool:
        """Return whether something can be handed back now."""
        return await self._answers(ANSWER_S)

    def begin_drain(self) -> None:
        """Start nothing more; safe to call from any thread."""
        self._held.draining = True
        self.slots.close()

    async def drain(self, timeout_s: float) -> None:
        """Start nothing more, wait for running rollouts, and hand back the rest without using up its attempts.

        If Redis is away, the lease expires and other workers run them; finished results wait until the process ends.
        """
        self.begin_drain()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            await self._stop_for_drain()

    async def _stop_for_drain(self) -> None:
        tasks = dict(self._held.running)
        if not tasks:
            return
        if not await self.reaches_redis():
            _LOG.warning("%d rollouts are left to their lease", len(tasks), extra={"action": "drain_away"})
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=ANSWER_S)
            return
        left = {task: run for task, run in tasks.items() if not run.committing}
        _LOG.info("handing %d rollouts back", len(left), extra={"action": "drain_release"})
        for task, run in left.items():
            run.stop(task)
        await asyncio.wait(tasks, timeout=HAND_BACK_S)
        await self._hand_back(list(left.values()))

    async def _hand_back(self, runs: Sequence[R]) -> None:
        """Hand back rollouts; those not handed back in time are freed when the lease ends."""
        if not runs:
            return
        try:
            async with asyncio.timeout(HAND_BACK_S):
                await self._work.hand_back(runs)
        except (RedisError, TimeoutError) as error:
            _LOG.warning("%d rollouts not handed back: %s", len(runs), error, extra={"action": "hand_back_failed"})
