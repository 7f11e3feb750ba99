"""A real farm with environments on other servers: stand-ins for NeMo Gym's and OpenEnv's, as processes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.local.local_farm import LocalFarm, free_port, local_farm
from gym.client import connect_sync
from gym.plain import exact_msgpack

WAIT_S = 90.0
POLICY = "policy"
MSGPACK = "application/msgpack"
TOOL_NAMES = ("increment_counter", "get_counter_value")


class Server:
    """A stand-in as a process, on a port that it keeps."""

    def __init__(self, module: str) -> None:
        self._module = module
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", f"gym.testing.{self._module}", "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        until(self._answers)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = httpx.get(f"{self.url}/admin/state", timeout=10).raise_for_status().json()
        return state

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return bool(self.state())
        return False


def until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


@pytest.fixture(scope="module")
def counters() -> Iterator[list[Server]]:
    servers = [Server("resources_server") for _ in range(2)]
    yield servers
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def guesses() -> Iterator[Server]:
    server = Server("openenv_server")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def served(counters: list[Server], guesses: Server) -> Iterator[LocalFarm]:
    environments = {
        "counter": {"adapter": "nemo_gym", "urls": [server.url for server in counters]},
        "guess": {"adapter": "openenv", "urls": [guesses.url], "field": "number", "show": "said"},
    }
    settings = {"FARM_ENVIRONMENTS": json.dumps(environments), "FARM_BREAKERS_FAILURES": "1000"}
    options = ["--workers", "2", "--concurrency", "64", "--no-flower"]
    with (
        tempfile.TemporaryDirectory(prefix="farm-test-") as folder,
        local_farm(Path(folder), options=options, settings=settings) as farm,
    ):
        yield farm


@pytest.fixture
def http(served: LocalFarm) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


def counter_row(script: str, **fields: Any) -> dict[str, Any]:
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in TOOL_NAMES]
    params = {"input": [{"role": "user", "content": script}], "tools": tools}
    return {"responses_create_params": params, "initial_count": 3, "expected_count": 5, **fields}


def submitted(http: httpx.Client, environment: str, rows: list[dict[str, Any]], **fields: Any) -> str:
    answer = http.post("/v1/batches", json={"environment": environment, "rows": rows, **fields})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["batch_id"])


def results(http: httpx.Client, batch_id: str, view: str = "light") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = None
    give_up_at = time.monotonic() + WAIT_S
    while time.monotonic() < give_up_at:
        params = {"wait": "10", "view": view, **({"after": after} if after else {})}
        page = http.get(f"/v1/batches/{batch_id}/results", params=params).raise_for_status().json()
        found, after = found + page["items"], page["next_after"]
        if page["done"]:
            return found
    raise AssertionError(http.get(f"/v1/batches/{batch_id}").json()["ledger"])


def connections_to(farm: LocalFarm, *servers: Server) -> int:
    ports = {server.port for server in servers}
    total = 0
    for process in psutil.Process(farm.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(1 for each in process.net_connections("tcp") if each.raddr and each.raddr.port in ports)
    return total


def test_rows_of_a_resources_server_run_with_its_tools_and_its_reward(
    http: httpx.Client, served: LocalFarm, counters: list[Server]
) -> None:
    script = "[[call increment_counter {}]]\n---\n[[call get_counter_value {{}}]]\n---\n[[say done]]"
    rows = [counter_row(script.format(json.dumps({"count": number}))) for number in (2, 3)]
    found = results(http, submitted(http, "counter", rows, num_samples=20), view="full")

    assert len(found) == 40
    assert {item["outcome"] for item in found} == {"succeeded"}, found[0]["error"]
    assert sorted(item["reward"] for item in found) == [0.0] * 20 + [1.0] * 20
    outputs = {
        each["output"]
        for item in found
        for each in item["response"]["output"]
        if each["type"] == "function_call_output"
    }
    assert outputs == {'{"success": true}', '{"count": 5}', '{"count": 6}'}
    assert all(server.state()["seen"]["/seed_session"] > 0 for server in counters)
    until(lambda: sum(server.state()["open"] for server in counters) == 0)
    until(lambda: connections_to(served, *counters) == 0)


def test_integers_of_any_length_reach_servers_and_results_as_the_row_has_them(http: httpx.Client) -> None:
    """In `seed_session`, a tool's arguments and its output, `verify`, `reset`, and what readers get."""
    long = 123456789012345678901234567890
    script = f'[[call increment_counter {{"count": {long}}}]]\n---\n[[call get_counter_value {{}}]]\n---\n[[say done]]'
    row = counter_row(script, initial_count=long, expected_count=2 * long)
    row["responses_create_params"]["tools"][0]["parameters"]["default"] = {"count": long}
    batch_id = submitted(http, "counter", [row])
    (found,) = results(http, batch_id, view="full")
    assert (found["outcome"], found["reward"]) == ("succeeded", 1.0), found["error"]
    outputs = [each for each in found["response"]["output"] if each["type"] == "function_call_output"]
    assert json.loads(outputs[1]["output"]) == {"count": 2 * long}
    assert found["responses_create_params"]["tools"][0]["parameters"]["default"] == {"count": long}

    with connect_sync(str(http.base_url)) as client:
        (result,) = client.submit([row], environment="counter").results(view="full")
    assert result.reward == 1.0
    assert result.raw["responses_create_params"]["tools"][0]["parameters"]["default"] == {"count": long}
    page = http.get(f"/v1/batches/{batch_id}/results", params={"view": "full"}, headers={"accept": MSGPACK}).content
    (packed,) = exact_msgpack.unpackb(page)["items"]
    assert packed["responses_create_params"] == found["responses_create_params"]

    script = f"[[say <action>{long}</action>]]"
    played = {"seed": long, "responses_create_params": {"input": [{"role": "system", "content": script}]}}
    (guessed,) = results(http, submitted(http, "guess", [played]))
    assert (guessed["outcome"], guessed["reward"]) == ("succeeded", 1.0), guessed["error"]
    opened = http.post("/v1/environments/guess/sessions", json={"row": played}).raise_for_status().json()
    path = f"/v1/sessions/{opened['session_id']}"
    step = http.post(f"{path}/step", json={"action": {"number": long}}).raise_for_status().json()
    assert (step["observation"], step["reward"], step["done"]) == ("right", 1.0, True)
    http.delete(path).raise_for_status()


