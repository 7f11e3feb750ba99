"""A judge that keeps failing is parked: its line waits without calls, all else goes on, nothing waits for ever."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gym.config import BreakerSettings
from gym.errors import JudgeUnreachable
from gym.judges.base import Verdict
from gym.state.breakers import Breakers, judge_key
from gym.state.judging import JudgeClaim
from gym.state.store import Store
from workers.committer import Committer
from workers.judge_breakers import JudgeBreakers
from workers.judge_runner import Decided, Undecided

SAID = ("[[say Verdict: DIFFERENT]]", "[[say Verdict: EQUAL]]")
CLAIM = JudgeClaim(
    batch_id="b",
    member="0:0",
    attempt=1,
    token="1",
    environment="e",
    judge="equality",
    over_at=0,
    began_at=0,
    now=0,
    lost=0,
    record=b"{}",
    tries=(),
    ask=b"",
)


def away(judge: str = "equality", *, answers: bool = False) -> Undecided:
    return Undecided(1.0, JudgeUnreachable("nobody answers", judge=judge, away=not answers))


def claim(row: int, token: str = "1") -> JudgeClaim:
    return dataclasses.replace(CLAIM, member=f"{row}:0", token=token)


@pytest.fixture
async def watch(store: Store) -> AsyncIterator[JudgeBreakers]:
    committer = Committer(store)
    sending = asyncio.create_task(committer.run())
    yield JudgeBreakers(
        Breakers(store, BreakerSettings(failures=3)), committer, replicas=lambda _: (), on_park=lambda *_: None
    )
    sending.cancel()


async def is_open(store: Store) -> bool:
    known = await Breakers(store, BreakerSettings()).all()
    return any(breaker.open and breaker.key == judge_key("equality") for breaker in known)


@pytest.mark.anyio
async def test_the_tries_of_one_rollout_count_once_and_those_of_several_park_the_judge(
    store: Store, watch: JudgeBreakers
) -> None:
    for token in "12345":
        await watch.tried(claim(0, token), away(), probe=False)
    await watch.tried(claim(1), away(), probe=False)
    await watch.tried(claim(2), away("another"), probe=False)
    for row in range(2, 8):
        await watch.tried(claim(row), away(answers=True), probe=False)  # full, or slow
    assert not await is_open(store)
    await watch.tried(claim(2), away(), probe=False)
    assert await is_open(store)


@pytest.mark.anyio
async def test_only_what_the_judge_itself_says_releases_it(store: Store, watch: JudgeBreakers) -> None:
    for row in range(3):
        await watch.tried(claim(row), away(), probe=False)
    verdict = Verdict(judge="equality", version="1", score=1.0)
    cached = Decided([dataclasses.replace(verdict, cached=True)], None)
    await watch.tried(claim(4), cached, probe=True)
    await watch.tried(claim(5), away("another"), probe=True)
    await watch.tried(claim(0, "9"), away(), probe=True)
    assert await is_open(store)
    await watch.tried(claim(6), Decided([verdict], None), probe=True)
    assert not await is_open(store)


def judge_of(judged_farm: Any, name: str = "equality") -> dict[str, Any]:
    found: dict[str, Any] = next(
        each for each in judged_farm.http.get("/v1/judges").json()["items"] if each["judge"] == name
    )
    return found


def test_a_parked_judge_is_asked_by_probes_alone_and_its_rollouts_are_judged_once_when_it_is_back(
    judged_farm: Any,
    embedding_server: Any,
) -> None:
    judged_farm.judge.leave()
    try:
        rows = [judged_farm.row(f"it is {number}", SAID[number % 2]) for number in range(24)]
        batch_id = judged_farm.submit(rows)
        parked = judged_farm.until(lambda: judge_of(judged_farm)["parked"])
        assert (parked["kind"], parked["name"]) == ("judge", "equality")
        judged_farm.until(lambda: judge_of(judged_farm)["waiting"] >= 23)
        asked = [judge_of(judged_farm)["asked"] for _ in range(30)]
        assert max(asked) <= 1
        shown = judged_farm.http.get(f"/v1/batches/{batch_id}").json()["parked"]
        assert shown["count"] >= 23
        assert [(reason["kind"], reason["name"]) for reason in shown["reasons"]] == [("judge", "equality")]
        assert judged_farm.http.get("/v1/queues").json()["parked"] >= 23
        assert 'farm_breaker_open{kind="judge",name="equality"} 1.0' in judged_farm.http.get("/metrics").text
        essay = {
            "responses_create_params": {"input": [{"role": "user", "content": "[[say Bread rises.]]"}]},
            "environment": "essay_similarity",
            "reference": "Bread rises.",
        }
        assert [each["outcome"] for each in judged_farm.results(judged_farm.submit([essay]))] == ["succeeded"]
        assert judged_farm.ledger(batch_id)["judging"] == 24
    finally:
        judged_farm.judge.come_back()
    results = judged_farm.results(batch_id)
    assert [(each["outcome"], each["reward"]) for each in results] == [("succeeded", n % 2) for n in range(24)]
    judged_farm.until(lambda: judge_of(judged_farm)["parked"] is None)


def test_the_clock_of_rollouts_goes_on_while_their_judge_is_parked(judged_farm: Any) -> None:
    judged_farm.judge.leave()
    try:
        rows = [judged_farm.row(f"it is {number}", SAID[1]) for number in range(12)]
        results = judged_farm.results(judged_farm.submit(rows, limits={"judge_timeout_s": 3}))
    finally:
        judged_farm.judge.come_back()
    assert {(each["outcome"], each["error"]["kind"], each["reward"]) for each in results} == {
        ("failed", "judge_error", None)
    }
    assert any("parked for its whole time" in each["error"]["message"] for each in results)
    again = judged_farm.submit([judged_farm.row("it is 1", SAID[1])])
    assert [each["outcome"] for each in judged_farm.results(again)] == ["succeeded"]
