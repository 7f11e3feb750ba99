"""NeMo Gym's shapes: the head server's configuration, an agent's verify response, aggregate metrics. Pure.

Source: `nemo_gym/rollout_collection.py`, `server_utils.py` and `reward_profile.py` of NVIDIA-NeMo/Gym, and NeMo RL's
reader of results (`nemo_rl/environments/nemo_gym.py`). Tokens are on the last output item of each model call, with
the whole prompt before it, as NeMo RL expects them; the farm itself keeps them once (`segments`).

Invariant: a rollout that failed has the reward null and a `_ng_failure_class`, which the collector writes to its
failures file; it is never a reward of 0.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import orjson
import yaml

from gym.jsontypes import JsonObject

TASK, ROLLOUT, ATTEMPT, ROLLOUT_ID = "_ng_task_index", "_ng_rollout_index", "_ng_attempt_index", "_ng_rollout_id"
_FAILURE_CLASS, _TERMINAL = "_ng_failure_class", "_ng_failure_terminal"
_STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "max": max,
    "min": min,
    "median": statistics.median,
    "std": lambda values: statistics.stdev(values) if len(values) > 1 else 0.0,
}


def config_yaml(agents: Iterable[str], *, host: str, port: int) -> bytes:
    """The answer of `GET /global_config_dict_yaml`: YAML as a JSON text, with an agent for each environment.

    Up to 0.6 collectors post rows to the agent itself, from 0.7 on to the environment server that names the agent.
    """
    server = {"entrypoint": "app.py", "host": host, "port": port}
    config: JsonObject = {"head_server": {"host": host, "port": port}}
    for name in agents:
        agent = {"type": "responses_api_agents", "name": name}
        config[name] = {
            "responses_api_agents": {"rollout_farm": dict(server)},
            "environment_servers": {"rollout_farm": {**server, "agent_server": agent}},
        }
    return orjson.dumps(yaml.safe_dump(config, sort_keys=False))


def row_key(row: JsonObject, digest: str) -> str | None:
    """Return the identity of a repeated row: its indices and its content; None for a row without an index."""
    if row.get(ROLLOUT_ID) is None and row.get(TASK) is None:
        return None
    return ".".join(["ng", *(_index(row.get(name)) for name in (TASK, ROLLOUT, ATTEMPT)), digest])


def _index(value: object) -> str:
    return str(value) if isinstance(value, int) else "-"


def verify_response(row: JsonObject, result: JsonObject) -> JsonObject:
    """Return an agent's `/run` answer for a row: the row itself, and a result of the farm with `view=full`."""
    answer = {
        **row,
        "responses_create_params": result.get("responses_create_params") or row.get("responses_create_params"),
        "response": result.get("response") or _empty_response(result),
        "reward": result["reward"],
        "rollout_id": result["rollout_id"],
        "policy_version": result.get("policy_version"),
        "stop_reason": result.get("stop_reason"),
    }
    if result.get("reward_components"):
        answer["reward_components"] = result["reward_components"]
    if result["outcome"] != "succeeded" or result["reward"] is None:
        error = result.get("error") or {"kind": result["outcome"], "message": result.get("stop_reason") or ""}
        # unscored: it ended well, and no verifier made a number of it
        return answer | failure(error["kind"] if result["outcome"] != "succeeded" else "unscored", error)
    if result.get("response"):
        _add_tokens(answer["response"]["output"], result)
    return answer


def failed_response(row: JsonObject, *, kind: str, message: str) -> JsonObject:
    """Return the `/run` answer for a row that cannot be run at all."""
    error = {"kind": kind, "message": message, "retryable": False}
    return {**row, "response": _empty_response({}), "reward": None, **failure(kind, error)}


def failure(kind: str, error: JsonObject) -> JsonObject:
    """The marks of a failed row; a terminal one is not sent again by the collector."""
    return {_FAILURE_CLASS: kind, _TERMINAL: not error.get("retryable", False), "error": error}


def _empty_response(result: JsonObject) -> JsonObject:
    return {
        "id": f"resp_{result.get('rollout_id', 'none')}",
        "created_at": 0,
        "model": "",
        "object": "response",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "status": "failed",
        "usage": None,
    }


def _add_tokens(output: list[JsonObject], result: JsonObject) -> None:
    """Put each call's tokens on its last item; nothing where calls and tokens do not match one to one."""
    calls = [call for call in result["calls"] if call["has_tokens"] and call["output_tokens"]]
    spans = [
        (segment, start, end) for segment in result["segments"] for start, end, _version in segment["policy_versions"]
    ]
    if len(calls) != len(spans):
        return
    given = result["responses_create_params"].get("input")
    before = len(given) if isinstance(given, list) else 1
    for call, (segment, start, end) in zip(calls, spans, strict=True):
        last = call["request_items"] - before + call["reply_items"] - 1
        if call["reply_items"] and 0 <= last < len(output):
            output[last] |= {
                "prompt_token_ids": segment["token_ids"][:start],
                "generation_token_ids": segment["token_ids"][start:end],
                "generation_log_probs": segment["logprobs"][start:end],
            }


def aggregate_metrics(responses: Sequence[JsonObject]) -> JsonObject:
    """`POST /aggregate_metrics`: mean, max, min, median and standard deviation of every number, per task and over all.

    `responses` are verify responses without their heavy fields; usage counts as numbers of the response.
    """
    tasks: dict[int, list[JsonObject]] = defaultdict(list)
    for response in responses:
        tasks[response.get(TASK, 0)].append(response)
    overall = _described([_numbers(response) for response in responses])
    groups = [
        {TASK: task, "num_rollouts": len(group), **_described([_numbers(response) for response in group])}
        for task, group in sorted(tasks.items())
    ]
    return {
        "group_level_metrics": groups,
        "agent_metrics": overall,
        "key_metrics": {name: value for name, value in overall.items() if name.startswith("mean/")},
    }


def _numbers(response: JsonObject) -> dict[str, float]:
    usage: dict[str, Any] = (response.get("response") or {}).get("usage") or {}
    merged = {**response, **usage}
    return {
        name: float(value)
        for name, value in merged.items()
        if isinstance(value, int | float) and not name.startswith("_ng_")
    }


def _described(rows: list[dict[str, float]]) -> dict[str, float]:
    columns: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in islice(row.items(), 1000):
            columns[name].append(value)
    return {
        f"{statistic}/{name}": compute(values)
        for statistic, compute in _STATISTICS.items()
        for name, values in columns.items()
    }
