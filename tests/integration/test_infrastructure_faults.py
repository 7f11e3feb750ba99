"""A farm whose model server, environment or workers fail: it costs time, and neither rollouts nor their attempts."""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from api.local.local_farm import LocalFarm, local_farm
from gym.testing.model_server.server import ScriptedModelServer

pytestmark = pytest.mark.anyio

ENVIRONMENTS = Path(__file__).with_name("faulty_environments.py")
SETTINGS = {
    "FARM_ENVIRONMENTS": json.dumps([f"{ENVIRONMENTS}:Sandboxed", f"{ENVIRONMENTS}:Deadly"]),
    "FARM_BREAKERS_PROBE_AFTER_S": "0.5",
    "FARM_BREAKERS_MAX_PROBE_AFTER_S": "2",
    "FARM_MODEL_MAX_RETRIES": "1",
    "FARM_MODEL_UNHEALTHY_WAIT_S": "1",
    "FARM_WORKER_LEASE_TTL_S": "4",
    "FARM_DISPATCHER_RESEND_AFTER_S": "3",
}
WEATHER = {"environment": "weather", "responses_create_params": {"input": "what's it like in Oslo?"}}
HELLO = {"responses_create_params": {"input": "Hello"}}
WITHIN_S = 90.0


@pytest.fixture(scope="module")
def faulty() -> Iterator[LocalFarm]:
    """A farm of its own, with environments that fail on demand and little patience."""
    with (
        tempfile.TemporaryDirectory(prefix="farm-faults-") as folder,
        local_farm(
            Path(folder), options=["--workers", "2", "--concurrency", "64", "--no-flower"], settings=SETTINGS
        ) as farm,
    ):
        yield farm


@pytest.fixture
async def http(faulty: LocalFarm) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=faulty.url, timeout=60) as client:
        yield client


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def submit(http: httpx.AsyncClient, rows: list[dict[str, Any]], **options: Any) -> str:
    answer = await http.post("/v1/batches", json={"rows": rows, **options})
    assert answer.status_code == 201, answer.text
    batch_id: str = answer.json()["batch_id"]
    return batch_id


