"""Any input of a client is answered in the shape of the contract, and never with a 500."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.app import create_app
from gym.config import Settings

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ROW = st.fixed_dictionaries(
    {"responses_create_params": st.just({"input": "x"}) | JSON},
    optional={
        "environment": st.sampled_from(["weather", "sql", "reasoning_gym", "stateful_counter"]) | JSON,
        "task_id": st.sampled_from(["a", "b"]) | JSON,
        "num_samples": st.integers(-1, 3) | JSON,
        "agent": st.just("tool_loop") | JSON,
        "agent_ref": JSON,
    },
)
POLICY = st.fixed_dictionaries(
    {"base_urls": st.lists(st.just("http://127.0.0.1:1") | st.text().map("http://".__add__) | JSON) | JSON},
    optional={"model": JSON, "api_key": JSON, "version": JSON, "sampling_overrides": JSON, "token_ids": JSON},
)
BATCH = st.fixed_dictionaries(
    {},
    optional={
        "batch_id": st.sampled_from(["a", "b", "c"]) | JSON,
        "run": JSON,
        "policy": POLICY | JSON,
        "environment": st.just("weather") | JSON,
        "agent": JSON,
        "num_samples": st.integers(0, 4) | JSON,
        "priority": JSON,
        "weight": JSON,
        "limits": st.dictionaries(st.sampled_from(["max_turns", "deadline_s"]), JSON) | JSON,
        "sampling": JSON,
        "early_stop": st.fixed_dictionaries({"min_usable": JSON}) | JSON,
        "staleness": JSON,
        "metadata": JSON,
        "sealed": JSON,
        "rows": st.lists(ROW | JSON, max_size=3) | JSON,
    },
)
PROPERTY = settings(
    max_examples=settings.default.max_examples // 3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Caller:
    """Calls the app from tests that hypothesis drives."""

    def __init__(self, app_settings: Settings) -> None:
        self._loop = asyncio.new_event_loop()
        self._app = create_app(app_settings)
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._loop.run_until_complete(self._lifespan.__aenter__())

    def close(self) -> None:
        self._loop.run_until_complete(self._lifespan.__aexit__(None, None, None))
        self._loop.close()

    def __call__(self, method: str, path: str, content: bytes = b"", content_type: str = "application/json") -> None:
        """Call the app and check that the response follows the contract."""
        answer = self._loop.run_until_complete(self._call(method, path, content, content_type))
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert set(error) == {"code", "message", "details"}
            assert error["message"]
            if answer.status_code == 422:
                assert "field" in error["details"]

    async def _call(self, method: str, path: str, content: bytes, content_type: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://farm") as client:
            return await client.request(method, path, content=content, headers={"content-type": content_type})


@pytest.fixture
def call(settings: Settings) -> Iterator[Caller]:
    caller = Caller(settings)
    yield caller
    caller.close()


def dumps(value: Any) -> bytes:
    """Write JSON, including values that orjson refuses to write."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        import json

        return json.dumps(value).encode(errors="surrogatepass")


@PROPERTY
@given(body=BATCH | JSON)
def test_any_json_as_a_batch(call: Caller, body: Any) -> None:
    call("POST", "/v1/batches", dumps(body))


@PROPERTY
@given(rows=st.lists(ROW | JSON, max_size=5), cut=st.binary(max_size=5))
def test_any_lines_as_rows(call: Caller, rows: list[Any], cut: bytes) -> None:
    call("POST", "/v1/batches", b'{"batch_id": "open", "sealed": false, "environment": "weather"}')
    call("POST", "/v1/batches/open/rows", b"\n".join(map(dumps, rows)) + cut, "application/x-ndjson")


@PROPERTY
@given(body=POLICY | JSON, name=st.text(max_size=10))
def test_any_json_as_a_policy(call: Caller, body: Any, name: str) -> None:
    call("PUT", "/v1/policies/p", dumps(body))
    call("GET", "/v1/policies")
    call("PUT", "/v1/policies/" + quote(name.encode(errors="replace")), dumps(body))


@PROPERTY
@given(body=st.fixed_dictionaries({}, optional={"error_kinds": JSON, "rollout_ids": JSON}) | JSON)
def test_any_json_as_a_requeue(call: Caller, body: Any) -> None:
    call("POST", "/v1/batches", b'{"batch_id": "done"}')
    call("POST", "/v1/batches/done/requeue", dumps(body))


@PROPERTY
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"]),
    family=st.sampled_from(["batches", "rollouts", "groups", "environments", "policies"]),
    item=st.text(max_size=12) | st.binary(max_size=12),
    rest=st.sampled_from(["", "/rows", "/seal", "/results", "/requeue"]),
    query=st.dictionaries(
        st.sampled_from(["after", "limit", "wait", "view", "run", "state"]), st.text(max_size=6) | st.just("0")
    ),
    body=st.binary(max_size=30),
)
def test_any_path_and_query(
    call: Caller, method: str, family: str, item: str | bytes, rest: str, query: dict[str, str], body: bytes
) -> None:
    name = quote(item.encode(errors="replace") if isinstance(item, str) else item)
    text = "&".join(f"{key}={quote(value.encode(errors='replace'))}" for key, value in query.items())
    call(method, f"/v1/{family}/{name}{rest}?{text}", body)
