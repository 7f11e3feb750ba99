"""Recording of an ended attempt: a retry, a handover to judges, or a commit.

Invariant: the attempt ends in one fenced change of state, whichever error is raised on the way. A result that cannot be
stored for now is an infrastructure fault of the attempt. A value that can never be stored gives a failed result that
names it; that last commit consists of the claim and a text, and needs no blob store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from gym.episode import EpisodeResult
from gym.errors import Internal, RolloutError, Stage, StorageFailed, VerifierFailed, text_of
from gym.judges.base import Ask
from gym.results.blobs import BlobStore
from gym.results.storable import unstorable
from gym.rollout import StopReason
from gym.state.ledger.judging import Handover, Judging
from gym.state.ledger.rollouts import Commit, Rollouts
from workers.process.committer import Committer
from workers.process.retries import retry_in_s
from workers.process.storing import PatientStore
from workers.rollouts.breaker_reports import BreakerReports
from workers.rollouts.record import bare_record, error_line, packed_calls, packed_trajectory, record, sums
from workers.rollouts.runner import RunningRollout

HAND_BACK_BYTES = 64 * 2**20
_LOG = logging.getLogger(__name__)


class Recorder:
    """Recorder of a worker's attempts; `running` are the rollouts that it has now."""

    def __init__(
        self,
        *,
        worker: str,
        rollouts: Rollouts,
        judging: Judging,
        committer: Committer,
        breakers: BreakerReports,
        blobs: BlobStore,
        running: Callable[[], Collection[RunningRollout]],
        draining: Callable[[], bool],
    ) -> None:
        self._worker = worker
        self._rollouts = rollouts
        self._judging = judging
        self._committer = committer
        self._breakers = breakers
        self._blobs = PatientStore(blobs, draining=draining)
        self._running = running
        self._draining = draining

    async def record(self, running: RunningRollout, finished: EpisodeResult) -> None:
        """Record the end of an attempt. This cannot be interrupted."""
        running.committing = True
        try:
            if await self._give_up(running, finished):
                return
            if finished.ask is None:
                await self._commit(running, finished)
            else:
                await self._leave_to_judges(running, finished, finished.ask)
        except StorageFailed as fault:
            await self._not_stored(running, finished, fault)
        except Exception as fault:  # noqa: BLE001  the rollout must end in any case
            await self._commit_failed(running, finished, unrecordable(running, finished, fault))

    async def commit(self, running: RunningRollout, finished: EpisodeResult) -> None:
        """Commit the end of an attempt that may not run again."""
        try:
            await self._commit(running, finished)
        except StorageFailed as fault:
            await self._commit_failed(running, finished, finished.error or fault)
        except Exception as fault:  # noqa: BLE001  as above
            await self._commit_failed(running, finished, unrecordable(running, finished, fault))

    async def _give_up(self, running: RunningRollout, finished: EpisodeResult) -> bool:
        """Hand a failed attempt back, or retry it, and return whether either was done."""
        error = finished.error
        handed_back = await self._breakers.ended(running, error, self._running())
        blameless = self._breakers.blamed(running, error) is not None
        replay = kept_calls(running) if blameless else b""
        if handed_back:
            await self._committer.send(self._rollouts.retry_call(running.claim, b"", 0, replay=replay))
            self._committer.add_total("handed_back")
            return True
        return error is not None and await self._retry(running, error, replay=replay)

    async def _retry(self, running: RunningRollout, error: RolloutError, *, replay: bytes = b"") -> bool:
        """Queue a retry if its budget allows one, and return whether it does."""
        delay_s = retry_in_s(error, running.claim.tries, running.spec.limits)
        if delay_s is None:
            return False
        line = error_line(running, error, self._worker)
        await self._committer.send(self._rollouts.retry_call(running.claim, line, delay_s, replay=replay))
        self._committer.add_total("retries")
        return True

    async def _leave_to_judges(self, running: RunningRollout, finished: EpisodeResult, ask: Ask) -> None:
        """Hand it over to the judges; the slot is free once this is recorded."""
        packed = packed_trajectory(running, finished)
        attempt = running.claim.attempt
        handover = Handover(
            judge=ask.questions[0].judge,
            record=record(running, finished, self._worker),
            ask=await self._blobs.write(running.rollout, attempt, ask.pack(), part="ask"),
            trajectory=b"" if packed is None else await self._blobs.write(running.rollout, attempt, packed),
        )
        if not await self._committer.send(self._judging.ask_call(running.claim, handover)):
            self._committer.add_total("fenced")

    async def _commit(self, running: RunningRollout, finished: EpisodeResult) -> None:
        packed = packed_trajectory(running, finished)
        blob = b""
        if packed is not None:
            blob = await self._blobs.write(running.rollout, running.claim.attempt, packed)
        await self._send(running, finished, record(running, finished, self._worker), blob, sums(finished))

    async def _send(
        self, running: RunningRollout, finished: EpisodeResult, text: bytes, blob: bytes, added: dict[str, float]
    ) -> None:
        outcome = "failed" if finished.error is not None else "succeeded"
        spec = running.spec
        commit = Commit(
            outcome=outcome,
            record=text,
            trajectory=blob,
            usable=finished.reward is not None,
            early_stop=spec.early_stop.min_usable if spec.early_stop is not None else 0,
            sums=added,
        )
        answer = self._rollouts.committed(await self._committer.send(self._rollouts.commit_call(running.claim, commit)))
        if not answer.verdict:
            self._committer.add_total("fenced")

    async def _not_stored(self, running: RunningRollout, finished: EpisodeResult, fault: StorageFailed) -> None:
        """Run it again elsewhere or later; the last attempt is committed without the parts that could not be stored."""
        _LOG.warning("rollout %s: %s", running.rollout, fault.message, extra={"action": "not_stored"})
        if self._draining():
            room = HAND_BACK_BYTES // max(1, len(self._running()))
            replay = kept_calls(running, most_bytes=room)
            await self._committer.send(self._rollouts.retry_call(running.claim, b"", 0, replay=replay))
        elif not await self._retry(running, fault):
            await self._commit_failed(running, finished, finished.error or fault)

    async def _commit_failed(self, running: RunningRollout, finished: EpisodeResult, error: RolloutError) -> None:
        """Commit a failed result without its trajectory; if that fails too, with fewer of the known fields."""
        _LOG.error("rollout %s: %s", running.rollout, error.message, extra={"action": "unrecordable"})
        for trajectory in (finished.trajectory, None):
            failed = EpisodeResult(
                stop_reason=StopReason.ERROR if finished.error is None else finished.stop_reason,
                reward=None,
                error=error,
                trajectory=trajectory,
                timing=finished.timing,
            )
            try:
                await self._send(running, failed, record(running, failed, self._worker), b"", sums(failed))
            except Exception as fault:  # noqa: BLE001  try a plainer record
                _LOG.warning("rollout %s: %s", running.rollout, text_of(fault), extra={"action": "unrecordable"})
            else:
                return
        await self._send(running, failed, bare_record(running, error, self._worker), b"", {"run": 1})


