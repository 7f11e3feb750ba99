"""Judges at the desk, against a scripted model and a judge server in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from pydantic import TypeAdapter

from gym.errors import JudgeParked, JudgeRefused, JudgeUnreachable, VerdictUnreadable
from gym.judges.base import Ask, Question, Verdict
from gym.judges.desk import Desk
from gym.judges.settings import JudgeSettings
from gym.model_client.routing.served_model import ServedModel
from gym.testing.model_server.server import ScriptedModelServer
from workers.judge_server.app import JudgeServer
from workers.judge_server.item import Item

pytestmark = pytest.mark.anyio
DEAD = "http://127.0.0.1:9"
SAYS = {"kind": "remote", "model": "m", "template": "{answer}\n{reference}", "max_retries": 0}


class Fixed:
    """Judges at fixed URLs."""

    def __init__(self, judges: dict[str, Any]) -> None:
        self._records = {
            name: ServedModel(
                kind="judge", name=name, spec=each.spec(each.base_urls), revision=1, paused=None, version=None
            )
            for name, each in judges.items()
        }

    def get(self, name: str) -> ServedModel | None:
        return self._records.get(name)


class Remembered:
    """A cache in memory."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, str], Verdict] = {}

    async def get(self, judge: str, version: str, digest: str) -> Verdict | None:
        return self.kept.get((judge, version, digest))

    async def put(self, judge: str, version: str, digest: str, verdict: Verdict) -> None:
        self.kept[judge, version, digest] = verdict


@asynccontextmanager
async def desk_of(store: Remembered | None = None, **judges: dict[str, Any]) -> AsyncIterator[Desk]:
    read = {name: TypeAdapter(JudgeSettings).validate_python(judge) for name, judge in judges.items()}
    async with Desk(read, Fixed(read), store=store) as desk:
        yield desk


async def ask(desk: Desk, judge: str, answer: str, reference: str = "", **options: Any) -> Verdict:
    question = Question(judge=judge, answer=answer, reference=reference, question=options.pop("question", ""))
    deadline = asyncio.get_running_loop().time() + options.pop("within_s", 10.0)
    [verdict] = await desk.verdicts(Ask((question,)), deadline=deadline, request_id="r", **options)
    return verdict


class Lengths:
    """A model that scores an answer by its length; it cannot score more than 10 characters."""

    model, version = "lengths", "v7"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        self.batches.append(len(items))
        return [None if len(item.answer) > 10 else float(len(item.answer)) for item in items]


@asynccontextmanager
async def judge_server(scorer: Lengths, **options: Any) -> AsyncIterator[tuple[str, JudgeServer]]:
    server = JudgeServer("reward_model", scorer, **{"batch_size": 32, "batch_wait_s": 0.01, "capacity": 1024} | options)
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", server
    finally:
        await runner.cleanup()


async def test_a_model_is_asked_as_often_as_there_are_votes() -> None:
    async with ScriptedModelServer() as model, desk_of(j=SAYS | {"base_urls": [model.url], "votes": 3}) as desk:
        verdict = await ask(desk, "j", "x", "[[say Verdict: EQUAL]]")
        assert (verdict.score, verdict.votes, verdict.text) == (1.0, (1.0, 1.0, 1.0), "Verdict: EQUAL")
        assert model.stats["requests"] == 3


async def test_another_configuration_is_another_version() -> None:
    async with ScriptedModelServer() as model:
        one, two = SAYS | {"base_urls": [model.url]}, SAYS | {"base_urls": [model.url], "votes": 3}
        async with desk_of(one=one, two=two, again=one | {"call_timeout_s": 7}) as desk:
            versions = [
                (await ask(desk, name, "x", "[[say Verdict: EQUAL]]")).version for name in ("one", "two", "again")
            ]
    assert versions[0] == versions[2] != versions[1]


async def test_what_is_no_verdict_is_unreadable_and_nothing_is_kept() -> None:
    store = Remembered()
    async with ScriptedModelServer() as model, desk_of(store, j=SAYS | {"base_urls": [model.url]}) as desk:
        with pytest.raises(VerdictUnreadable, match="held no verdict"):
            await ask(desk, "j", "x", "[[say maybe]]")
    assert not store.kept


async def test_a_judge_that_nobody_serves_is_unreachable() -> None:
    async with desk_of(j=SAYS | {"base_urls": [DEAD]}) as desk:
        with pytest.raises(JudgeUnreachable, match=r"judge 'j'.*127\.0\.0\.1:9"):
            await ask(desk, "j", "x")


