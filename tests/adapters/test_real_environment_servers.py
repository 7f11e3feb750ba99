"""The adapters against real servers, each of which runs in a virtual environment of its own.

`make test` installs openenv-core by itself; nemo-gym wants Python 3.13, so `make test-adapters` installs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.local.local_farm import free_port
from gym.environments.adapters.nemo_gym import NemoGym
from gym.environments.adapters.openenv import OpenEnv
from gym.errors import BadRow, EnvironmentFailed, EnvironmentUnavailable
from gym.jsontypes import JsonObject
from gym.testing.answers import Answers
from gym.testing.episodes import PlayedEpisode, play
from gym.wire.responses.reply import output_items

HERE = Path(__file__).parent
NEMO_GYM = HERE.parents[1] / ".venv-nemo-gym" / "bin" / "python"
OPENENV = HERE.parents[1] / ".venv-openenv" / "bin" / "python"
START_S = 180.0  # on a loaded machine
CLASSES = {
    "example_single_tool_call": "SimpleWeatherResourcesServer",
    "example_multi_step": "ExampleMultiStepResourcesServer",
    "example_session_state_mgmt": "StatefulCounterResourcesServer",
    "example_tool_call_multireward": "ToolCallMultiRewardResourcesServer",
}

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
with_nemo_gym = pytest.mark.skipif(not NEMO_GYM.exists(), reason="make .venv-nemo-gym/.installed")
with_openenv = pytest.mark.skipif(not OPENENV.exists(), reason="make .venv-openenv/.installed")


class Server:
    """A real server as a process, on a port that it keeps."""

    def __init__(self, path: str, *command: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._ready = f"{self.url}/{path}"
        self._command = [each.format(port=self.port) for each in command]

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)

    def wait(self) -> None:
        give_up_at = time.monotonic() + START_S
        while time.monotonic() < give_up_at and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self._ready, timeout=5).status_code == 200:
                    return
            time.sleep(0.2)
        raise AssertionError(f"{self._command} does not answer")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def resources_server(name: str) -> Server:
    return Server("reverify_mode", str(NEMO_GYM), str(HERE / "serve_nemo_gym.py"), name, CLASSES[name], "{port}")


@pytest.fixture(scope="module")
def resources_servers() -> Iterator[dict[str, Server]]:
    servers = {name: resources_server(name) for name in CLASSES}
    for server in servers.values():
        server.start()
    try:
        for server in servers.values():
            server.wait()
        yield servers
    finally:
        for server in servers.values():
            server.kill()


@pytest.fixture(scope="module")
def echo() -> Iterator[Server]:
    server = Server("health", str(OPENENV), str(HERE / "serve_openenv.py"), "{port}", "2")
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def rows_of(name: str) -> list[JsonObject]:
    """The rows that NeMo Gym ships with the server, as they are."""
    code = f"import importlib.util as u; print(u.find_spec('resources_servers.{name}.app').origin)"
    found = subprocess.run([NEMO_GYM, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    lines = (Path(found).parent / "data" / "example.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def answer(text: str = "", *calls: tuple[str, JsonObject]) -> list[JsonObject]:
    """A model's items, as the farm makes them of a completion."""
    tool_calls = [
        {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for number, (name, arguments) in enumerate(calls)
    ]
    return output_items({"role": "assistant", "content": text, "tool_calls": tool_calls}, id_prefix="t")


async def played(servers: dict[str, Server], name: str, row: JsonObject, *answers: Any) -> PlayedEpisode:
    environment = NemoGym.configured(name, {"urls": [servers[name].url]})
    return await play(row, model=Answers(list(answers)), environment=environment, within_s=60)


@pytest.mark.slow
@with_nemo_gym
async def test_nemo_gym_example_single_tool_call(resources_servers: dict[str, Server]) -> None:
    for row in rows_of("example_single_tool_call"):
        called = answer("", ("get_weather", {"city": "Oslo"}))
        right = await played(resources_servers, "example_single_tool_call", row, called, answer("It is cold."))
        wrong = await played(resources_servers, "example_single_tool_call", row, answer("It is warm."))
        assert (right.reward, wrong.reward) == (1.0, 0.0)
        assert "The weather in Oslo is cold." in right.trajectory.tool_calls[0].output


@pytest.mark.slow
@with_nemo_gym
async def test_nemo_gym_example_multi_step(resources_servers: dict[str, Server]) -> None:
    for row in rows_of("example_multi_step"):
        steps = [
            answer("", *(("get_synonym_value", {"synonym": each}) for each in row["expected_synonyms"])),
            answer("", ("extract_synonym_values", {"synonym_values": row["expected_synonym_values"]})),
            answer("done"),
        ]
        found = await played(resources_servers, "example_multi_step", row, *steps)
        assert found.reward == 1.0
        assert found.components["accuracy"] == 1.0
        values = [json.loads(call.output).get("synonym_value") for call in found.trajectory.tool_calls]
        assert values[:-1] == row["expected_synonym_values"]


@pytest.mark.slow
@with_nemo_gym
async def test_nemo_gym_example_session_state_mgmt(resources_servers: dict[str, Server]) -> None:
    name = "example_session_state_mgmt"
    rows = rows_of(name)

    async def counted(row: JsonObject, off: int) -> float:
        missing = row["expected_count"] - row["initial_count"] + off
        steps = [answer("", ("increment_counter", {"count": missing}), ("get_counter_value", {})), answer("done")]
        return (await played(resources_servers, name, row, *steps)).reward

    together = await asyncio.gather(*(counted(row, off) for row in rows for off in (0, 1)))
    assert together == [1.0, 0.0] * len(rows)
    with pytest.raises(BadRow, match="initial_count"):
        await played(resources_servers, name, {"responses_create_params": {"input": "x"}})


@pytest.mark.slow
@with_nemo_gym
async def test_nemo_gym_example_tool_call_multireward(resources_servers: dict[str, Server]) -> None:
    name = "example_tool_call_multireward"
    for row in rows_of(name):
        expected = row["expected_call"]
        called = answer("", (expected["name"], expected["arguments"]))
        found = await played(resources_servers, name, row, called, answer("there"))
        wanted = {"correctness": 1.0, "schema_valid": 1.0, "format": 0.0}
        assert {part: found.components[part] for part in wanted} == wanted
        assert found.reward == 2.0


@pytest.mark.slow
@with_nemo_gym
async def test_a_restarted_nemo_gym_server_fails_the_sessions_that_it_had(resources_servers: dict[str, Server]) -> None:
    server = resources_servers["example_session_state_mgmt"]
    row = rows_of("example_session_state_mgmt")[0]
    environment = NemoGym.configured("counter", {"urls": [server.url]})
    made = [environment(environment.row_model.model_validate(row), seed=0) for _ in range(3)]
    for each in made[:2]:
        await each.setup()
    server.kill()
    server.start()
    await asyncio.to_thread(server.wait)
    await made[2].setup()

    for lost in made[:2]:
        with pytest.raises(EnvironmentUnavailable, match="has ended"):
            await lost.call("get_counter_value", {})
    assert json.loads((await made[2].call("get_counter_value", {})).output) == {"count": row["initial_count"]}
    for each in made:
        await each.close()


def echoing(server: Server, **options: Any) -> type[OpenEnv]:
    given = {"urls": [server.url], "field": "message", "show": "echoed_message", **options}
    return OpenEnv.configured("echo", given)


ECHO_ROW: JsonObject = {"responses_create_params": {"input": [{"role": "user", "content": "talk"}]}, "seed": 3}


@with_openenv
async def test_openenv_reset_step_and_state(echo: Server) -> None:
    found = await play(ECHO_ROW, model=Answers(["hello", "<action>stop</action>"]), environment=echoing(echo))
    shown = [item["content"] for item in found.trajectory.items if item.get("role") == "user"]
    assert shown == ["seed 3", "hello", "stop"]
    assert found.reward == pytest.approx(0.9)
    assert found.components == {"steps": 2.0, "state_step_count": 2.0}


@with_openenv
async def test_openenv_errors_are_told_or_end_the_rollout(echo: Server) -> None:
    typed = echoing(echo, field=None)
    found = await play(ECHO_ROW, model=Answers(['{"msg": 1}', '{"message": "stop"}']), environment=typed)
    told = [item["content"] for item in found.trajectory.items if item.get("role") == "user"][1]
    assert "message: Field required" in told
    assert found.reward == pytest.approx(0.4)
    with pytest.raises(EnvironmentFailed, match="the echo broke"):
        await play(ECHO_ROW, model=Answers(["break"]), environment=echoing(echo))


@with_openenv
async def test_openenv_at_capacity_is_waited_for_and_sessions_end_with_their_sockets(echo: Server) -> None:
    environment = echoing(echo)
    made = [environment(environment.row_model.model_validate(ECHO_ROW), seed=0) for _ in range(3)]
    await asyncio.gather(*(each.setup() for each in made[:2]))
    hasty = echoing(echo, capacity_timeout_s=0.5)
    with pytest.raises(EnvironmentUnavailable, match="no server had a free session"):
        await hasty(hasty.row_model.model_validate(ECHO_ROW), seed=0).setup()

    third = asyncio.create_task(made[2].setup())
    await asyncio.sleep(0.3)
    assert not third.done()
    await made[0].close()
    async with asyncio.timeout(30):
        await third
    for each in made:
        await each.close()
    again = [environment(environment.row_model.model_validate(ECHO_ROW), seed=0) for _ in range(2)]
    await asyncio.gather(*(each.setup() for each in again))  # both places are free again
    for each in again:
        await each.close()
