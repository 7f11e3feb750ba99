"""The adapter for NeMo Gym's resources servers, against a stand-in that answers as they do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest
from aiohttp import web
from pydantic import ValidationError

from gym.environments.adapters.nemo_gym import NemoGym, NemoGymOptions
from gym.environments.adapters.nemo_gym_servers import CallBounds, Servers
from gym.errors import BadRow, EnvironmentFailed, EnvironmentUnavailable, RolloutError, Stage, VerifierFailed
from gym.jsontypes import JsonObject
from gym.testing.answers import Answers, called
from gym.testing.episodes import PlayedEpisode, play
from gym.testing.stand_ins.resources_server import FakeResourcesServer
from gym.trajectory import Trajectory

TOOLS = ("increment_counter", "get_counter_value", "fail", "away", "hang")


class Server:
    """A stand-in that can be stopped and started again on the same port, with nothing of before."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> Server:
        self.fake = FakeResourcesServer(**self._options)
        self._runner = web.AppRunner(self.fake.app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def servers(count: int = 1, **options: Any) -> AsyncIterator[list[Server]]:
    started = [await Server(**options).start() for _ in range(count)]
    try:
        yield started
    finally:
        for server in started:
            await server.stop()


def counter(*running: Server, **options: Any) -> type[NemoGym]:
    return NemoGym.configured("counter", {"urls": [server.url for server in running], **options})


def row(**fields: Any) -> JsonObject:
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in TOOLS]
    params = {"input": [{"role": "user", "content": "count"}], "tools": tools}
    return {"responses_create_params": params, "initial_count": 3, "expected_count": 5, **fields}


async def seeded(environment: type[NemoGym], **fields: Any) -> NemoGym:
    made = environment(environment.row_model.model_validate(row(**fields)), seed=0)
    await made.setup()
    return made


async def scored(made: NemoGym) -> float:
    return (await made.verify(Trajectory(params={}))).value


def connections() -> int:
    return len(psutil.Process().net_connections("tcp"))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  what is looked at tells nobody of its changes
            await asyncio.sleep(0.02)


async def count_to(total: int, environment: type[NemoGym], **fields: Any) -> PlayedEpisode:
    model = Answers([called("increment_counter", {"count": total - 3}), called("get_counter_value", {}), "done"])
    return await play(row(**fields), model=model, environment=environment)


@pytest.mark.anyio
async def test_tools_keep_the_session_and_the_servers_verifier_scores_it() -> None:
    async with servers() as running:
        right, wrong = await asyncio.gather(count_to(5, counter(*running)), count_to(6, counter(*running)))

    outputs = [call.output for call in right.trajectory.tool_calls]
    assert outputs == ['{"success": true}', '{"count": 5}']
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    assert [tool["name"] for tool in right.tools] == list(TOOLS)


@pytest.mark.anyio
async def test_the_server_gets_the_row_as_it_is_and_the_whole_episode_as_a_response() -> None:
    given = {"agent_ref": {"name": "counter"}, "deep": {"list": [1, None, 2.5]}}
    async with servers() as running:
        await count_to(5, counter(*running), **given)
        at_seed, at_verify = running[0].fake.rows

    assert at_seed == row(**given)
    assert {name: at_verify[name] for name in at_seed} == at_seed
    kinds = [item["type"] for item in at_verify["response"]["output"]]
    assert kinds == ["function_call", "function_call_output"] * 2 + ["message"]


@pytest.mark.anyio
async def test_the_numbers_that_the_verifier_adds_are_components() -> None:
    verdict = {"reward": 0.5, "accuracy": True, "note": "near", "reward_components": {"form": 0.25, "bad": None}}
    async with servers() as running:
        played = await count_to(5, counter(*running), fake={"verdict": verdict})
    assert played.reward == 0.5
    assert played.components == {"accuracy": 1.0, "form": 0.25}