async def test_a_refusal_is_final() -> None:
    async with ScriptedModelServer() as model, desk_of(j=SAYS | {"base_urls": [model.url]}) as desk:
        with pytest.raises(JudgeRefused, match="refused the call with 400"):
            await ask(desk, "j", "x", "[[status 400]]")


async def test_a_judge_that_hangs_is_given_up_at_the_deadline() -> None:
    async with ScriptedModelServer() as model, desk_of(j=SAYS | {"base_urls": [model.url]}) as desk:
        with pytest.raises(JudgeUnreachable):
            await ask(desk, "j", "x", "[[hang]]", within_s=0.2)


async def test_equal_questions_are_asked_once_and_a_fresh_one_anew() -> None:
    store = Remembered()
    async with ScriptedModelServer() as model, desk_of(store, j=SAYS | {"base_urls": [model.url]}) as desk:
        said = "[[say Verdict: EQUAL]]"
        together = await asyncio.gather(*(ask(desk, "j", "x", said) for _ in range(5)))
        assert model.stats["requests"] == 1
        assert sorted(verdict.cached for verdict in together) == [False, True, True, True, True]
        assert (await ask(desk, "j", "x", said)).cached
        assert not (await ask(desk, "j", "x", said, fresh=True)).cached
        assert model.stats["requests"] == 2


async def test_without_a_cache_every_question_is_asked() -> None:
    settings = {"j": SAYS | {"cache": False}}
    async with (
        ScriptedModelServer() as model,
        desk_of(Remembered(), j=settings["j"] | {"base_urls": [model.url]}) as desk,
    ):
        for _ in range(2):
            await ask(desk, "j", "x", "[[say Verdict: EQUAL]]")
        assert model.stats["requests"] == 2


async def test_questions_share_batches_and_one_that_cannot_be_scored_fails_alone() -> None:
    scorer = Lengths()
    async with judge_server(scorer) as (url, _):
        judge = {"kind": "reward_model", "base_urls": [url], "batch_size": 16, "batch_wait_s": 0.05, "cache": False}
        async with desk_of(j=judge) as desk:
            answers = ["a" * (1 + number % 12) for number in range(48)]
            found = await asyncio.gather(*(ask(desk, "j", answer) for answer in answers), return_exceptions=True)
    for answer, verdict in zip(answers, found, strict=True):
        if len(answer) > 10:
            assert isinstance(verdict, VerdictUnreadable)
        else:
            assert isinstance(verdict, Verdict)
            assert verdict.score == len(answer)
            assert verdict.version.endswith("@v7")
    assert sum(scorer.batches) == 48
    assert len(scorer.batches) <= 6


async def test_a_full_server_answers_429_and_is_asked_again() -> None:
    async with judge_server(Lengths(), capacity=2, batch_wait_s=0.2) as (url, server):
        judge = {"kind": "reward_model", "base_urls": [url], "batch_size": 2, "batch_wait_s": 0, "max_retries": 5}
        async with desk_of(j=judge) as desk:
            found = await asyncio.gather(*(ask(desk, "j", "a" * (1 + number), within_s=30) for number in range(4)))
            assert [verdict.score for verdict in found] == [1.0, 2.0, 3.0, 4.0]
            assert server.in_flight == 0


async def test_a_key_is_asked_for_and_given() -> None:
    async with judge_server(Lengths(), api_key="secret") as (url, _):
        judge = {"kind": "reward_model", "base_urls": [url]}
        async with desk_of(without=judge, with_key=judge | {"api_key": "secret"}) as desk:
            assert (await ask(desk, "with_key", "abc")).score == 3.0
            with pytest.raises(JudgeRefused, match="401"):
                await ask(desk, "without", "abc")


async def test_an_embedding_judge_needs_a_reference() -> None:
    async with desk_of(j={"kind": "embedding", "base_urls": [DEAD]}) as desk:
        with pytest.raises(JudgeRefused, match="the question has none"):
            await ask(desk, "j", "x")


async def test_a_pairwise_judge_that_prefers_a_place_gives_everybody_a_tie() -> None:
    template = "{first} {second} [[say Verdict: A]]"
    judge = {"kind": "pairwise", "model": "m", "template": template}
    async with ScriptedModelServer() as model, desk_of(Remembered(), j=judge | {"base_urls": [model.url]}) as desk:
        rivals = [[Question(judge="j", answer=text) for text in ("b", "c")]]
        assert (await ask(desk, "j", "a", rivals=rivals)).votes == (0.5, 0.5)
        assert model.stats["requests"] == 4
        # the other side of a pair is known already
        rivals = [[Question(judge="j", answer="a")]]
        assert (await ask(desk, "j", "b", rivals=rivals)).score == 0.5
        assert model.stats["requests"] == 4


