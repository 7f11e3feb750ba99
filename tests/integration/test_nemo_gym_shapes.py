"""The farm as NeMo Gym's collector sees it: its client's calls, made as it makes them, against a whole farm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import yaml

from api.local.local_farm import LocalFarm

CITIES = ("Oslo", "Lima", "Perth", "Riga")


@pytest.fixture
def http(farm: LocalFarm) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=farm.url, timeout=90) as client:
        yield client


def row(task: int, rollout: int = 0, **fields: Any) -> dict[str, Any]:
    content = f"what's it like in {CITIES[task % len(CITIES)]}?"
    return {
        "responses_create_params": {"input": [{"role": "user", "content": content}]},
        "agent_ref": {"type": "responses_api_agents", "name": "weather"},
        "_ng_task_index": task,
        "_ng_rollout_index": rollout,
        "anything": {"of": "the verifier's"},
        **fields,
    }


def agent_url(http: httpx.Client, name: str) -> str:
    """As `ServerClient.load_from_global_config` and `get_first_server_config_dict` find it; begins a job."""
    config = yaml.safe_load(json.loads(http.get("/global_config_dict_yaml").raise_for_status().content))
    server = next(iter(next(iter(config[name].values())).values()))
    return f"http://{server['host']}:{server['port']}"


def run(http: httpx.Client, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = http.post(f"{agent_url(http, 'weather')}/run" if not headers else "/run", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    verified: dict[str, Any] = answer.json()
    return verified


def test_a_row_is_answered_with_its_verify_response_and_exact_tokens_on_each_call(http: httpx.Client) -> None:
    answer = run(http, row(0))

    assert answer["reward"] == 1.0
    assert answer["anything"] == {"of": "the verifier's"}
    assert "_ng_failure_class" not in answer
    output = answer["response"]["output"]
    assert [item["type"] for item in output] == ["function_call", "function_call_output", "message"]
    call, message = output[0], output[2]
    assert len(call["generation_token_ids"]) == len(call["generation_log_probs"]) > 0
    seen = call["prompt_token_ids"] + call["generation_token_ids"]
    assert message["prompt_token_ids"][: len(seen)] == seen, "each prompt goes on from all tokens before it"


def test_a_row_that_is_posted_again_in_its_job_is_the_same_rollout(http: httpx.Client) -> None:
    first = run(http, row(1), **{"x-farm-job": "job-a"})
    again = run(http, row(1), **{"x-farm-job": "job-a"})
    other_sample = run(http, row(1, rollout=1), **{"x-farm-job": "job-a"})
    next_attempt = run(http, row(1, _ng_attempt_index=1), **{"x-farm-job": "job-a"})
    other_job = run(http, row(1), **{"x-farm-job": "job-b"})

    assert again == first
    assert len({answer["rollout_id"] for answer in (first, other_sample, next_attempt, other_job)}) == 4


def test_rows_posted_twice_at_the_same_time_run_once(http: httpx.Client) -> None:
    with ThreadPoolExecutor(16) as threads:
        bodies = [row(task) for task in range(8)] * 2
        answers = list(threads.map(lambda body: run(http, body, **{"x-farm-job": "job-c"}), bodies))

    assert len({answer["rollout_id"] for answer in answers}) == 8
    assert all(answer["reward"] == 1.0 for answer in answers)
    assert http.get("/v1/batches/nemo-gym-job-c").json()["ledger"]["submitted"] == 8


def test_reading_the_configuration_again_begins_a_new_job(http: httpx.Client) -> None:
    url = agent_url(http, "weather")
    first = http.post(f"{url}/run", json=row(2)).json()
    again = http.post(f"{url}/run", json=row(2)).json()
    agent_url(http, "weather")
    later = http.post(f"{url}/run", json=row(2)).json()

    assert first["rollout_id"] == again["rollout_id"] != later["rollout_id"]
    earlier = http.get(f"/v1/batches/{first['rollout_id'].rsplit(':', 2)[0]}").json()
    assert earlier["sealed"], "the job before takes no more rows"


def test_the_configuration_names_an_environment_server_for_each_agent_as_0_7_wants_it(http: httpx.Client) -> None:
    config = yaml.safe_load(json.loads(http.get("/global_config_dict_yaml").content))

    for name in ("weather", "sql", "reasoning_gym", "stateful_counter"):
        [server] = config[name]["environment_servers"].values()
        assert server["agent_server"]["name"] == name


def test_a_failed_rollout_is_a_row_with_its_failure_and_no_reward(http: httpx.Client) -> None:
    failing = row(0, agent_ref={"name": "sql"}, question="?")
    failing["responses_create_params"]["input"] = "no database"
    failing |= {"sql_schema": "this is no SQL", "schema": "this is no SQL"}
    answer = run(http, failing, **{"x-farm-job": "job-d"})

    assert answer["reward"] is None
    assert answer["_ng_failure_class"] in ("environment_error", "bad_row")
    assert answer["_ng_failure_terminal"] is True
    assert answer["response"]["output"] == []


def test_a_row_that_cannot_be_run_does_not_end_a_collection(http: httpx.Client) -> None:
    answer = run(http, row(0, agent_ref={"name": "nothing"}), **{"x-farm-job": "job-e"})

    assert answer["_ng_failure_class"] == "bad_row"
    assert "nothing" in answer["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{not json"])
def test_what_is_no_row_is_refused(http: httpx.Client, body: bytes) -> None:
    assert http.post("/run", content=body, headers={"content-type": "application/json"}).status_code in (400, 422)


def test_aggregate_metrics_describe_every_number_per_task_and_over_all(http: httpx.Client) -> None:
    rows = [
        {"_ng_task_index": task, "reward": float(task == 0), "response": {"usage": {"output_tokens": 10}}}
        for task in (0, 0, 1, 1)
    ]
    answer = http.post("/aggregate_metrics", json={"verify_responses": rows}).raise_for_status().json()

    assert answer["key_metrics"] == {"mean/reward": 0.5, "mean/output_tokens": 10.0}
    assert [group["mean/reward"] for group in answer["group_level_metrics"]] == [1.0, 0.0]