async def status_when(
    http: httpx.AsyncClient, batch_id: str, condition: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    give_up_at = time.monotonic() + WITHIN_S
    while True:
        status: dict[str, Any] = (await http.get(f"/v1/batches/{batch_id}")).json()
        ledger = status["ledger"]
        assert ledger["submitted"] == sum(number for state, number in ledger.items() if state != "submitted")
        if condition(status):
            return status
        assert time.monotonic() < give_up_at, status
        await anyio.sleep(0.1)


async def results(http: httpx.AsyncClient, batch_id: str) -> list[dict[str, Any]]:
    await status_when(http, batch_id, lambda status: status["ended_at"] is not None)
    items: list[dict[str, Any]] = (await http.get(f"/v1/batches/{batch_id}/results", params={"limit": 1000})).json()[
        "items"
    ]
    return items


def outcomes(items: list[dict[str, Any]]) -> Counter[tuple[str, int]]:
    return Counter((item["outcome"], item["attempt"]) for item in items)


async def test_a_model_server_that_is_away_costs_its_rollouts_no_attempt_and_others_nothing(
    http: httpx.AsyncClient, free_port: int
) -> None:
    spec = {"base_urls": [f"http://127.0.0.1:{free_port}/v1"], "model": "m"}
    assert (await http.put("/v1/policies/away", json=spec)).status_code == 200
    waiting = await submit(http, [WEATHER] * 20, policy="away")
    status = await status_when(http, waiting, lambda status: status["parked"]["count"] == 20)
    [reason] = status["parked"]["reasons"]
    assert (reason["kind"], reason["name"]) == ("policy", "away")
    assert f"127.0.0.1:{free_port}" in reason["error"]
    queues = (await http.get("/v1/queues")).json()
    assert [(each["kind"], each["name"]) for each in queues["breakers"]] == [("policy", "away")]
    assert queues["parked"] == {item["batch_id"]: item["parked"] for item in queues["items"]}[waiting] >= 19
    metrics = (await http.get("/metrics")).text
    assert 'farm_breaker_open{kind="policy",name="away"} 1.0' in metrics

    assert outcomes(await results(http, await submit(http, [WEATHER] * 40))) == {("succeeded", 1): 40}

    expiring = await submit(http, [WEATHER] * 5, policy="away", limits={"deadline_s": 1.5})
    assert {item["outcome"] for item in await results(http, expiring)} == {"expired"}
    cancelled = await submit(http, [WEATHER] * 5, policy="away")
    assert (await http.delete(f"/v1/batches/{cancelled}")).json()["cancelled"] == 5

    async with ScriptedModelServer(port=free_port):
        assert outcomes(await results(http, waiting)) == {("succeeded", 1): 20}
    assert (await http.get("/v1/queues")).json()["breakers"] == []


async def test_a_model_server_that_dies_midway_is_not_asked_again_for_what_it_had_answered(
    http: httpx.AsyncClient, free_port: int, tmp_path: Path
) -> None:
    busy = tmp_path / "busy"
    busy.touch()
    spec = {"base_urls": [f"http://127.0.0.1:{free_port}/v1"], "model": "m"}
    assert (await http.put("/v1/policies/dying", json=spec)).status_code == 200
    text = "[[call work {}]]\n---\n[[say done]]"
    row = {"environment": "sandboxed", "busy": str(busy), "responses_create_params": {"input": text}}
    async with ScriptedModelServer(port=free_port) as first:
        batch_id = await submit(http, [row] * 8, policy="dying")
        while len(turns(first)) < 8:  # noqa: ASYNC110  the server has no event for it
            await anyio.sleep(0.05)
        assert set(turns(first)) == {0}
    busy.unlink()
    await status_when(http, batch_id, lambda status: status["parked"]["count"] == 8)
    async with ScriptedModelServer(port=free_port) as second:
        items = await results(http, batch_id)
        assert outcomes(items) == {("succeeded", 1): 8}
        assert {item["model_calls"] for item in items} == {2}
        # those that failed before the breaker opened may have restarted by then
        assert turns(second).count(0) <= 2
        assert turns(second).count(1) == 8


def turns(server: ScriptedModelServer) -> list[int]:
    """Of every call of a rollout, which turn of it that was."""
    asked = [record.headers.get("x-request-id", "").split("-") for record in server.records]
    return [int(parts[3]) for parts in asked if parts[0] == "batch"]


async def test_an_environment_whose_infrastructure_is_away_is_parked_and_the_rest_of_its_batch_goes_on(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    away.touch()
    sandboxed = {"environment": "sandboxed", "away": str(away), **HELLO}
    batch_id = await submit(http, [sandboxed] * 30 + [WEATHER] * 30, num_samples=2)
    status = await status_when(
        http, batch_id, lambda status: status["ledger"]["succeeded"] == 60 and status["parked"]["count"] == 60
    )
    [reason] = status["parked"]["reasons"]
    assert (reason["kind"], reason["name"], reason["error"]) == ("environment", "sandboxed", "no sandbox is free")
    away.unlink()
    assert outcomes(await results(http, batch_id)) == {("succeeded", 1): 120}


async def test_only_the_rollout_that_kills_its_workers_is_blamed_for_it(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    deaths = tmp_path / "deaths"
    deaths.touch()
    rows = [{"environment": "deadly", "kills": number == 20, "deaths": str(deaths), **HELLO} for number in range(64)]
    items = await results(http, await submit(http, rows))
    by_row = {int(item["group_id"].rpartition(":")[2]): item for item in items}
    killer = by_row.pop(20)
    assert (killer["outcome"], killer["error"]["kind"], killer["attempt"]) == ("failed", "worker_lost", 3)
    assert "ran nothing else" in killer["error"]["message"]
    assert deaths.stat().st_size == 3
    assert Counter(item["outcome"] for item in by_row.values()) == {"succeeded": 63}
    assert max(item["attempt"] for item in by_row.values()) == 3  # some had been there twice


@pytest.mark.parametrize(("limits", "attempts"), [({}, 1), ({"retry_data_errors": 1, "max_attempts": 1}, 2)])
async def test_what_its_own_data_fails_runs_again_only_where_that_is_asked_for(
    http: httpx.AsyncClient, limits: dict[str, int], attempts: int
) -> None:
    row = {
        "environment": "sql",
        "responses_create_params": {"input": "How many?"},
        "schema": "CREATE TABEL nonsense (",
        "data": "",
        "question": "How many?",
        "expected_rows": [[1]],
    }
    [item] = await results(http, await submit(http, [row], limits=limits))
    assert (item["outcome"], item["error"]["kind"]) == ("failed", "environment_error")
    assert [attempt["attempt"] for attempt in item["error"]["attempts"]] == list(range(1, attempts + 1))
