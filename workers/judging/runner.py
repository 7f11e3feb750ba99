"""Judging of one rollout: from its verifier's questions to a reward, a failure, or another wait.

This is the boundary of judging: any error of a judge or of an environment's `judged` ends here as data. Only
cancellation passes through, since then the claim is gone and nothing may be recorded.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gym.batch import BatchSpec
from gym.environments.registry import Registry
from gym.episode import judged_reward
from gym.errors import (
    BadRow,
    Internal,
    JudgeFailed,
    JudgeParked,
    JudgeUnreachable,
    NotFound,
    ResultUnreadable,
    RolloutError,
    Stage,
    Unavailable,
    VerdictUnreadable,
    WorkerLost,
    text_of,
)
from gym.judges.base import Ask, Question, Verdict
from gym.judges.desk import Desk
from gym.judges.settings import PairwiseJudge
from gym.results.blobs import BlobStore
from gym.reward import Reward
from gym.state.ledger.breakers import Breaker, BreakerKey
from gym.state.ledger.judging import JudgeClaim, Judging
from gym.state.ledger.results import rfc3339
from gym.state.redis.unreadable import DECODE_ERRORS, complain, reason
from workers.process.retries import back_off_s

GROUP_LOOK_S = 10.0
MOST_DOUBLINGS = 10  # of the wait between tries, of which there may be thousands
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class JudgedRollout:
    """A rollout under way; nothing may interrupt it once it is `committing`."""

    claim: JudgeClaim
    spec: BatchSpec
    began: float  # time.monotonic()
    probe: BreakerKey | None = None  # the circuit breaker that it probes
    committing: bool = False
    stopping: bool = False  # its early end was requested
    alone: bool = False
    loose: bool = False
    give_up_at: float = math.inf  # judging ends when it is cancelled
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self, task: asyncio.Task[None]) -> None:
        """Request its end."""
        self.stopping = True
        task.cancel()

    def find_stalled(self, now: float) -> bool:  # noqa: ARG002
        """Return False: each question has a deadline."""
        return False

    @property
    def ends_at(self) -> float:
        """The judge's deadline, counted from the first question to a judge; of the same clock as `began`."""
        past_s = (self.claim.now - self.claim.began_at) / 1000
        return self.began + self.spec.limits.judge_timeout_s - past_s


@dataclass(frozen=True, slots=True)
class JudgeDecision:
    """The verdicts; or the judge's answer is `unreadable`, and the rollout is unscored."""

    verdicts: list[Verdict]
    reward: Reward | None
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class PendingJudgement:
    """A judgement to be tried again after a while, because of `error`, or because answers of the group are missing."""

    delay_s: float
    error: RolloutError | None = None


@dataclass(frozen=True, slots=True)
class ParkedJudgement:
    """A judgement that was not asked for, since this judge is parked."""

    judge: str