def unrecordable(running: RunningRollout, finished: EpisodeResult, fault: Exception) -> RolloutError:
    """Return the error of a result that could not be recorded because of `fault`; it names the value, if found."""
    reward = finished.reward
    found: list[tuple[type[RolloutError], str | None]] = []
    try:
        if reward is not None:
            found.append((VerifierFailed, unstorable(reward.value, "reward")))
            found.append((VerifierFailed, unstorable(reward.components, "reward_components")))
        if finished.ask is not None:
            found.append((VerifierFailed, unstorable(finished.ask, "ask")))
        if finished.trajectory is not None:
            found.append((Internal, unstorable(finished.trajectory, "trajectory")))
    except Exception as odd:  # noqa: BLE001  values of user code may do anything when they are looked at
        found.append((Internal, f"a value cannot be looked at: {text_of(odd)}"))
    kind, named = next(((kind, named) for kind, named in found if named is not None), (Internal, None))
    where = f"{running.claim.environment}: {named}" if named else f"attempt {running.claim.attempt}"
    error = kind(f"the result could not be recorded: {where} ({text_of(fault)})")
    error.stage = Stage.VERIFY if kind is VerifierFailed else Stage.COMMIT
    return error


def kept_calls(running: RunningRollout, *, most_bytes: int = HAND_BACK_BYTES) -> bytes:
    """Return the model calls of an attempt that is handed back, empty if they cannot be packed."""
    try:
        return packed_calls(running, most_bytes=most_bytes)
    except Exception as fault:  # noqa: BLE001  the calls are made again
        _LOG.warning("calls of %s not kept: %s", running.rollout, text_of(fault), extra={"action": "not_kept"})
        return b""
