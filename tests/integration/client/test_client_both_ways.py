"""The client against a whole farm, over HTTP and with only a Redis between them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from api.local.local_farm import LocalFarm
from gym.client import Farm, connect, connect_sync
from gym.errors import RequestError
from gym.ids import new_id

pytestmark = pytest.mark.both_carriers
WAIT_S = 60.0
ROW: dict[str, Any] = {"responses_create_params": {"input": "Weather in Oslo?"}, "environment": "weather"}
NewClient = Callable[..., str]


@pytest.fixture
def address(carrier: str, farm: LocalFarm, new_client: NewClient) -> str:
    """Where a client connects to."""
    return farm.url if carrier == "http" else new_client(farm.redis_url)


@pytest.fixture
def client(address: str) -> Iterator[Farm]:
    with connect_sync(address) as connected:
        yield connected


def long_row(calls: int) -> dict[str, Any]:
    """Return a task whose trajectory is long."""
    content = f'{"word " * 3000}[[repeat-calls {calls} get_weather {{"city": "Oslo"}}]]'
    return {"environment": "weather", "responses_create_params": {"input": [{"role": "user", "content": content}]}}


def test_a_large_batch_comes_in_pieces_and_every_rollout_ends_once(client: Farm) -> None:
    rows = ({**ROW, "note": "x" * 3000, "task_id": f"t{number}"} for number in range(1_500))
    batch = client.submit(rows)
    assert batch.status().ledger.submitted == 1_500
    batch.cancel()
    results = list(batch.results())
    assert len({result.rollout_id for result in results}) == len(results) == 1_500
    assert batch.wait(timeout_s=WAIT_S).ledger.balanced


def test_trajectories_in_files_come_with_their_results(client: Farm, farm: LocalFarm) -> None:
    batch = client.submit([long_row(12)], num_samples=20, limits={"max_turns": 16})
    full = {result.rollout_id: result for result in batch.results(view="full")}
    training = {result.rollout_id: result for result in batch.results(view="training")}
    assert any((farm.data_dir / "blobs" / f"b-{batch.batch_id}").rglob("*"))
    assert len(full) == len(training) == 20
    for rollout_id, result in full.items():
        assert result.response is not None
        assert sum(item["type"] == "function_call" for item in result.response["output"]) == 12
        [segment] = training[rollout_id].segments
        assert len(segment.token_ids) == len(segment.logprobs) == len(segment.loss_mask) > 3000


@pytest.mark.anyio
async def test_the_async_client_follows_many_batches_at_once(address: str) -> None:
    async with connect(address) as farm:
        batches = [await farm.submit([ROW] * 3, num_samples=2) for _ in range(4)]
        for batch in batches:
            assert [result.reward async for result in batch.results(view="training")] == [1.0] * 6


def test_rows_come_in_until_the_batch_is_sealed_and_cancelling_is_repeatable(client: Farm) -> None:
    batch = client.submit([ROW], sealed=False)
    assert batch.add_rows([{**ROW, "task_id": "a"}]).accepted == 1
    assert batch.add_rows([{**ROW, "task_id": "a"}]).repeated == 1
    batch.seal()
    assert batch.wait(timeout_s=WAIT_S).ledger.succeeded == 2
    assert batch.cancel()["cancelled"] == batch.cancel()["cancelled"] == 0


def test_what_runs_where_can_be_asked(client: Farm) -> None:
    assert client.ready().ready
    assert {"weather", "sql"} <= {environment.name for environment in client.environments()}
    assert len(client.workers()) == 2
    assert "queued" in client.queues()
    name = new_id("policy")
    client.put_policy(name, {"base_urls": ["http://127.0.0.1:9/v1"], "model": "m", "api_key": "sk-secret"})
    [shown] = [policy for policy in client.policies() if policy["name"] == name]
    assert shown["api_key"] == "********"
    client.delete_policy(name)
    client.delete_policy(name)


def test_both_ways_give_the_same_records_and_the_same_errors(farm: LocalFarm, new_client: NewClient) -> None:
    batch_id = new_id("same")
    wrong: list[Callable[[Farm], object]] = [
        lambda farm: farm.batch("nowhere").status(),
        lambda farm: farm.submit([ROW, ROW], batch_id=batch_id),
        lambda farm: farm.submit([{**ROW, "environment": "wether"}], batch_id="w"),
        lambda farm: farm.submit([{**ROW, "environment": "sql"}], batch_id="s"),
        lambda farm: farm.submit([ROW], policy="nobody"),
        lambda farm: farm.put_policy("p", {"base_urls": ["http://169.254.169.254/"], "model": "m"}),
        lambda farm: farm.rollout("b:x"),
        lambda farm: farm.environment("wether"),
        lambda farm: farm.batch(batch_id).results(after="junk").page(wait_s=0),
    ]
    answers = []
    with connect_sync(farm.url) as http, connect_sync(new_client(farm.redis_url)) as redis:
        http.submit([ROW], batch_id=batch_id).wait(timeout_s=WAIT_S)
        assert redis.submit([ROW], batch_id=batch_id).created == http.submit([ROW], batch_id=batch_id).created
        for way in (http, redis):
            errors = []
            for call in wrong:
                with pytest.raises(RequestError) as caught:
                    call(way)
                error = caught.value
                errors.append((type(error), error.code, error.message, error.details, error.retry_after_s))
            batch = way.batch(batch_id)
            views = [[result.raw for result in batch.results(view=view)] for view in ("light", "full", "training")]
            answers.append((errors, views, batch.status().raw, way.rollout(f"{batch_id}:0:0")))
    assert answers[0] == answers[1]


def test_an_api_process_that_is_killed_costs_its_clients_no_result(client: Farm, farm: LocalFarm) -> None:
    content = '[[sleep 0.2]]\n[[repeat-calls 4 get_weather {"city": "Oslo"}]]'
    row = {"environment": "weather", "responses_create_params": {"input": [{"role": "user", "content": content}]}}
    batch = client.submit([row] * 60)
    reader = batch.results(view="training")
    results = list(reader.page(wait_s=20))
    family = psutil.Process(farm.process.pid).children()
    [api] = [process for process in family if "api" in process.cmdline()]
    os.kill(api.pid, signal.SIGKILL)
    results += reader
    assert len({result.rollout_id for result in results}) == len(results) == 60
    assert {result.outcome for result in results} == {"succeeded"}
    give_up_at = time.monotonic() + WAIT_S
    while not client.ready().ready:
        assert time.monotonic() < give_up_at


BLOCKED = "aiohttp celery kombu fastapi starlette uvicorn ray flower typer rich yaml hiredis msgpack"
PROGRAM = f"""
import sys
for name in {BLOCKED.split()!r}:
    sys.modules[name] = None
import gym.client
with gym.client.connect_sync(sys.argv[1]) as client:
    batch = client.submit([{{"responses_create_params": {{"input": "Weather in Oslo?"}}, "environment": "weather"}}])
    assert [result.reward for result in batch.results()] == [1.0]
assert "workers" not in sys.modules and "api" not in sys.modules
"""


def test_a_client_over_redis_needs_no_server_package(farm: LocalFarm, new_client: NewClient) -> None:
    url = new_client(farm.redis_url)
    done = subprocess.run([sys.executable, "-c", PROGRAM, url], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_command_line_speaks_redis_too(farm: LocalFarm, new_client: NewClient) -> None:
    command = [sys.executable, "-m", "api.cli.main", "environments", "weather", "--json"]
    environment = {**os.environ, "FARM_URL": new_client(farm.redis_url)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert "example_row" in done.stdout
