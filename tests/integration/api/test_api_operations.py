"""Policies, environments, health, metrics, and behaviour without Redis."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from gym.config import Settings
from gym.state.alarms import Alarm, AlarmKind, Alarms
from gym.state.dispatcher_health import DispatcherHealth
from gym.state.leases import Leases
from gym.state.policies import Policies

pytestmark = pytest.mark.anyio
SECRET = "sk-very-secret"


@asynccontextmanager
async def app_of(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://farm", timeout=30) as client,
    ):
        yield client


@pytest.mark.both_carriers
async def test_a_policy_is_registered_shown_replaced_and_forgotten(http: httpx.AsyncClient) -> None:
    body = {"base_urls": ["http://user:hunter2@127.0.0.1:8000/v1/"], "model": "m", "api_key": SECRET, "version": 3}
    put = await http.put("/v1/policies/policy-a", json=body)
    assert put.status_code == 200
    shown = (await http.get("/v1/policies/policy-a")).json()
    assert put.json() == shown
    assert (shown["name"], shown["model"], shown["version"], shown["api"]) == ("policy-a", "m", 3, "chat")
    assert shown["api_key"] == "********"
    await http.put("/v1/policies/policy-a", json={**body, "version": 4})
    items = (await http.get("/v1/policies")).json()["items"]
    assert {item["name"]: item["version"] for item in items} == {"policy": None, "policy-a": 4}
    assert (await http.delete("/v1/policies/policy-a")).status_code == 200
    assert (await http.delete("/v1/policies/policy-a")).status_code == 404
    assert (await http.get("/v1/policies/policy-a")).status_code == 404


@pytest.mark.both_carriers
async def test_no_answer_ever_carries_a_key(http: httpx.AsyncClient, row: dict[str, Any]) -> None:
    policy = {"base_urls": ["http://user:hunter2@127.0.0.1"], "model": "m", "api_key": SECRET}
    answers = [
        await http.put("/v1/policies/p", json=policy),
        await http.put("/v1/policies/p", json={**policy, "model": ""}),
        await http.put("/v1/policies/p", json={**policy, "base_urls": ["http://u:hunter2@8.8.8.8"]}),
        await http.post("/v1/batches", json={"batch_id": "b", "policy": policy, "rows": [row]}),
        await http.post("/v1/batches", json={"batch_id": "b", "policy": {**policy, "bogus": 1}}),
        *[await http.get(path) for path in ("/v1/policies", "/v1/policies/p", "/v1/batches", "/v1/batches/b")],
    ]
    for answer in answers:
        assert SECRET not in answer.text
        assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"base_urls": []}, "base_urls"),
        ({"base_urls": ["ftp://x"]}, "base_urls"),
        ({"base_urls": ["http://8.8.8.8"]}, "base_urls"),
        ({"bogus": 1}, "bogus"),
        ({"version": 10**30}, "version"),
        ({"api": "completions"}, "api"),
    ],
)
async def test_a_policy_that_is_wrong_is_422_and_the_field_is_named(
    http: httpx.AsyncClient, changes: dict[str, Any], field: str
) -> None:
    body = {"base_urls": ["http://127.0.0.1"], "model": "m", **changes}
    answer = await http.put("/v1/policies/p", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["field"] == field
    assert (await http.put("/v1/policies/a b", json=body)).status_code == 422


async def test_a_restart_does_not_take_back_what_a_trainer_registered(settings: Settings, worker: Any) -> None:
    async with app_of(settings) as http:
        body = {"base_urls": ["http://127.0.0.1:1"], "model": "trained", "version": 7}
        assert (await http.put("/v1/policies/policy", json=body)).status_code == 200
    async with app_of(settings) as http:
        assert (await http.get("/v1/policies/policy")).json()["version"] == 7
    changed = settings.policies["policy"].model_copy(update={"model": "other"})
    async with app_of(settings.model_copy(update={"policies": {"policy": changed}})) as http:
        assert (await http.get("/v1/policies/policy")).json()["model"] == "other"
    assert (await Policies(worker.store).get("policy")).spec.api_key == SECRET


async def test_every_environment_has_an_example_row_that_is_taken(http: httpx.AsyncClient) -> None:
    items = (await http.get("/v1/environments")).json()["items"]
    assert {"weather", "reasoning_gym", "sql", "stateful_counter"} <= {item["name"] for item in items}
    for item in items:
        assert (await http.get(f"/v1/environments/{item['name']}")).json() == item
        body = {"environment": item["name"], "rows": [item["example_row"]]}
        # these settings have no judges
        assert (await http.post("/v1/batches", json=body)).status_code == (422 if item["judges"] else 201)
    missing = await http.get("/v1/environments/wether")
    assert missing.status_code == 404
    assert "did you mean `weather`" in missing.json()["error"]["message"]


async def test_ready_means_redis_a_worker_and_the_dispatcher(http: httpx.AsyncClient, worker: Any) -> None:
    assert (await http.get("/healthz")).status_code == 200
    answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["error"]["details"]["missing"] == ["worker", "dispatcher"]
    assert int(answer.headers["retry-after"]) > 0
    store = worker.store
    now = await store.now_ms()
    await Leases(store).lead("d1", 30)
    await store.redis.zadd(store.keys.workers, {"gone": now - 1})
    assert (await http.get("/readyz")).json()["error"]["details"]["missing"] == ["worker"]
    await store.redis.zadd(store.keys.workers, {"w1": now + 30_000})
    await store.redis.hset(store.keys.worker_info, "w1", orjson.dumps({"concurrency": 8, "running": 3}))
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    workers = {item["worker"]: item for item in (await http.get("/v1/workers")).json()["items"]}
    assert (workers["w1"]["alive"], workers["w1"]["slots"], workers["w1"]["running"]) == (True, 8, 3)
    assert workers["gone"]["alive"] is False
    assert (await http.get("/v1/judges")).json() == {"items": [], "judge_workers": 0}


async def test_metrics_and_queues_count_what_there_is(
    http: httpx.AsyncClient, row: dict[str, Any], worker: Any
) -> None:
    batch_id = (await http.post("/v1/batches", json={"rows": [row] * 4})).json()["batch_id"]
    [first, _] = await worker.claim(batch_id, 2)
    await worker.end(first)
    await http.get("/v1/batches/nobody")
    await http.get("/v1/batches/else")
    found = {}
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        for sample in family.samples:
            found[sample.name, *sorted(sample.labels.items())] = sample.value
    assert found["farm_rollouts_active", ("state", "queued")] == 2
    assert found["farm_rollouts_active", ("state", "running")] == 1
    assert found["farm_rollouts_total", ("outcome", "succeeded")] == 1
    assert found["farm_redis_up",] == 1
    labels = (("method", "GET"), ("route", "/v1/batches/{batch_id}"), ("status", "404"))
    assert found["farm_http_requests_total", *labels] == 2
    queues = (await http.get("/v1/queues")).json()
    assert (queues["queued"], queues["running"]) == (2, 1)
    assert queues["items"][0]["batch_id"] == batch_id


async def test_alarms_are_listed_counted_and_told_with_readiness(http: httpx.AsyncClient, worker: Any) -> None:
    alarms = Alarms(worker.store)
    lost = Alarm(kind=AlarmKind.NO_OWNER, batch_id="b", rollouts=("b:0:0",), message="one is lost")
    stuck = Alarm(kind=AlarmKind.NO_PROGRESS, batch_id="b", worker="w1", message="one is stuck")
    assert [await alarms.raise_alarm(alarm) for alarm in (lost, lost, stuck)] == [True, False, True]
    await alarms.clear(lost.name)
    listed = (await http.get("/v1/alarms")).json()
    assert [(item["event"], item["kind"]) for item in listed["items"]] == [
        ("cleared", "no_owner"),
        ("raised", "no_progress"),
        ("raised", "no_owner"),
    ]
    assert [alarm["worker"] for alarm in listed["standing"]] == ["w1"]
    text = (await http.get("/metrics")).text
    assert 'farm_alarms_total{kind="no_owner"} 1.0' in text
    assert 'farm_alarms_standing{kind="no_progress"} 1.0' in text
    assert "no_owner" not in text.replace('farm_alarms_total{kind="no_owner"}', "")
    await Leases(worker.store).lead("d1", 30)
    await worker.store.redis.zadd(worker.store.keys.workers, {"w1": await worker.store.now_ms() + 30_000})
    assert (await http.get("/readyz")).json() == {"status": "ready", "alarms": "one is stuck"}


@pytest.mark.both_carriers
async def test_what_is_not_there_has_the_shape_of_errors(http: httpx.AsyncClient) -> None:
    missing = await http.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = await http.patch("/v1/batches")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET, POST"
    assert (await http.get("/openapi.json")).json()["openapi"].startswith("3.")
    assert (await http.get("/docs")).status_code == 200


async def test_the_docs_page_loads_one_version_of_its_script_and_calls_nothing_but_the_api(
    http: httpx.AsyncClient,
) -> None:
    page = await http.get("/docs")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    addresses = set(re.findall(r"https?://[^\s'\"]+", page.text))
    assert addresses
    assert all("/swagger-ui-dist@5.17.14/" in address for address in addresses)
    [script] = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy


async def test_the_api_description_says_which_calls_need_a_key(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert document["paths"]["/v1/batches"]["post"]["security"] == [{"key": []}]


async def test_without_redis_calls_are_503_with_retry_after_and_the_process_is_alive(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = Settings(
        data_dir=tmp_path,
        redis={"url": f"redis://127.0.0.1:{port}/0"},
        policies={"policy": {"base_urls": ["http://127.0.0.1"], "model": "m"}},
    )
    async with app_of(settings) as http:
        assert (await http.get("/healthz")).status_code == 200
        calls = [
            ("GET", "/v1/batches/b"),
            ("POST", "/v1/batches"),
            ("GET", "/v1/policies"),
            ("DELETE", "/v1/batches/b"),
        ]
        answers = await asyncio.gather(
            *[http.request(method, path, json={} if method == "POST" else None) for method, path in calls]
        )
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "redis_unavailable")
            assert int(answer.headers["retry-after"]) > 0
        ready = await http.get("/readyz")
        assert ready.json()["error"]["details"]["missing"] == ["redis"]
        assert "farm_redis_up 0.0" in (await http.get("/metrics")).text


async def test_keys_are_asked_for_where_the_settings_have_them(settings: Settings) -> None:
    keys = [{"key": "read-only-key-0123456789", "scopes": ["read"]}]
    locked = settings.model_copy(update={"api": settings.api.model_validate({"keys": keys})})
    async with app_of(locked) as http:
        assert (await http.get("/v1/batches")).status_code == 401
        headers = {"authorization": f"Bearer {keys[0]['key']}"}
        assert (await http.get("/v1/batches", headers=headers)).status_code == 200
        assert (await http.post("/v1/batches", json={}, headers=headers)).status_code == 403
        assert (await http.get("/healthz")).status_code == 200


async def test_the_farm_is_not_ready_while_its_dispatcher_cannot_tick_and_says_why(
    http: httpx.AsyncClient, worker: Any
) -> None:
    store = worker.store
    await store.redis.zadd(store.keys.workers, {"w1": await store.now_ms() + 60_000})
    await store.redis.hset(store.keys.worker_info, "w1", b'{"concurrency": 4, "role": "worker"}')
    assert (await http.get("/readyz")).json()["error"]["details"]["missing"] == ["dispatcher"]  # no heartbeat
    assert await Leases(store).lead("d1", 60.0)
    health = DispatcherHealth(store, "d1")
    await health.failed(ValueError("what it met"))
    answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["error"]["details"] == {
        "missing": ["dispatcher"],
        "reasons": {"dispatcher": "it cannot tick: ValueError: what it met"},
    }
    await health.ticked()
    assert (await http.get("/readyz")).status_code == 200
    await store.redis.set(store.keys.dispatcher_tick, b"\xff garbage")
    assert (await http.get("/readyz")).status_code == 200
