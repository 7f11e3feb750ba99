"""The adapter for OpenEnv servers, against a server that speaks as openenv-core 0.3 does, and one that goes silent."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest

from gym.environments.adapters.openenv import OpenEnv
from gym.environments.capacity import CapacityWaits, listen_to_waits
from gym.errors import EnvironmentFailed, EnvironmentUnavailable
from gym.jsontypes import JsonObject
from gym.testing.answers import Answers, called
from gym.testing.episodes import PlayedEpisode, play
from gym.testing.stand_ins.openenv_server import GuessServer

ROW: JsonObject = {"responses_create_params": {"input": [{"role": "user", "content": "guess"}]}, "seed": 7}


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[GuessServer]:
    server = await GuessServer(**options).start()
    try:
        yield server
    finally:
        await server.stop()


def guess(*servers: GuessServer, **options: Any) -> type[OpenEnv]:
    urls = [f"http://127.0.0.1:{server.port}" for server in servers]
    return OpenEnv.configured("guess", {"urls": urls, "field": "number", "show": "said", **options})


async def seeded(environment: type[OpenEnv]) -> OpenEnv:
    made = environment(environment.row_model.model_validate(ROW), seed=0)
    await made.setup()
    return made


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  what is looked at tells nobody of its changes
            await asyncio.sleep(0.02)


async def played(environment: type[OpenEnv], *answers: Any, **row: Any) -> PlayedEpisode:
    return await play({**ROW, **row}, model=Answers(answers), environment=environment)


def shown_to_the_model(episode: PlayedEpisode) -> list[Any]:
    return [item["content"] for item in episode.trajectory.items if item.get("role") == "user"]


@pytest.mark.anyio
async def test_an_episode_is_reset_stepped_and_scored_by_the_sum_of_its_rewards() -> None:
    async with serving() as server:
        episode = await played(guess(server), "<action>3</action>", "<action>7</action>")
        assert server.seen == {"reset": 1, "step": 2, "state": 1, "close": 1}

    assert shown_to_the_model(episode) == ["a number?", "higher", "right"]
    assert episode.reward == 0.75
    assert episode.components == {"steps": 2.0, "state_step_count": 2.0}
    assert episode.reason == "completed"


@pytest.mark.anyio
async def test_the_last_reward_counts_where_the_settings_say_so() -> None:
    async with serving() as server:
        assert (await played(guess(server, reward="last"), "3", "7")).reward == 1.0


@pytest.mark.anyio
async def test_rows_choose_the_seed_and_what_else_reset_is_given() -> None:
    async with serving() as server:
        await played(guess(server), "<action>4</action>", seed=4, reset_options={"episode_id": "e-4"})
        without = {name: value for name, value in ROW.items() if name != "seed"}
        await play(without, model=Answers(["11"]), environment=guess(server), seed=11)
        assert server.resets == [{"seed": 4, "episode_id": "e-4"}, {"seed": 11}]


@pytest.mark.anyio
async def test_a_model_may_act_by_a_function_whose_arguments_are_the_action() -> None:
    schema = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
    async with serving() as server:
        environment = guess(server, act="tool", action_schema=schema)
        episode = await played(environment, called("act", {"wrong": 1}), called("act", {"number": 7}))

    outputs = [item["output"] for item in episode.trajectory.items if item.get("type") == "function_call_output"]
    assert outputs == ['{"error":"number: Field required"}', "right"]
    assert environment.codec.tools[0]["parameters"] == schema


@pytest.mark.anyio
async def test_an_answer_that_is_no_action_is_told_to_the_model() -> None:
    async with serving() as server:
        episode = await played(guess(server, field=None), "seven", "[7]", '{"number": 7}')
    _, first, second, _ = shown_to_the_model(episode)
    assert "not JSON" in first
    assert "not list" in second
    assert episode.reward == 1.0


@pytest.mark.anyio
async def test_a_step_that_raises_ends_the_rollout_or_is_told_as_the_settings_say() -> None:
    async with serving(fault="step") as server:
        with pytest.raises(EnvironmentFailed, match="the board broke") as failed:
            await played(guess(server), "3")
        assert not failed.value.retryable

        told = asyncio.create_task(played(guess(server, execution_errors="tell"), "3", "4", "5"))
        with pytest.raises(AssertionError, match="answer 4"):
            await told
        assert server.seen["step"] == 4
        await until(lambda: server.open == 0)


@pytest.mark.anyio
async def test_a_reset_that_raises_fails_the_rollout() -> None:
    async with serving(fault="reset") as server:
        with pytest.raises(EnvironmentFailed, match="no board"):
            await seeded(guess(server))
        await until(lambda: server.open == 0)


@pytest.mark.anyio
async def test_a_full_server_is_waited_for() -> None:
    async with serving(most=1) as server:
        environment = guess(server)
        first = await seeded(environment)
        second = asyncio.create_task(seeded(environment))
        await until(lambda: server.seen["full"] >= 2)
        assert not second.done()

        await first.close()
        await (await second).close()
        assert server.seen["reset"] == 2


@pytest.mark.anyio
async def test_a_rollout_that_waits_for_a_full_server_does_not_stall() -> None:
    waits = CapacityWaits()

    async def later() -> OpenEnv:
        listen_to_waits(waits)
        return await seeded(guess(server))

    async with serving(most=1) as server:
        first = await seeded(guess(server))
        second = asyncio.create_task(later())
        await until(lambda: waits.last(math.inf) == math.inf)
        await first.close()
        await (await second).close()
    ended_at = waits.last(math.inf)
    assert ended_at is not None
    assert ended_at < math.inf, "from then on it may stall"


@pytest.mark.anyio
async def test_the_wait_for_a_full_server_has_an_end() -> None:
    async with serving(most=0) as server:
        with pytest.raises(EnvironmentUnavailable, match="no server had a free session"):
            await seeded(guess(server, capacity_timeout_s=0.3))


@pytest.mark.anyio
async def test_where_one_server_is_full_or_away_another_takes_the_session() -> None:
    async with serving() as free, serving(most=0) as full, serving() as gone:
        await gone.stop()
        environment = guess(gone, full, free)
        for _ in range(5):
            await (await seeded(environment)).close()
        assert free.seen["reset"] == 5

        with pytest.raises(EnvironmentUnavailable, match="cannot be reached"):
            await seeded(guess(gone))


@pytest.mark.anyio
async def test_a_half_open_socket_is_found_while_nobody_asks_and_closed() -> None:
    async with serving(fault="silent") as server:
        before = len(psutil.Process().net_connections("tcp"))
        made = await seeded(guess(server, ping_s=0.2))
        await until(lambda: server.open == 0)
        with pytest.raises(EnvironmentUnavailable, match="lost"):
            await made.step({"number": 3})
        await made.close()
        await until(lambda: len(psutil.Process().net_connections("tcp")) == before)


@pytest.mark.anyio
async def test_a_quiet_socket_that_answers_pings_stays_open() -> None:
    async with serving() as server:
        made = await seeded(guess(server, ping_s=0.1))
        await asyncio.sleep(0.5)
        assert (await made.step({"number": 7})).done
        await made.close()


@pytest.mark.anyio
async def test_a_server_that_ends_fails_the_rollout_at_once_and_another_attempt_may_help() -> None:
    async with serving(fault="hang") as server:
        made = await seeded(guess(server))
        step = asyncio.create_task(made.step({"number": 3}))
        await until(lambda: server.seen["step"] == 1)
        await server.stop()
        with pytest.raises(EnvironmentUnavailable, match="lost") as lost:
            await step
        assert lost.value.retryable
        await made.close()


@pytest.mark.anyio
async def test_a_step_that_takes_too_long_closes_the_socket() -> None:
    async with serving(fault="hang") as server:
        made = await seeded(guess(server, step_timeout_s=0.2))
        with pytest.raises(EnvironmentUnavailable, match=r"did not answer `step` within 0.2 s"):
            await made.step({"number": 3})
        await until(lambda: server.open == 0)
        with pytest.raises(EnvironmentUnavailable):
            await made.step({"number": 7})
        await made.close()


@pytest.mark.anyio
async def test_no_socket_is_left_after_rollouts_that_end_in_every_way() -> None:
    async with serving() as server:
        before = len(psutil.Process().net_connections("tcp"))
        environment = guess(server)
        await played(environment, "7")
        with contextlib.suppress(AssertionError):
            await played(environment, "3")
        waiting = asyncio.create_task(seeded(environment))
        await until(lambda: server.open == 1)
        waiting.cancel()
        made = (await asyncio.gather(waiting, return_exceptions=True))[0]
        if isinstance(made, OpenEnv):
            await made.close()
        await until(lambda: server.open == 0)
        await until(lambda: len(psutil.Process().net_connections("tcp")) == before)


@pytest.mark.parametrize("urls", [[], ["ws//host"], ["http://user:word@host"], ["http://host?key=1"]])
def test_options_that_cannot_be_meant_are_refused(urls: list[str]) -> None:
    with pytest.raises(ValueError, match="urls"):
        OpenEnv.configured("guess", {"urls": urls})
