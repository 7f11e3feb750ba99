"""Environment sessions: over REST against a whole farm, and a worker's host with two api processes on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from api.local.local_farm import LocalFarm
from api.session_calls import SessionCalls, WantedSession
from api.shutdown import Shutdown
from gym.config import SessionSettings
from gym.environments.base import Step, SteppedEnvironment
from gym.environments.builtin.stateful_counter import StatefulCounter
from gym.environments.hosting.processes import EnvironmentProcesses
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import Registry, environment_type
from gym.errors import Invalid, NotFound, Overloaded, Unavailable
from gym.jsontypes import JsonObject
from gym.state.leases import Leases
from gym.state.redis.store import Store, end_tasks
from gym.state.session_records import SessionRecord, Sessions
from gym.trajectory import Trajectory
from workers.rollouts.session_host import SessionHost

COUNTER = {"initial_count": 3, "expected_count": 5, "responses_create_params": {"input": "count to five"}}


@pytest.fixture
def http(farm: LocalFarm) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=farm.url, timeout=60) as client:
        yield client


def opened(http: httpx.Client, environment: str = "stateful_counter", **fields: Any) -> dict[str, Any]:
    answer = http.post(f"/v1/environments/{environment}/sessions", json={"row": COUNTER, **fields})
    assert answer.status_code == 201, answer.text
    session: dict[str, Any] = answer.json()
    return session


def test_a_session_keeps_its_state_between_calls_and_is_scored(http: httpx.Client) -> None:
    session = opened(http)
    path = f"/v1/sessions/{session['session_id']}"
    assert session["observation"] == "count to five"
    assert {tool["name"] for tool in session["tools"]} == {"increment_counter", "get_counter_value"}

    before = http.post(f"{path}/verify", json={"response": "done"}).json()
    http.post(f"{path}/tools/increment_counter", json={"arguments": {"count": 2}}).raise_for_status()
    value = http.post(f"{path}/tools/get_counter_value", json={"arguments": {}}).json()
    after = http.post(f"{path}/verify", json={"response": {"output": []}}).json()

    assert orjson.loads(value["output"]) == {"count": 5}
    assert (before["reward"], after["reward"]) == (0.0, 1.0)
    assert after["expires_at"] >= session["expires_at"]
    assert http.delete(path).json() == {"session_id": session["session_id"], "closed": True}
    assert http.delete(path).json()["closed"] is False
    assert http.post(f"{path}/tools/get_counter_value", json={}).status_code == 404


def test_a_call_with_the_same_key_is_done_once(http: httpx.Client) -> None:
    path = f"/v1/sessions/{opened(http)['session_id']}"
    for _ in range(3):
        body = {"arguments": {"count": 1}}
        http.post(f"{path}/tools/increment_counter", json=body, headers={"Idempotency-Key": "a"}).raise_for_status()

    assert orjson.loads(http.post(f"{path}/tools/get_counter_value", json={}).json()["output"]) == {"count": 4}
    http.delete(path)


def test_the_same_id_and_row_is_the_same_session_and_another_row_a_conflict(http: httpx.Client) -> None:
    first = opened(http, session_id="mine-1")
    url = "/v1/environments/stateful_counter/sessions"
    again = http.post(url, json={"row": COUNTER, "session_id": "mine-1"})
    other = http.post(url, json={"row": {**COUNTER, "initial_count": 9}, "session_id": "mine-1"})

    assert again.status_code == 200
    assert {**again.json(), "expires_at": ""} == {**first, "expires_at": ""}
    assert (other.status_code, other.json()["error"]["code"]) == (409, "session_conflict")
    http.delete("/v1/sessions/mine-1")


def test_sessions_are_listed(http: httpx.Client) -> None:
    mine = {opened(http)["session_id"] for _ in range(3)}
    listed: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = http.get("/v1/sessions", params={"limit": "2", **after}).json()
        listed += page["items"]
        if page["next_after"] is None:
            break
        after = {"after": page["next_after"]}

    assert mine <= {session["session_id"] for session in listed}
    assert http.get(f"/v1/sessions/{min(mine)}").json()["environment"] == "stateful_counter"
    for session_id in mine:
        http.delete(f"/v1/sessions/{session_id}")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/environments/nothing/sessions", {"row": {}}, 404),
        ("/v1/environments/stateful_counter/sessions", {"row": {"expected_count": "many"}}, 422),
        ("/v1/environments/stateful_counter/sessions", {"rows": []}, 422),
        ("/v1/sessions/none/tools/x", {"arguments": {}}, 404),
        ("/v1/sessions/none/verify", {"response": {}}, 404),
    ],
)
def test_bad_calls_get_clear_errors(http: httpx.Client, path: str, body: dict[str, Any], status: int) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_tools_that_fail_are_answers_and_steps_of_a_tool_environment_are_refused(http: httpx.Client) -> None:
    path = f"/v1/sessions/{opened(http)['session_id']}"
    failed = http.post(f"{path}/tools/increment_counter", json={"arguments": {"count": "two"}}).json()
    unknown = http.post(f"{path}/tools/explode", json={"arguments": {}}).json()
    stepped = http.post(f"{path}/step", json={"action": 1})

    assert [failed["failed"], unknown["failed"]] == [True, True]
    assert stepped.status_code == 422
    http.delete(path)


class Corridor(SteppedEnvironment[Any]):
    """Walk to the end of a corridor."""

    name = "corridor"

    def reset(self) -> int:
        self.place = 0
        return self.place

    def step(self, action: Any) -> Step:
        if action not in ("left", "right"):
            raise ValueError("left or right")
        self.place += 1 if action == "right" else -1
        return Step(observation=self.place, reward=float(self.place == 2), done=self.place == 2)

    def verify(self, trajectory: Trajectory) -> float:
        return float(self.place == 2)

    @classmethod
    def example_row(cls) -> JsonObject:
        return {"responses_create_params": {"input": "walk"}}


class Host:
    """A worker's host with the parts that api processes need."""

    def __init__(self, store: Store, settings: SessionSettings, host: SessionHost) -> None:
        self.store = store
        self.settings = settings
        self.host = host

    def api(self) -> SessionCalls:
        return SessionCalls(self.store, Leases(self.store), self.settings)


