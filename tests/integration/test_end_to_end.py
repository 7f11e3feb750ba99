"""The whole farm as a user has it: real Redis, real Celery workers, real HTTP, a scripted model.

A client's view is tested by HTTP and over Redis alone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import httpx
import pytest

from api.local.local_farm import LocalFarm

WAIT_S = 90.0
CITIES = ("Oslo", "Lima", "New York City", "São Paulo", "Reykjavík")


@pytest.fixture
def http(carrier: str, farm: LocalFarm, new_client: Any, sync_over_redis: Any) -> Any:
    transport = sync_over_redis(new_client(farm.redis_url)) if carrier == "redis" else None
    with httpx.Client(base_url=farm.url, timeout=60, transport=transport) as client:
        yield client


by_http_alone = pytest.mark.parametrize("carrier", ["http"])


def weather_row(number: int) -> dict[str, Any]:
    city = CITIES[number % len(CITIES)]
    return {
        "task_id": f"w{number}",
        "responses_create_params": {"input": [{"role": "user", "content": f"what's it like in {city}?"}]},
    }


def ask(city: str) -> dict[str, Any]:
    return {"responses_create_params": {"input": [{"role": "user", "content": city}]}}


def all_results(http: httpx.Client, batch_id: str, view: str = "light") -> list[dict[str, Any]]:
    """Read the completion log by cursor until it says that it is done."""
    found: list[dict[str, Any]] = []
    after = None
    give_up_at = time.monotonic() + WAIT_S
    while time.monotonic() < give_up_at:
        params = {"wait": "10", "view": view, "limit": "137", **({"after": after} if after else {})}
        page = http.get(f"/v1/batches/{batch_id}/results", params=params).raise_for_status().json()
        found += page["items"]
        after = page["next_after"]
        if page["done"]:
            return found
    raise AssertionError(f"{batch_id} is not done: {http.get(f'/v1/batches/{batch_id}').json()['ledger']}")


def model_calls(model: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = 0
    while page := model.get("/admin/requests", params={"after": after}).json()["items"]:
        found += page
        after = page[-1]["number"]
    return found


def balanced(ledger: dict[str, int]) -> bool:
    return ledger["submitted"] == sum(number for state, number in ledger.items() if state != "submitted")


@pytest.mark.both_carriers
def test_200_tasks_with_4_samples_give_800_results_each_once_with_reward_1(http: httpx.Client) -> None:
    body = {"environment": "weather", "num_samples": 4, "rows": [weather_row(number) for number in range(200)]}
    answer = http.post("/v1/batches", json=body)
    assert answer.status_code == 201, answer.text
    batch_id = answer.json()["batch_id"]
    assert answer.json()["submitted"] == 800

    ledgers: list[dict[str, int]] = []
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(0.02):
            ledgers.append(http.get(f"/v1/batches/{batch_id}").json()["ledger"])

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        results = all_results(http, batch_id)
    finally:
        ended.set()
        poller.join()
    assert len({result["rollout_id"] for result in results}) == len(results) == 800
    assert Counter((result["outcome"], result["reward"]) for result in results) == {("succeeded", 1.0): 800}
    assert Counter(Counter(result["group_id"] for result in results).values()) == {4: 200}
    assert all(result["model_calls"] == 2 and result["tool_calls"] == 1 for result in results)
    assert ledgers
    assert all(map(balanced, ledgers))
    status = http.get(f"/v1/batches/{batch_id}").json()
    assert status["state"] == "done"
    assert status["environments"]["weather"]["reward_mean"] == 1.0


def test_rows_that_break_their_environment_fail_alone(http: httpx.Client) -> None:
    broken = {
        "environment": "sql",
        "responses_create_params": {"input": [{"role": "user", "content": "How many?"}]},
        "schema": "CREATE TABEL nonsense (",
        "data": "",
        "question": "How many?",
        "expected_rows": [[1]],
    }
    rows = [broken if number % 50 == 7 else weather_row(number) for number in range(1000)]
    batch = http.post("/v1/batches", json={"environment": "weather", "rows": rows})
    assert batch.status_code == 201, batch.text
    results = all_results(http, batch.json()["batch_id"])
    outcomes = Counter((r["outcome"], r["error"]["kind"] if r["error"] else None) for r in results)
    assert outcomes == {("succeeded", None): 980, ("failed", "environment_error"): 20}
    assert all(result["reward"] is None for result in results if result["outcome"] == "failed")
    assert http.get(f"/v1/batches/{batch.json()['batch_id']}").json()["state"] == "done"


@pytest.mark.both_carriers
def test_a_cancelled_batch_makes_no_further_model_call_and_keeps_what_had_finished(
    farm: LocalFarm, http: httpx.Client
) -> None:
    rows = [ask(f'[[sleep 0.2]]\n[[repeat-calls 3 get_weather {{"city": "Oslo"}}]] {n}') for n in range(400)]
    batch_id = http.post("/v1/batches", json={"environment": "weather", "rows": rows}).json()["batch_id"]
    first = http.get(f"/v1/batches/{batch_id}/results", params={"wait": 60, "limit": 1}).json()["items"]
    assert first
    cancelled_at = time.time()
    assert http.delete(f"/v1/batches/{batch_id}").status_code in {200, 202}  # cancelled, or being cancelled
    results = all_results(http, batch_id)
    outcomes = Counter(result["outcome"] for result in results)
    assert set(outcomes) == {"succeeded", "cancelled"}
    assert len({result["rollout_id"] for result in results}) == 400
    assert first[0]["rollout_id"] in {result["rollout_id"] for result in results}
    ledger = http.get(f"/v1/batches/{batch_id}").json()["ledger"]
    assert balanced(ledger)
    assert ledger["cancelled"] == outcomes["cancelled"]
    with httpx.Client(base_url=farm.model_url) as model:
        give_up_at = time.monotonic() + 10
        while model.get("/admin/stats").json()["in_flight"] and time.monotonic() < give_up_at:
            time.sleep(0.05)
        late = [
            request
            for request in model_calls(model)
            if request["started"] > cancelled_at + 2 and request["x_request_id"].startswith(batch_id)
        ]
    assert late == []


def test_enough_usable_rollouts_stop_the_stragglers_of_their_group(http: httpx.Client) -> None:
    body = {
        "environment": "weather",
        "num_samples": 16,
        "early_stop": {"min_usable": 2},
        "rows": [weather_row(number) for number in range(20)],
    }
    results = all_results(http, http.post("/v1/batches", json=body).json()["batch_id"])
    assert len(results) == 320
    usable = Counter(r["group_id"] for r in results if r["outcome"] == "succeeded")
    assert len(usable) == 20
    assert min(usable.values()) >= 2
    assert {r["stop_reason"] for r in results if r["outcome"] == "cancelled"} <= {"early_stop"}


@pytest.mark.both_carriers
def test_a_trajectory_carries_the_tokens_that_the_server_returned(http: httpx.Client) -> None:
    batch_id = http.post("/v1/batches", json={"environment": "weather", "rows": [weather_row(0)]}).json()["batch_id"]
    [result] = all_results(http, batch_id, view="training")
    [segment] = result["segments"]
    assert len(segment["token_ids"]) == len(segment["loss_mask"]) == len(segment["logprobs"]) > 10
    assert 0 < sum(segment["loss_mask"]) < len(segment["loss_mask"])
    assert all((value < 0) == bool(bit) for value, bit in zip(segment["logprobs"], segment["loss_mask"], strict=True))
    shown = http.get(f"/v1/rollouts/{result['rollout_id']}", params={"view": "full"}).json()
    kinds = [item["type"] for item in shown["response"]["output"]]
    assert kinds == ["function_call", "function_call_output", "message"]
    assert "cold" in shown["response"]["output"][-1]["content"][0]["text"]


@by_http_alone
def test_a_model_that_answers_500_again_and_again_fails_the_rollout_with_its_attempts(http: httpx.Client) -> None:
    body = {
        "environment": "weather",
        "limits": {"max_attempts": 2},
        "rows": [ask("[[status 500]] Oslo?"), weather_row(1)],
    }
    results = {r["sample_index"]: r for r in []} | {
        r["group_id"][-1]: r for r in all_results(http, http.post("/v1/batches", json=body).json()["batch_id"])
    }
    assert results["1"]["outcome"] == "succeeded"
    assert results["0"]["outcome"] == "failed"
    error = results["0"]["error"]
    assert error["kind"] == "model_unreachable"
    assert [attempt["attempt"] for attempt in error["attempts"]] == [1, 2]


@by_http_alone
def test_a_rollout_that_takes_too_long_times_out_and_one_that_hangs_stalls(http: httpx.Client) -> None:
    limits = {"rollout_timeout_s": 1.5, "stall_timeout_s": 60}
    body = {"environment": "weather", "limits": limits, "rows": [ask("[[hang]] Oslo?")]}
    slow = http.post("/v1/batches", json=body).json()["batch_id"]
    body["limits"] = {"rollout_timeout_s": 60, "stall_timeout_s": 1}
    stuck = http.post("/v1/batches", json=body).json()["batch_id"]
    [timed_out] = all_results(http, slow)
    [stalled] = all_results(http, stuck)
    assert (timed_out["outcome"], timed_out["stop_reason"]) == ("failed", "timeout")
    assert timed_out["error"]["kind"] == "timeout"
    assert (stalled["outcome"], stalled["stop_reason"]) == ("failed", "stalled")
    assert stalled["error"]["kind"] == "stalled"


@by_http_alone
def test_flower_shows_a_finished_job_with_its_environment_and_rollouts(farm: LocalFarm, http: httpx.Client) -> None:
    batch_id = http.post("/v1/batches", json={"environment": "weather", "rows": [weather_row(0)]}).json()["batch_id"]
    all_results(http, batch_id)
    give_up_at = time.monotonic() + 20
    mine: list[dict[str, Any]] = []
    while not mine and time.monotonic() < give_up_at:
        jobs = httpx.get(f"{farm.flower_url}/api/tasks", params={"limit": 1000}).json()
        mine = [job for job in jobs.values() if f"{batch_id}:0:0" in (job["kwargs"] or "")]
        mine = [job for job in mine if job["state"] == "SUCCESS"]
    assert mine
    assert mine[0]["name"] == "farm.run_rollouts"
    assert "weather" in mine[0]["kwargs"]
