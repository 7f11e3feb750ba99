"""A trainer pauses the policy, loads weights and resumes, while rollouts run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.local.local_farm import LocalFarm

POLICY = "synced"


@pytest.fixture
def http(carrier: str, farm: LocalFarm, new_client: Any, sync_over_redis: Any) -> Iterator[httpx.Client]:
    transport = sync_over_redis(new_client(farm.redis_url)) if carrier == "redis" else None
    with httpx.Client(base_url=farm.url, timeout=60, transport=transport) as client:
        client.put(f"/v1/policies/{POLICY}", json={**farm.policy.model_dump(mode="json"), "version": 1})
        yield client
        client.delete(f"/v1/policies/{POLICY}")


def submit(http: httpx.Client, rows: int) -> str:
    content = '[[sleep 0.1]]\n[[repeat-calls 6 get_weather {"city": "Oslo"}]]'
    row = {"responses_create_params": {"input": [{"role": "user", "content": content}]}}
    body = {"environment": "weather", "policy": POLICY, "rows": [row] * rows}
    batch_id: str = http.post("/v1/batches", json=body).raise_for_status().json()["batch_id"]
    return batch_id


def model_requests(farm: LocalFarm) -> int:
    """Return how many generation calls the model server has seen."""
    return int(httpx.get(f"{farm.model_url}/admin/stats").json()["requests"])


@pytest.mark.both_carriers
def test_a_drained_policy_has_no_call_in_flight_and_held_calls_survive(farm: LocalFarm, http: httpx.Client) -> None:
    before = model_requests(farm)
    batch_id = submit(http, 40)
    give_up_at = time.monotonic() + 30
    while model_requests(farm) < before + 60 and time.monotonic() < give_up_at:
        time.sleep(0.01)
    paused = http.post(f"/v1/policies/{POLICY}/pause", json={"mode": "drain", "timeout_s": 20}).json()
    assert paused["in_flight"] == 0
    assert paused["obeyed"]
    sent = httpx.get(f"{farm.model_url}/admin/stats").json()
    assert sent["in_flight"] == 0
    time.sleep(1)  # a stretch of pause: the test shows that nothing happens in it
    assert httpx.get(f"{farm.model_url}/admin/stats").json()["requests"] == sent["requests"]
    assert http.get(f"/v1/policies/{POLICY}").json()["paused"] == "drain"

    resumed = http.post(f"/v1/policies/{POLICY}/resume", json={"version": 2}).json()
    assert (resumed["paused"], resumed["version"]) == (None, 2)
    page: dict[str, object] = {"done": False}
    items: list[dict[str, object]] = []
    after = ""
    give_up_at = time.monotonic() + 60
    while not page["done"] and time.monotonic() < give_up_at:
        params = {"wait": "10", **({"after": after} if after else {})}
        page = http.get(f"/v1/batches/{batch_id}/results", params=params).json()
        items += page["items"]  # type: ignore[operator]  # decoded JSON
        after = str(page["next_after"])
    assert [item["outcome"] for item in items] == ["succeeded"] * 40
    spans = [item["policy_version"] for item in items]
    assert {"min": 1, "max": 2} in spans
    assert all(span in ({"min": 1, "max": 2}, {"min": 2, "max": 2}, {"min": 1, "max": 1}) for span in spans)


def test_pausing_a_policy_that_is_not_there_is_404(http: httpx.Client) -> None:
    assert http.post("/v1/policies/nobody/pause", json={"mode": "hold"}).status_code == 404
    assert http.post("/v1/policies/nobody/resume").status_code == 404


def test_a_pause_of_an_unknown_mode_is_422(http: httpx.Client) -> None:
    assert http.post(f"/v1/policies/{POLICY}/pause", json={"mode": "stop"}).status_code == 422