@pytest.mark.anyio
async def test_what_a_tool_answers_goes_to_the_model_as_it_came_errors_too() -> None:
    calls = [called("fail", {}), called("increment_counter", {"count": "many"}), called("verify", {}), "done"]
    async with servers() as running:
        played = await play(row(), model=Answers(calls), environment=counter(*running))
        assert running[0].fake.seen["/verify"] == 1

    broken, refused, unknown = played.trajectory.tool_calls
    assert broken.output == "\"RuntimeError('the tool broke')\""
    assert "Field required" in refused.output
    assert "there is no tool `verify`" in unknown.output
    assert all(call.failed for call in (broken, refused, unknown))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "raised", "says"),
    [
        ({"initial_count": "none"}, BadRow, "Field required"),
        ({"fake": {"seed_status": 500}}, EnvironmentFailed, "HTTP 500"),
        ({"fake": {"seed_status": 503}}, EnvironmentUnavailable, "HTTP 503"),
        ({"responses_create_params": {"input": "x", "tools": [{"type": "function", "name": "../x"}]}}, BadRow, "route"),
        ({"responses_create_params": {"input": "x", "tools": [{"type": "function", "name": "verify"}]}}, BadRow, "ro"),
    ],
)
async def test_a_session_that_cannot_begin_says_why(fields: JsonObject, raised: type[Any], says: str) -> None:
    async with servers() as running:
        before = connections()
        with pytest.raises(raised, match=says) as error:
            await seeded(counter(*running), **fields)
        assert error.type is raised
        assert connections() == before


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fake", "raised", "says"),
    [
        ({"verdict": {"reward": None}}, VerifierFailed, "not a finite number"),
        ({"verify_status": 500}, VerifierFailed, "HTTP 500"),
        ({"verify_status": 503}, EnvironmentUnavailable, "HTTP 503"),
        ({"verdict": {"mask_sample": True, "failure_reason": "no screen"}}, VerifierFailed, "no screen"),
        (
            {"verdict": {"reward": 0.0, "mask_sample": True, "failure_kind": "judge_failed"}},
            EnvironmentUnavailable,
            "judge_failed",
        ),
    ],
)
async def test_an_episode_that_was_not_measured_has_no_reward(fake: JsonObject, raised: type[Any], says: str) -> None:
    async with servers() as running:
        with pytest.raises(raised, match=says) as error:
            await count_to(5, counter(*running), fake=fake)
        assert error.value.stage is Stage.VERIFY


@pytest.mark.anyio
async def test_an_unprocessable_verify_call_is_the_verifiers_failure() -> None:
    async with servers() as running:
        with pytest.raises(VerifierFailed, match="Field required"):
            await count_to(5, counter(*running), expected_count=None)


@pytest.mark.anyio
async def test_sessions_spread_over_the_replicas_and_each_stays_where_it_began() -> None:
    async with servers(3) as running:
        environment = counter(*running)
        made = [await seeded(environment) for _ in range(6)]
        assert [len(server.fake.counters) for server in running] == [2, 2, 2]

        for number, each in enumerate(made):
            await each.call("increment_counter", {"count": number})
        values = [(await each.call("get_counter_value", {})).output for each in made]
        assert values == [f'{{"count": {3 + number}}}' for number in range(6)]
        await asyncio.gather(*(each.close() for each in made))
        assert set(environment.servers.load().values()) == {0}


@pytest.mark.anyio
async def test_a_restarted_server_fails_the_sessions_that_it_had_and_no_others() -> None:
    async with servers(2) as running:
        environment = counter(*running)
        made = [await seeded(environment) for _ in range(4)]
        await running[0].restart()
        late = await seeded(environment)

        outcomes = await asyncio.gather(*(scored(each) for each in made), return_exceptions=True)
        lost = [outcome for outcome in outcomes if isinstance(outcome, RolloutError)]
        assert [type(each) for each in lost] == [EnvironmentUnavailable] * 2
        assert all(each.retryable and each.kind == "environment_error" for each in lost)
        assert [outcome for outcome in outcomes if not isinstance(outcome, BaseException)] == [0.0, 0.0]
        await late.call("increment_counter", {"count": 2})
        assert await scored(late) == 1.0
        for each in (*made, late):
            await each.close()


@pytest.mark.anyio
async def test_a_session_whose_server_ends_in_the_middle_of_a_call_fails_at_once() -> None:
    async with servers() as running:
        made = await seeded(counter(*running))
        call = asyncio.create_task(made.call("hang", {}))
        await until(lambda: running[0].fake.seen["/hang"] == 1)
        await running[0].stop()
        with pytest.raises(EnvironmentUnavailable):
            await call
        await made.close()