@asynccontextmanager
async def hosting(redis_url: str, **settings: Any) -> AsyncIterator[Host]:
    section = SessionSettings(**settings)
    store = Store.connect(redis_url)
    registry = Registry([environment_type(StatefulCounter), environment_type(Corridor)])
    with EnvironmentThreads(2) as executor:
        host = SessionHost(store, section, registry, executor, EnvironmentProcesses(1), "worker-1", compare_every_s=1.0)
        task = asyncio.create_task(host.run())
        info = {"environments": registry.names(), "sessions": 0}
        await store.redis.zadd(store.keys.workers, {"worker-1": await store.now_ms() + 600_000})
        await store.redis.hset(store.keys.worker_info, "worker-1", orjson.dumps(info))
        try:
            yield Host(store, section, host)
        finally:
            await end_tasks([task])
            await host.close()
            await store.close()


def wanted(environment: str = "stateful_counter", **fields: Any) -> WantedSession:
    values: dict[str, Any] = {"session_id": None, "row": COUNTER, "seed": 1, "owner": "me", **fields}
    return WantedSession(environment=environment, **values)


@pytest.mark.anyio
async def test_a_stepped_environment_is_reset_and_stepped(redis_url: str) -> None:
    async with hosting(redis_url) as farm:
        calls = farm.api()
        record, made, _ = await calls.open(wanted("corridor", row=Corridor.example_row()))
        first = await calls.ask(record.session_id, "step", action="right")
        with pytest.raises(Invalid, match="left or right"):
            await calls.ask(record.session_id, "step", action="up")
        last = await calls.ask(record.session_id, "step", action="right")
        await calls.close()

    assert made["observation"] == 0
    assert (first["observation"], first["done"]) == (1, False)
    assert (last["observation"], last["done"], last["reward"]) == (2, True, 1.0)


@pytest.mark.anyio
async def test_a_session_goes_on_when_another_api_process_asks(redis_url: str) -> None:
    async with hosting(redis_url) as farm:
        first, second = farm.api(), farm.api()
        record, _, _ = await first.open(wanted())
        await first.ask(record.session_id, "tool", tool="increment_counter", arguments={"count": 4})
        await first.close()
        answer = await second.ask(record.session_id, "tool", tool="get_counter_value", arguments={})
        await second.close()

    assert orjson.loads(answer["output"]) == {"count": 7}