async def test_a_pairwise_judge_finds_the_better_answer_in_both_places() -> None:
    judge = {"kind": "pairwise", "model": "m", "template": "{first}{second}[[say Verdict: {first}]]"}
    judge["verdict"] = {"form": "label", "labels": {"good": 1.0, "bad": 0.0}}  # type: ignore[assignment]
    async with ScriptedModelServer() as model, desk_of(Remembered(), j=judge | {"base_urls": [model.url]}) as desk:
        assert (await ask(desk, "j", "good", rivals=[[Question(judge="j", answer="bad")]])).score == 1.0
        assert (await ask(desk, "j", "bad", rivals=[[Question(judge="j", answer="good")]])).score == 0.0


async def test_an_answer_without_rivals_has_no_score() -> None:
    async with desk_of(j={"kind": "pairwise", "model": "m", "base_urls": [DEAD]}) as desk:
        with pytest.raises(VerdictUnreadable, match="no other one"):
            await ask(desk, "j", "x")


async def test_what_waits_for_a_place_is_turned_back_when_the_judge_is_parked_and_what_is_asked_goes_on() -> None:
    async with ScriptedModelServer() as model:
        model.behave(latency_s=0.3)
        async with desk_of(j=SAYS | {"base_urls": [model.url], "concurrency": 1}) as desk:
            asked = [asyncio.create_task(ask(desk, "j", f"{number}", "[[say Verdict: EQUAL]]")) for number in range(3)]
            async with asyncio.timeout(20):
                while not model.stats["in_flight"]:  # noqa: ASYNC110  the server has no event for it
                    await asyncio.sleep(0.01)
            desk.park("j")
            first, *others = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(first, Verdict)
            assert [(type(other), getattr(other, "judge", None)) for other in others] == [(JudgeParked, "j")] * 2
            assert (await ask(desk, "j", "a probe", "[[say Verdict: EQUAL]]")).score == 1.0
            assert model.stats["requests"] == 2


class Nobody:
    """No replica is ready."""

    looks = 0

    def get(self, name: str) -> ServedModel | None:
        self.looks += 1
        return None


async def test_what_waits_for_a_replica_is_turned_back_when_the_judge_is_parked() -> None:
    judges = {"j": TypeAdapter[Any](JudgeSettings).validate_python({"kind": "llm", "model": "m"})}
    nobody = Nobody()
    async with Desk(judges, nobody) as desk, asyncio.timeout(20):
        waits = asyncio.create_task(ask(desk, "j", "x", within_s=60.0))
        while not nobody.looks:  # noqa: ASYNC110  it has no event for it
            await asyncio.sleep(0)
        desk.park("j")
        with pytest.raises(JudgeParked):
            await waits


async def test_an_answer_is_noted_be_it_a_refusal_and_none_is_not() -> None:
    async with ScriptedModelServer() as model, desk_of(j=SAYS | {"base_urls": [model.url]}) as desk:
        assert desk.answered_at("j") is None
        model.behave(error_rate=1.0)
        with pytest.raises(JudgeUnreachable):
            await ask(desk, "j", "x")
        assert desk.answered_at("j") is None
        model.behave(error_rate=0.0)
        with pytest.raises(VerdictUnreadable):
            await ask(desk, "j", "x", "[[say maybe]]")
        assert desk.answered_at("j") is not None


async def test_a_judge_that_is_full_has_answered() -> None:
    async with ScriptedModelServer() as model, desk_of(j=SAYS | {"base_urls": [model.url]}) as desk:
        model.behave(rate_limit_rate=1.0)
        with pytest.raises(JudgeUnreachable):
            await ask(desk, "j", "x")
        assert desk.answered_at("j") is not None


@pytest.mark.parametrize("reason", ["length", "content_filter", "abort", "max_tokens", None])
async def test_an_answer_that_was_cut_is_no_verdict(reason: str | None) -> None:
    async def answer(_: web.Request) -> web.Response:
        message = {"role": "assistant", "content": "The format is Verdict: EQUAL"}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return web.json_response({"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        async with desk_of(j={**SAYS, "base_urls": [f"http://{host}:{port}"], "call_timeout_s": 5}) as desk:
            with pytest.raises((VerdictUnreadable, JudgeUnreachable)):
                await ask(desk, "j", "x")
    finally:
        await runner.cleanup()