@pytest.mark.anyio
async def test_where_one_replica_is_down_the_others_take_the_sessions() -> None:
    async with servers(2) as running:
        environment = counter(*running)
        await running[0].stop()
        made = [await seeded(environment) for _ in range(3)]
        assert len(running[1].fake.counters) == 3
        for each in made:
            await each.close()

        await running[1].stop()
        with pytest.raises(EnvironmentUnavailable, match="cannot be reached"):
            await seeded(environment)


@pytest.mark.anyio
async def test_a_tool_that_hangs_or_is_away_ends_the_rollout_in_bounded_time() -> None:
    async with servers() as running:
        environment = counter(*running, call_timeout_s=0.2)
        made = await seeded(environment)
        with pytest.raises(EnvironmentUnavailable, match=r"did not answer within 0.2 s"):
            await made.call("hang", {})
        with pytest.raises(EnvironmentUnavailable, match="HTTP 503"):
            await made.call("away", {})
        await made.close()


@pytest.mark.anyio
async def test_an_answer_larger_than_allowed_is_not_read_to_its_end() -> None:
    async with servers() as running:
        made = await seeded(counter(*running, max_answer_bytes=1024), fake={"filler": "x" * 2000})
        with pytest.raises(EnvironmentFailed, match="more than 1024 bytes"):
            await made.verify(Trajectory(params={}))
        await made.close()


@pytest.mark.anyio
async def test_rollouts_share_connections_and_leave_none_behind() -> None:
    async with servers(2) as running:
        before = connections()
        environment = counter(*running)
        holder = await seeded(environment)
        for _ in range(10):
            await count_to(5, environment)
        assert connections() - before <= 8  # both ends of a watch and a call, at each of two servers
        await holder.close()
        await holder.close()

        await until(lambda: connections() == before)
        assert [len(server.fake.counters) for server in running] == [0, 0]


@pytest.mark.anyio
async def test_a_server_of_before_07_is_told_once_that_a_session_ends() -> None:
    async with servers(closes=False) as running:
        environment = counter(*running)
        for _ in range(3):
            await count_to(5, environment)
        assert running[0].fake.seen["/close_session"] == 1


@pytest.mark.anyio
async def test_a_cancelled_rollout_leaves_its_session() -> None:
    async with servers() as running:
        environment = counter(*running)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await play(row(), model=Answers([called("hang", {})]), environment=environment)
        assert set(environment.servers.load().values()) == {0}


@pytest.mark.parametrize(
    "options",
    [{"urls": []}, {"urls": ["ftp://host"]}, {"urls": ["http://user:word@host"]}, {"urls": ["http://h", "http://h"]}],
)
def test_options_that_cannot_be_meant_are_refused(options: JsonObject) -> None:
    with pytest.raises(ValueError, match="urls"):
        NemoGym.configured("counter", options)


def secret_url(server: Server) -> str:
    return f"http://ann:pass-word@127.0.0.1:{server.port}?key=secret-key"


@pytest.mark.anyio
@pytest.mark.parametrize("watch", [True, False])
async def test_errors_show_a_server_without_its_credentials(watch: bool) -> None:
    said: list[RolloutError] = []
    async with servers() as [server]:
        replicas = Servers(
            (secret_url(server),), CallBounds(connect_s=10, most_bytes=2000), watch=watch, tell_close=False
        )
        session = await replicas.seed(row())
        with pytest.raises(EnvironmentUnavailable) as hung:
            await session.post("hang", b"{}", within_s=0.2)
        with pytest.raises(EnvironmentFailed) as large:
            await session.post("increment_counter", b'{"count": "%s"}' % (b"x" * 9000), within_s=30)
        said += [hung.value, large.value]
        assert list(replicas.load()) == [session.shown_url]
        await server.stop()
        with pytest.raises(EnvironmentUnavailable) as ended:
            await session.post("get_counter_value", b"{}", within_s=30)
        await session.close()
        with pytest.raises(EnvironmentUnavailable) as away:
            await replicas.seed(row())
        said += [ended.value, away.value]

    for error in said:
        assert f"127.0.0.1:{server.port}" in error.message
        assert "pass-word" not in error.message
        assert "secret-key" not in error.message


@pytest.mark.parametrize("url", ["ftp://ann:pass-word@host", "http://ann:pass-word@host", "http://host?key=pass-word"])
def test_a_refused_url_is_shown_without_its_credentials(url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        NemoGymOptions.model_validate({"urls": [url]})
    assert "pass-word" not in refused.value.errors()[0]["msg"]