def test_a_killed_server_fails_the_rollouts_that_it_had_and_another_attempt_runs_them(
    http: httpx.Client, counters: list[Server]
) -> None:
    script = '[[call increment_counter {"count": 2}]]\n---\n[[say done]]'
    rows = [counter_row(script) for _ in range(6)]
    http.post(f"/v1/policies/{POLICY}/pause", json={"mode": "hold"}).raise_for_status()
    once = submitted(http, "counter", rows, limits={"max_attempts": 1})
    again = submitted(http, "counter", rows, limits={"max_attempts": 3})
    until(lambda: sum(server.state()["open"] for server in counters) == 12)
    counters[0].kill()
    counters[0].start()
    http.post(f"/v1/policies/{POLICY}/resume", json={}).raise_for_status()

    first = results(http, once)
    failed = [item["error"] for item in first if item["outcome"] == "failed"]
    assert 0 < len(failed) < 6
    assert {(error["kind"], error["retryable"]) for error in failed} == {("environment_error", True)}
    assert {item["reward"] for item in first if item["outcome"] == "succeeded"} == {1.0}

    second = results(http, again)
    assert [item["reward"] for item in second] == [1.0] * 6
    assert {item["attempt"] for item in second} == {1, 2}
    until(lambda: sum(server.state()["open"] for server in counters) == 0)


def test_rows_of_an_openenv_server_are_played_step_by_step(
    http: httpx.Client, served: LocalFarm, guesses: Server
) -> None:
    script = "[[say <action>3</action>]]\n---\n[[say <action>7</action>]]"
    rows = [
        {"seed": 7, "responses_create_params": {"input": [{"role": "system", "content": script}]}} for _ in range(2)
    ]
    found = results(http, submitted(http, "guess", rows, num_samples=10), view="training")

    assert {item["outcome"] for item in found} == {"succeeded"}, found[0]["error"]
    assert {item["reward"] for item in found} == {0.75}
    assert [step["action"] for step in found[0]["steps"]] == [{"number": "3"}, {"number": "7"}]
    until(lambda: guesses.state()["open"] == 0)
    until(lambda: connections_to(served, guesses) == 0)


def test_a_session_over_rest_is_one_on_the_server_until_it_is_closed(http: httpx.Client, guesses: Server) -> None:
    row = {"seed": 9, "responses_create_params": {"input": "guess"}}
    session = http.post("/v1/environments/guess/sessions", json={"row": row}).raise_for_status().json()
    path = f"/v1/sessions/{session['session_id']}"
    assert session["observation"] == "a number?"
    assert guesses.state()["open"] == 1

    step = http.post(f"{path}/step", json={"action": {"number": 9}}).raise_for_status().json()
    assert (step["observation"], step["reward"], step["done"]) == ("right", 1.0, True)
    http.delete(path).raise_for_status()
    until(lambda: guesses.state()["open"] == 0)
