"""Parked rollouts are visible in every view of the API, and failures can be requeued by kind."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gym.policy import PolicySpec
from gym.state.ledger.breakers import BreakerKey, Breakers, Casualty, environment_key, policy_key
from gym.state.ledger.rollouts import Rollouts
from gym.state.settings import BreakerSettings

pytestmark = pytest.mark.anyio

POLICY = {"base_urls": ["http://127.0.0.1:9/v1"], "model": "m"}


async def trip(worker: Any, key: BreakerKey) -> Breakers:
    """Open a circuit breaker by one failure, for a minute."""
    breakers = Breakers(worker.store, BreakerSettings(failures=1, probe_after_s=60))
    who = Casualty("b", "0:0", 1, "1")
    call = breakers.fail_call(key, who, seen_s=None, probe=False, stage="setup", error="nobody is there")
    assert breakers.failed((await worker.store.run_many([call]))[0]).opened
    return breakers


async def metrics(http: httpx.AsyncClient) -> dict[Any, float]:
    families = text_string_to_metric_families((await http.get("/metrics")).text)
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, *sorted(sample.labels.values())): sample.value for sample in samples}


async def test_a_batch_with_nothing_parked_says_so(http: httpx.AsyncClient, row: dict[str, Any]) -> None:
    batch_id = (await http.post("/v1/batches", json={"rows": [row]})).json()["batch_id"]
    assert (await http.get(f"/v1/batches/{batch_id}")).json()["parked"] == {"count": 0, "reasons": []}
    queues = (await http.get("/v1/queues")).json()
    assert (queues["parked"], queues["breakers"]) == (0, [])


async def test_a_parked_environment_is_seen_in_its_batch_the_queues_and_the_metrics(
    http: httpx.AsyncClient, row: dict[str, Any], worker: Any
) -> None:
    other = (await http.get("/v1/environments/sql")).json()["example_row"] | {"environment": "sql"}
    answer = await http.post("/v1/batches", json={"batch_id": "b", "rows": [row, other] * 2})
    assert answer.status_code == 201, answer.text
    await trip(worker, environment_key("sql"))
    assert len(await Rollouts(worker.store).take("b", 10, parked=["sql"])) == 2
    status = (await http.get("/v1/batches/b")).json()
    assert status["ledger"]["queued"] == 4
    assert status["parked"]["count"] == 2
    [reason] = status["parked"]["reasons"]
    assert (reason["kind"], reason["name"], reason["error"]) == ("environment", "sql", "nobody is there")
    assert reason["since"] < reason["next_probe_at"]
    assert [item["parked"]["count"] for item in (await http.get("/v1/batches")).json()["items"]] == [2]
    queues = (await http.get("/v1/queues")).json()
    assert queues["breakers"] == [reason]
    assert (queues["parked"], queues["items"][0]["parked"]) == (2, 2)
    found = await metrics(http)
    assert found["farm_breaker_open", "environment", "sql"] == 1
    assert found["farm_rollouts_active", "parked"] == 2


@pytest.mark.parametrize("policy", ["policy-a", POLICY], ids=["registered", "inline"])
async def test_an_open_policy_parks_all_that_waits_for_it_and_nothing_else(
    http: httpx.AsyncClient, row: dict[str, Any], worker: Any, policy: Any
) -> None:
    await http.put("/v1/policies/policy-a", json=POLICY)
    await http.post("/v1/batches", json={"batch_id": "b", "policy": policy, "rows": [row] * 3})
    await http.post("/v1/batches", json={"batch_id": "other", "rows": [row] * 3})
    await trip(worker, policy_key(policy if isinstance(policy, str) else PolicySpec.model_validate(policy)))
    await Rollouts(worker.store).take("b", 1)
    counts = {name: (await http.get(f"/v1/batches/{name}")).json()["parked"]["count"] for name in ("b", "other")}
    assert counts == {"b": 2, "other": 0}


async def test_a_policy_that_is_put_anew_is_probed_at_once_and_one_that_is_deleted_holds_nothing(
    http: httpx.AsyncClient, worker: Any
) -> None:
    await http.put("/v1/policies/policy-a", json=POLICY)
    breakers = await trip(worker, policy_key("policy-a"))
    assert not await breakers.may_probe(policy_key("policy-a"))
    await http.put("/v1/policies/policy-a", json=POLICY | {"base_urls": ["http://127.0.0.1:10/v1"]})
    assert await breakers.may_probe(policy_key("policy-a"))
    await http.delete("/v1/policies/policy-a")
    assert await breakers.all() == []


async def test_rollouts_that_lost_their_workers_run_again_by_that_kind(
    http: httpx.AsyncClient, row: dict[str, Any], worker: Any
) -> None:
    await http.post("/v1/batches", json={"batch_id": "b", "rows": [row] * 2})
    lost, failed = await worker.claim("b")
    await worker.end(failed, kind="verifier_error")
    rollouts = Rollouts(worker.store)
    await rollouts.recover("b", overdue_ms=0, max_attempts=1, dead_workers=["w1"])
    results = (await http.get("/v1/batches/b/results")).json()["items"]
    assert sorted(item["error"]["kind"] for item in results) == ["verifier_error", "worker_lost"]
    answer = await http.post("/v1/batches/b/requeue", json={"error_kinds": ["worker_lost"]})
    assert answer.json() == {"requeued": 1}
    [again] = await worker.claim("b")
    assert (again.member, again.attempt) == (lost.member, 2)