class JudgeRunner:
    """The runner of claims; one per judge worker. `parked` gives a judge's breaker if that is open."""

    def __init__(
        self,
        *,
        registry: Registry,
        desk: Desk,
        judging: Judging,
        blobs: BlobStore,
        parked: Callable[[str], Breaker | None],
    ) -> None:
        self._registry = registry
        self._desk = desk
        self._judging = judging
        self._blobs = blobs
        self._parked = parked

    async def run(self, judged: JudgedRollout) -> JudgeDecision | PendingJudgement | ParkedJudgement | RolloutError:
        """Judge one claim. Raises only CancelledError."""
        try:
            return await self._decide(judged)
        except JudgeParked as parked:
            return self._held(judged, parked)
        except (JudgeUnreachable, Unavailable) as error:
            failure = error if isinstance(error, RolloutError) else Internal(f"what was asked: {error.message}")
            tries = judged.claim.tries
            delay_s = back_off_s(min(len(tries), MOST_DOUBLINGS) + 1)
            if time.monotonic() + delay_s < judged.ends_at:
                return PendingJudgement(delay_s, failure)
            if not tries:
                return failure
            return JudgeUnreachable(
                f"{failure.message}; before that: {tries[-1]['message']}",
                judge=failure.judge if isinstance(failure, JudgeFailed) else "",
            )
        except RolloutError as error:
            return error
        except Exception as error:  # noqa: BLE001  # the boundary: one rollout's fault is one failed result
            _LOG.exception("judging failed", extra={"action": "judging_internal"})
            return Internal(text_of(error))

    async def _decide(self, judged: JudgedRollout) -> JudgeDecision | PendingJudgement:
        claim = judged.claim
        if claim.lost >= judged.spec.limits.max_attempts:
            lost = WorkerLost(f"{claim.lost} judge workers died while they had it, or lost it")
            lost.stage = Stage.JUDGE
            raise lost
        packed = await self._blobs.read(claim.ask)
        if packed is None:
            raise Internal("what its verifier asked is not stored any more")
        try:
            ask = Ask.unpack(packed)
        except DECODE_ERRORS as error:
            raise ResultUnreadable(f"what its verifier asked is damaged: {reason(error)}") from error
        instead = claim.judge if claim.replaced else None
        self._hold_back(judged, [instead] if instead else [question.judge for question in ask.questions])
        rivals: list[list[Question]] = []
        for number, question in enumerate(ask.questions):
            found = await self._rivals(claim, number, instead or question.judge)
            if isinstance(found, PendingJudgement):
                return found
            rivals.append(found)
        if time.monotonic() >= judged.ends_at:  # which is not the judge's fault
            limit_s = judged.spec.limits.judge_timeout_s
            raise JudgeUnreachable(f"judge_timeout_s ({limit_s:g} s) was over before its judge could be asked")
        try:
            verdicts = await self._desk.verdicts(
                ask,
                deadline=asyncio.get_running_loop().time() + judged.ends_at - time.monotonic(),
                request_id=f"{claim.batch_id}:{claim.member}-{claim.token}",
                instead=instead,
                rivals=rivals,
                fresh=claim.old_outcome is not None,
            )
        except VerdictUnreadable as error:
            asked = {instead} if instead else {question.judge for question in ask.questions}
            # an existing reward is not given up for none
            if claim.old_outcome or any(self._desk.settings[name].unreadable == "fail" for name in asked):
                raise
            return JudgeDecision([], None, error.message)
        return JudgeDecision(verdicts, self._reward(claim, ask, verdicts))

    def _hold_back(self, judged: JudgedRollout, judges: Iterable[str]) -> None:
        """Raise JudgeParked if a judge is parked and this is not a probe."""
        for judge in judges:
            if judged.probe is None and self._parked(judge) is not None:
                raise JudgeParked(f"judge {judge!r} keeps failing", judge=judge)

    def _held(self, judged: JudgedRollout, parked: JudgeParked) -> ParkedJudgement | RolloutError:
        """Let the rollout wait for the judge; past the judge's deadline it fails, with the judge's failure."""
        if time.monotonic() < judged.ends_at:
            return ParkedJudgement(parked.judge)
        breaker = self._parked(parked.judge)
        since = failure = ""
        if breaker is not None and breaker.opened_at is not None:
            since = f" since {rfc3339(breaker.opened_at)}, when {breaker.failures} rollouts in a row got no answer"
            failure = f"; its last failure: {breaker.error}"
        limit_s = judged.spec.limits.judge_timeout_s
        return JudgeParked(
            f"judge {parked.judge!r} was parked{since}, until judge_timeout_s ({limit_s:g} s) was over{failure}",
            judge=parked.judge,
        )

    def _reward(self, claim: JudgeClaim, ask: Ask, verdicts: list[Verdict]) -> Reward:
        try:
            environment = self._registry.get(claim.environment)
        except NotFound as error:
            raise BadRow(error.message) from error
        return judged_reward(environment, ask, verdicts)

    async def _rivals(self, claim: JudgeClaim, number: int, judge: str) -> list[Question] | PendingJudgement:
        """Return the group's other answers to a question, for a judge that compares, once no more can arrive."""
        settings = self._desk.settings.get(judge)
        if not isinstance(settings, PairwiseJudge):
            return []
        siblings = await self._judging.group(claim.batch_id, claim.row)
        waited_s = (claim.now - claim.over_at) / 1000
        if not all(sibling.over for sibling in siblings) and waited_s < settings.group_wait_s:
            return PendingJudgement(min(GROUP_LOOK_S, 0.5 + waited_s / 4, settings.group_wait_s - waited_s))
        rivals: list[Question] = []
        for sibling in siblings:
            if f"{claim.row}:{sibling.sample}" == claim.member:
                continue
            try:
                packed = await self._blobs.read(sibling.ask)
                if packed is not None:
                    rivals += Ask.unpack(packed).questions[number : number + 1]
            except (*DECODE_ERRORS, ResultUnreadable) as error:  # which concerns that rollout alone
                complain("question of", f"{claim.batch_id}:{claim.row}:{sibling.sample}", error)
        return rivals
