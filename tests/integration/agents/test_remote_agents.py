"""Services that are agents, on a whole farm: they are asked as NeMo Gym asks its remote agents."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.local.local_farm import LocalFarm, free_port, local_farm
from tests.integration.agents.service import Service, served

ENVIRONMENT = Path(__file__).with_name("said.py")
WITHIN_S = 100.0


@pytest.fixture(scope="module")
def farm() -> Iterator[LocalFarm]:
    """A farm with a service, one that is asked impatiently, and one that is away."""
    with served() as url, tempfile.TemporaryDirectory(prefix="farm-remote-") as folder:
        agents = {
            "remote": {"kind": "remote", "url": url, "api_key": "the-service-knows-me"},
            "hasty": {"kind": "remote", "url": url, "timeout_s": 1},
            "away": {"kind": "remote", "url": f"http://127.0.0.1:{free_port()}", "max_retries": 1},
        }
        settings = {
            "FARM_AGENTS": json.dumps(agents),
            "FARM_ENVIRONMENTS": json.dumps([f"{ENVIRONMENT}:Said"]),
        }
        options = ["--workers", "1", "--concurrency", "16", "--no-flower"]
        with local_farm(Path(folder), options=options, settings=settings) as started:
            yield started


@pytest.fixture
def http(farm: LocalFarm) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=farm.url, timeout=60) as client:
        yield client


def results_of(http: httpx.Client, tasks: list[tuple[str, str]], **options: Any) -> list[dict[str, Any]]:
    """The results of tasks, each an agent and a text, once all have ended."""
    rows = [
        {
            "environment": "said",
            "agent": agent,
            "responses_create_params": {"input": text},
            "wanted": "42",
            "task_id": f"t{number}",
        }
        for number, (agent, text) in enumerate(tasks)
    ]
    answer = http.post("/v1/batches", json={"rows": rows, **options})
    assert answer.status_code == 201, answer.text
    batch, give_up_at = answer.json()["batch_id"], time.monotonic() + WITHIN_S
    items: list[dict[str, Any]] = []
    after = ""
    while len(items) < len(rows):
        assert time.monotonic() < give_up_at, items
        params = {"wait": "10", "view": "full", **({"after": after} if after else {})}
        page = http.get(f"/v1/batches/{batch}/results", params=params).json()
        items += page["items"]
        after = page["next_after"] or after
    return sorted(items, key=lambda item: int(str(item["task_id"])[1:]))


def test_what_a_service_asks_the_model_under_its_rollout_becomes_the_trajectory(http: httpx.Client) -> None:
    [result] = results_of(http, [("remote", "solve [[say It is 42.]]")])
    assert (result["outcome"], result["reward"], result["model_calls"]) == ("succeeded", 1.0, 1)
    assert [item["type"] for item in result["response"]["output"]] == ["message"], "its answer was the model's"
    [segment] = result["segments"]
    assert 0 < sum(segment["loss_mask"]) < len(segment["token_ids"])
    body, headers = Service.seen[-1]
    assert headers["authorization"] == "Bearer the-service-knows-me"
    assert headers["x-farm-rollout"] == result["rollout_id"]
    assert body["tools"][0]["name"] == "hint"
    assert (body["model"], "wanted" in body) == ("policy", False), "what the verifier knows stays here"


def test_the_environments_tools_are_run_for_it_and_its_cookies_are_kept(http: httpx.Client) -> None:
    [result] = results_of(http, [("remote", "tool [[say Done.]]")])
    assert (result["error"], result["reward"], result["tool_calls"]) == (None, 1.0, 2)
    assert "42 (2) turns=2" in result["response"]["output"][-1]["content"][0]["text"]


def test_a_service_that_asks_no_model_is_scored_by_what_it_says(http: httpx.Client) -> None:
    [result] = results_of(http, [("remote", "mute")])
    assert (result["reward"], result["model_calls"], result["segments"]) == (1.0, 0, [])


def test_how_a_service_fails_decides_whether_it_is_asked_again(http: httpx.Client) -> None:
    names = ["busy", "broken", "refuse", "junk", "moved"]
    results = results_of(
        http,
        [*(("remote", f"{name} {time.time()}") for name in names), ("hasty", "slow"), ("away", "solve")],
        limits={"max_attempts": 2},
    )
    busy, broken, refused, junk, moved, slow, away = results
    assert (busy["outcome"], busy["reward"]) == ("succeeded", 0.0)
    kinds = [each["error"]["kind"] for each in results[1:]]
    assert kinds == ["agent_error"] * 6
    again = [len(each["error"]["attempts"]) for each in results[1:]]
    assert again == [2, 1, 1, 1, 1, 2], "what a repeat would meet again is not repeated"
    messages = [each["error"]["message"] for each in (broken, refused, junk, moved, slow, away)]
    for said, wanted in zip(
        messages,
        ["answered 500", "answered 422", "no object", "answered 307", "did not answer within 1 s", "cannot be reached"],
        strict=True,
    ):
        assert wanted in said


def test_a_service_that_calls_tools_for_ever_is_stopped_after_its_turns(http: httpx.Client) -> None:
    [result] = results_of(http, [("remote", "tool for ever")], limits={"max_turns": 1})
    assert (result["outcome"], result["stop_reason"], result["tool_calls"]) == ("succeeded", "max_turns", 1)
