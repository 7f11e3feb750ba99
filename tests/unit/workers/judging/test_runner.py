"""The judge worker's runner with a rollout whose judge is parked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from gym.batch import BatchSpec
from gym.errors import JudgeParked, JudgeUnreachable
from gym.judges.base import Ask, Question, Verdict
from gym.state.ledger.breakers import Breaker, BreakerKey, judge_key
from gym.state.ledger.judging import JudgeClaim
from workers.judging.runner import JudgeDecision, JudgedRollout, JudgeRunner, ParkedJudgement

pytestmark = pytest.mark.anyio
ASK = Ask((Question(judge="one", answer="x"), Question(judge="two", answer="x")))
PARKED = Breaker(key=judge_key("two"), failures=3, stage="judge", error="nobody listens", opened_at=0, next_probe_at=1)


class Desk:
    """A desk that records its calls."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.asked: list[str | None] = []

    async def verdicts(self, _: Ask, *, instead: str | None, **__: Any) -> list[Verdict]:
        self.asked.append(instead)
        return [Verdict(judge="one", version="v", score=1.0)]


class Blobs:
    """A store that holds the questions."""

    async def read(self, _: bytes) -> bytes:
        return ASK.pack()


class Registry:
    """A registry in which every environment gives the first verdict's score."""

    error = ""

    def get(self, _: str) -> Registry:
        return self

    @property
    def cls(self) -> Registry:
        return self

    @staticmethod
    def judged(_: Ask, verdicts: list[Verdict]) -> float:
        return verdicts[0].score


def runner(desk: Desk, parked: Callable[[str], Breaker | None]) -> JudgeRunner:
    made: Any = JudgeRunner
    found: JudgeRunner = made(registry=Registry(), desk=desk, judging=None, blobs=Blobs(), parked=parked)
    return found


def judged(*, used_s: float = 0.0, probe: BreakerKey | None = None, instead: str | None = None) -> JudgedRollout:
    claim = JudgeClaim(
        batch_id="b",
        member="0:0",
        attempt=1,
        token="7",
        environment="e",
        judge=instead or "one",
        over_at=0,
        began_at=0,
        now=int(used_s * 1000),
        lost=0,
        record=b"{}",
        tries=(),
        ask=b"",
        replaced=instead is not None,
    )
    return JudgedRollout(claim, BatchSpec(), time.monotonic(), probe)


def two_is_parked(judge: str) -> Breaker | None:
    return PARKED if judge == "two" else None


async def test_who_asks_a_parked_judge_is_held_and_nobody_is_asked() -> None:
    desk = Desk()
    assert await runner(desk, two_is_parked).run(judged()) == ParkedJudgement("two")
    assert desk.asked == []


async def test_who_asks_another_judge_instead_is_not_held() -> None:
    desk = Desk()
    assert isinstance(await runner(desk, two_is_parked).run(judged(instead="three")), JudgeDecision)
    assert desk.asked == ["three"]


async def test_a_probe_is_asked() -> None:
    desk = Desk()
    assert isinstance(await runner(desk, two_is_parked).run(judged(probe=judge_key("two"))), JudgeDecision)
    assert desk.asked == [None]


async def test_whose_time_is_over_while_the_judge_is_parked_is_told_so_and_what_the_judge_failed_of() -> None:
    desk = Desk()
    error = await runner(desk, two_is_parked).run(judged(used_s=601))
    assert isinstance(error, JudgeParked)
    assert error.message == (
        "judge 'two' was parked since 1970-01-01T00:00:00.000Z, when 3 rollouts in a row got no answer, until "
        "judge_timeout_s (600 s) was over; its last failure: nobody listens"
    )
    assert desk.asked == []


async def test_whose_time_is_over_before_a_judge_is_asked_blames_no_judge() -> None:
    desk = Desk()
    error = await runner(desk, lambda _: None).run(judged(used_s=601))
    assert isinstance(error, JudgeUnreachable)
    assert error.judge == ""
    assert desk.asked == []
