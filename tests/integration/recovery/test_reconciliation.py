"""Redis says that a living worker holds what it does not, or the other way round: both are put right within a lease."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from gym.state.ledger.rollouts import Rollouts
from gym.state.redis.store import Store
from gym.state.session_records import Sessions

ASSIGNED = 8
COUNTER = {"initial_count": 3, "expected_count": 5, "responses_create_params": {"input": "count to five"}}


def lease_s(broken: Any) -> float:
    return float(broken.settings["FARM_WORKER_LEASE_TTL_S"])


def store_of(broken: Any) -> Store:
    return Store.connect((broken.local.data_dir / "redis" / "url").read_text())


async def assign(broken: Any, batch_id: str, worker: str) -> list[str]:
    """Rollouts of the backlog that Redis takes to be with a worker, which has never heard of them."""
    store = store_of(broken)
    rollouts = Rollouts(store)
    taken = await rollouts.take(batch_id, ASSIGNED)
    claims = await rollouts.claim(batch_id, worker, [(one.member, one.attempt) for one in taken])
    await store.close()
    return [f"{batch_id}:{claim.member}" for claim in claims]


def test_what_redis_assigns_to_a_worker_that_does_not_hold_it_runs_again_within_a_lease(
    broken: Any, until: Any
) -> None:
    broken.slow_model(0.3)
    worker = broken.workers()[0]["worker"]
    batch_id = broken.submit(400)
    until(lambda: broken.ledger(batch_id)["running"] > 64, "both workers are at work")
    unheld = asyncio.run(assign(broken, batch_id, worker))
    assert len(unheld) == ASSIGNED
    live = f"farm:b:{{{batch_id}}}:live"
    members = [rollout.removeprefix(f"{batch_id}:") for rollout in unheld]
    first = broken.redis.hmget(live, members)
    until(
        lambda: not set(first) & set(broken.redis.hmget(live, members)),
        "they are taken back",
        within_s=3 * lease_s(broken),
    )
    results = broken.results(batch_id)
    assert Counter(result["outcome"] for result in results) == {"succeeded": 400}
    assert {result["rollout_id"] for result in results if result["attempt"] == 2} == set(unheld)
    until(lambda: sum(each["taken"] for each in broken.workers()) == 0, "no slot is taken")


def test_what_a_worker_does_not_hold_fails_when_its_attempts_are_used_up(broken: Any, until: Any) -> None:
    broken.slow_model(0.3)
    worker = broken.workers()[0]["worker"]
    batch_id = broken.submit(400, limits={"max_attempts": 1})
    until(lambda: broken.ledger(batch_id)["running"] > 64, "both workers are at work")
    unheld = asyncio.run(assign(broken, batch_id, worker))
    results = broken.results(batch_id)
    failed = [result for result in results if result["outcome"] == "failed"]
    assert {result["rollout_id"] for result in failed} == set(unheld)
    assert {(result["error"]["kind"], result["error"]["retryable"]) for result in failed} == {("internal", True)}
    assert "may have lost its last writes" in failed[0]["error"]["message"]


def test_a_session_that_its_worker_does_not_hold_is_struck_off(broken: Any, until: Any) -> None:
    worker = next(each["worker"] for each in broken.workers() if each["alive"])

    async def enter() -> None:
        store = store_of(broken)
        await Sessions(store).enter(
            "nowhere", worker=worker, environment="stateful_counter", owner="", digest="d", most=100, idle_s=600
        )
        await store.close()

    asyncio.run(enter())
    until(lambda: not broken.redis.exists("farm:session:nowhere"), "it is gone", within_s=4 * lease_s(broken))
    assert broken.redis.zscore("farm:sessions", "nowhere") is None


def test_a_session_whose_record_is_lost_is_closed_by_its_worker(broken: Any, until: Any) -> None:
    answer = broken.http.post("/v1/environments/stateful_counter/sessions", json={"row": COUNTER})
    session_id = answer.raise_for_status().json()["session_id"]
    until(lambda: sum(each["sessions"] for each in broken.workers()) == 1, "it is open")
    broken.redis.delete(f"farm:session:{session_id}")
    until(lambda: sum(each["sessions"] for each in broken.workers()) == 0, "it is closed", within_s=4 * lease_s(broken))
    call = broken.http.post(f"/v1/sessions/{session_id}/tools/get_counter_value", json={"arguments": {}})
    assert (call.status_code, call.json()["error"]["code"]) == (404, "session_not_found")
    assert not broken.redis.exists(f"farm:session:{session_id}")
