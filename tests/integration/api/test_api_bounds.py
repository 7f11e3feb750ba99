"""Bounds on the cost of one request: free objects, JSON that expands, pages of large batches."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest

from gym.fields.bounded import FREE_BYTES
from gym.plain import json_bounds

pytestmark = pytest.mark.anyio
LARGE = {"x": "y" * FREE_BYTES}
POLICY = {"base_urls": ["http://127.0.0.1:9/v1"], "model": "m"}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"metadata": LARGE}, "metadata"),
        ({"metadata": {"x": [[0] * 10 for _ in range(4000)]}}, "metadata"),
        ({"metadata": {f"key{number:05}": None for number in range(5000)}}, "metadata"),
        ({"sampling": LARGE}, "sampling"),
        ({"policy": {**POLICY, "sampling_overrides": LARGE}}, "policy"),
        ({"environment": "e" * 300}, "environment"),
        ({"agent": "a" * 300}, "agent"),
    ],
)
async def test_an_option_that_is_too_large_is_422_and_nothing_is_kept(
    http: httpx.AsyncClient, row: dict[str, Any], options: dict[str, Any], field: str
) -> None:
    answer = await http.post("/v1/batches", json={"rows": [row], "batch_id": "large", **options})
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["field"].startswith(field)
    assert len(answer.content) < 4096
    assert (await http.get("/v1/batches/large")).status_code == 404


async def test_a_policy_with_a_large_object_is_422(http: httpx.AsyncClient) -> None:
    answer = await http.put("/v1/policies/p", json={**POLICY, "sampling_overrides": LARGE})
    assert (answer.status_code, answer.json()["error"]["details"]["field"]) == (422, "sampling_overrides")


@pytest.mark.both_carriers
async def test_metadata_of_60_kb_is_kept_and_shown(http: httpx.AsyncClient, row: dict[str, Any]) -> None:
    metadata = {"x": "y" * 60_000}
    created = (await http.post("/v1/batches", json={"rows": [row], "metadata": metadata})).json()
    shown = (await http.get(f"/v1/batches/{created['batch_id']}")).json()
    assert shown["options"]["metadata"] == metadata


@pytest.mark.both_carriers
async def test_a_page_of_large_batches_is_cut_and_goes_on(http: httpx.AsyncClient) -> None:
    ids = []
    for _ in range(80):
        body = {"sealed": False, "metadata": {"x": "y" * 60_000}}
        ids.append((await http.post("/v1/batches", json=body)).json()["batch_id"])
    first = (await http.get("/v1/batches", params={"limit": 1000})).json()
    assert 0 < len(first["items"]) < 80
    seen = [batch["batch_id"] for batch in first["items"]]
    after = first["next_after"]
    while after is not None:
        page = (await http.get("/v1/batches", params={"limit": 1000, "after": after})).json()
        seen += [batch["batch_id"] for batch in page["items"]]
        after = page["next_after"]
    assert seen == ids[::-1]


@pytest.mark.both_carriers
async def test_json_that_unpacks_to_far_more_than_it_has_is_413(
    http: httpx.AsyncClient, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_bounds, "_UNCOUNTED_BYTES", 0)
    monkeypatch.setattr(json_bounds, "MOST_CONTAINERS", 500)
    nested = {**row, "x": [[]] * 600}
    answer = await http.post("/v1/batches", json={"rows": [nested]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_values")
    batch = (await http.post("/v1/batches", json={"rows": [], "sealed": False})).json()["batch_id"]
    answer = await http.post(
        f"/v1/batches/{batch}/rows", content=orjson.dumps(nested), headers={"content-type": "application/x-ndjson"}
    )
    assert (answer.status_code, answer.json()["error"]["details"]["line"]) == (413, 1)


@pytest.mark.parametrize("name", [".", "..", "..."])
async def test_a_batch_may_not_be_called_what_no_path_can_say(
    http: httpx.AsyncClient, row: dict[str, Any], name: str
) -> None:
    answer = await http.post("/v1/batches", json={"rows": [row], "batch_id": name})
    assert (answer.status_code, answer.json()["error"]["details"]["field"]) == (422, "batch_id")


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:8701", "http://localhost:8701/v1"])
async def test_a_policy_at_the_farms_own_proxy_is_422(
    http: httpx.AsyncClient, row: dict[str, Any], base_url: str
) -> None:
    policy = {"base_urls": [base_url], "model": "m"}
    answer = await http.put("/v1/policies/loop", json=policy)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "policy_loops")
    answer = await http.post("/v1/batches", json={"rows": [row], "policy": policy})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "policy_loops")


@pytest.mark.parametrize("key", ["sk-\nx", "sk-\0"])
async def test_a_key_that_no_header_can_carry_is_422_and_not_repeated(http: httpx.AsyncClient, key: str) -> None:
    answer = await http.put("/v1/policies/p", json={**POLICY, "api_key": key})
    assert (answer.status_code, answer.json()["error"]["details"]["field"]) == (422, "api_key")
    assert "sk-" not in answer.text