@pytest.mark.anyio
async def test_idle_sessions_expire_and_used_ones_stay(redis_url: str) -> None:
    async with hosting(redis_url, idle_s=1.5) as farm:
        calls = farm.api()
        (idle, _, _), (used, _, _) = await calls.open(wanted()), await calls.open(wanted())
        async with asyncio.timeout(30):
            while len(farm.host) == 2:
                await calls.ask(used.session_id, "tool", tool="get_counter_value", arguments={})
                await asyncio.sleep(0.05)
        await calls.ask(used.session_id, "tool", tool="get_counter_value", arguments={})
        with pytest.raises(NotFound):
            await calls.ask(idle.session_id, "tool", tool="get_counter_value", arguments={})
        await calls.close()


@pytest.mark.anyio
async def test_a_session_that_expires_while_redis_is_away_is_struck_off_when_it_is_back(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    strike, refused = Sessions.strike, 0

    async def refuse_once(self: Sessions, records: Sequence[SessionRecord]) -> None:
        nonlocal refused
        refused += 1
        if refused == 1:
            raise RedisConnectionError("away")
        await strike(self, records)

    monkeypatch.setattr(Sessions, "strike", refuse_once)
    async with hosting(redis_url, idle_s=0.5) as farm:
        calls = farm.api()
        await calls.open(wanted())
        async with asyncio.timeout(30):
            while (await Sessions(farm.store).page(after=None, limit=10))[0]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert refused == 2
        await calls.close()


@pytest.mark.anyio
async def test_sessions_are_capped_per_key(redis_url: str) -> None:
    async with hosting(redis_url, max_per_key=2) as farm:
        calls = farm.api()
        record, _, _ = await calls.open(wanted())
        await calls.open(wanted())
        with pytest.raises(Overloaded):
            await calls.open(wanted())
        await calls.open(wanted(owner="another"))
        await calls.ask(record.session_id, "close")
        await calls.open(wanted())
        await calls.close()


@pytest.mark.anyio
async def test_a_session_whose_worker_is_gone_is_not_waited_for(redis_url: str) -> None:
    async with hosting(redis_url) as farm:
        calls = farm.api()
        record, _, _ = await calls.open(wanted())
        await farm.store.redis.zrem(farm.store.keys.workers, "worker-1")
        await farm.store.redis.hset(farm.store.keys.session(record.session_id), "worker", "worker-gone")
        with pytest.raises(NotFound):
            await calls.ask(record.session_id, "tool", tool="get_counter_value", arguments={})
        await calls.close()


@pytest.mark.anyio
async def test_2000_sessions_at_a_time_leave_nothing_behind(redis_url: str) -> None:
    async with hosting(redis_url) as farm:
        calls = farm.api()
        before = set(await farm.store.redis.keys("*"))
        together = asyncio.Semaphore(200)

        async def session(number: int) -> str:
            async with together:
                record, _, _ = await calls.open(wanted(seed=number))
                await calls.ask(record.session_id, "tool", tool="increment_counter", arguments={"count": 2})
                return record.session_id

        opened_ids = await asyncio.gather(*map(session, range(2000)))
        most = len(farm.host)

        async def end(session_id: str) -> float:
            async with together:
                reward = (await calls.ask(session_id, "verify", output=[]))["reward"]
                await calls.ask(session_id, "close")
                return float(reward)

        rewards = await asyncio.gather(*map(end, opened_ids))
        await calls.close()
        left = set(await farm.store.redis.keys("*")) - before

    assert most == 2000
    assert rewards == [1.0] * 2000
    assert len(farm.host) == 0
    assert not [key for key in left if b":session:" in key or key.endswith(b":sessions")]


@pytest.mark.anyio
async def test_a_session_call_whose_api_process_ends_is_asked_to_come_again(redis_url: str) -> None:
    shutdown = Shutdown()
    async with hosting(redis_url) as farm:
        await farm.store.redis.zadd(farm.store.keys.workers, {"silent": await farm.store.now_ms() + 600_000})
        await farm.store.redis.zrem(farm.store.keys.workers, "worker-1")
        info = {"environments": ["corridor"], "sessions": 0}
        await farm.store.redis.hset(farm.store.keys.worker_info, "silent", orjson.dumps(info))
        calls = SessionCalls(farm.store, Leases(farm.store), farm.settings, shutdown)
        asking = asyncio.create_task(calls.open(wanted("corridor", row=Corridor.example_row())))
        while not calls.waiting:  # noqa: ASYNC110  another task's state
            await asyncio.sleep(0.01)
        shutdown.begin()
        with pytest.raises(Unavailable, match="shutting down") as refused:
            await asyncio.wait_for(asking, 5)
        await calls.close()

    assert refused.value.retry_after_s
