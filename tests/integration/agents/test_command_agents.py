"""Programs that are agents, on a whole farm: their calls become the trajectory, and no process of them stays."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.local.local_farm import LocalFarm, local_farm
from gym.sandbox.base import SandboxUnavailable
from gym.sandbox.choose import find_provider

EXAMPLE = Path(__file__).parents[3] / "configs" / "examples" / "openai_agent.py"
ODD = Path(__file__).with_name("odd_agent.py")
ENVIRONMENT = Path(__file__).with_name("said.py")
SLEEP = "86397"  # seconds; also the mark by which what is left over would be found
WITHIN_S = 100.0
ADMIN = "a-key-of-the-administrator"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="farm-agents-") as name:
        (Path(name) / "tmp").mkdir()
        yield Path(name)


@pytest.fixture(scope="module")
def farm(folder: Path) -> Iterator[LocalFarm]:
    """A farm with agents that are programs; its API and its proxy want keys, which no agent has."""
    folder.chmod(0o755)
    copied = Path(shutil.copy(ODD, folder / "odd.py"))  # to where a sandbox's user may read it
    odd = {"kind": "command", "argv": [sys.executable, str(ODD)], "answer": "stdout"}
    agents = {
        "calculator": {"kind": "command", "argv": [sys.executable, str(EXAMPLE)]},
        "odd": odd,
        "hasty": {**odd, "timeout_s": 3},
        "boxed": {**odd, "argv": ["{python}", str(copied)], "sandbox": True, "readable": [str(copied)]},
        "patient": {
            **odd,
            "argv": ["{python}", str(copied)],
            "sandbox": True,
            "readable": [str(copied)],
            "timeout_s": 3,
        },
        "missing": {"kind": "command", "argv": ["no-such-program-here"]},
    }
    settings = {
        "FARM_AGENTS": json.dumps(agents),
        "FARM_ENVIRONMENTS": json.dumps([f"{ENVIRONMENT}:Said"]),
        "FARM_API_KEYS": json.dumps([{"key": ADMIN, "scopes": ["admin"]}]),
        "FARM_API_KEY": ADMIN,
        "FARM_WORKER_LEASE_TTL_S": "4",
        "FARM_MODEL_MAX_RETRIES": "0",
        "FARM_MODEL_UNHEALTHY_WAIT_S": "1",
        "TMPDIR": str(folder / "tmp"),
    }
    options = ["--workers", "1", "--concurrency", "16", "--no-flower"]
    with local_farm(folder / "data", options=options, settings=settings) as started:
        yield started


@pytest.fixture
def http(farm: LocalFarm) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=farm.url, timeout=60, headers={"authorization": f"Bearer {ADMIN}"}) as client:
        yield client


def row(agent: str, text: str, **extra: Any) -> dict[str, Any]:
    return {"environment": "said", "agent": agent, "responses_create_params": {"input": text}, **extra}


def results_of(http: httpx.Client, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    """The results in the order of the rows, once all have ended."""
    rows = [{**each, "task_id": f"t{number}"} for number, each in enumerate(rows)]
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


def processes_with(word: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(word in part for part in process.cmdline()):
                found.append(process)
    return found


def test_what_a_program_with_the_openai_sdk_asks_becomes_the_trajectory_that_is_scored(http: httpx.Client) -> None:
    task = 'How much is 19 and 23?\n[[call add {"a": 19, "b": 23}]]\n---\n[[say It is 42.]]'
    [result] = results_of(http, [row("calculator", task, wanted="42")])
    assert (result["outcome"], result["reward"], result["stop_reason"]) == ("succeeded", 1.0, "completed")
    assert [item["type"] for item in result["response"]["output"]] == [
        "function_call",
        "function_call_output",
        "message",
    ]
    assert result["response"]["output"][1]["output"] == "42"
    assert (result["model_calls"], result["tool_calls"]) == (2, 1)
    assert [each["role"] for each in result["responses_create_params"]["input"]] == ["system", "user"]
    [segment] = result["segments"]
    assert 0 < sum(segment["loss_mask"]) < len(segment["token_ids"])
    assert result["usage"]["output_tokens"] == sum(segment["loss_mask"])
    assert result["timing"]["model_s"] > 0


def test_what_an_agent_printed_is_its_answer_and_its_failure_is_not_the_models(
    http: httpx.Client, folder: Path
) -> None:
    printed, failed, silent, looked, stolen, missing = results_of(
        http,
        [
            row("odd", "print The end: 42", wanted="The end: 42"),
            row("odd", "fail"),
            row("odd", "silent"),
            row("odd", "look", wanted="OPENAI_BASE_URL"),
            row("odd", "steal"),
            row("missing", "hello"),
        ],
    )
    assert (printed["reward"], printed["error"]) == (1.0, None)
    assert [item["type"] for item in printed["response"]["output"]] == ["message", "message"]
    assert (failed["reward"], failed["error"]["kind"], failed["error"]["stage"]) == (None, "agent_error", "agent")
    assert "exit code 1: it went wrong with the key …" in failed["error"]["message"]
    assert failed["model_calls"] == 1, "what it had asked is kept"
    assert "made no model call through the proxy and said nothing" in silent["error"]["message"]
    assert looked["reward"] == 1.0
    assert "FARM_REDIS_URL" not in looked["response"]["output"][-1]["content"][0]["text"]
    assert "403" in stolen["error"]["message"]
    assert "exit code 127: no-such-program-here: No such file" in missing["error"]["message"]
    assert list((folder / "tmp").glob("farm-agent-*")) == []


def test_a_program_inherits_no_descriptor_of_the_worker(http: httpx.Client) -> None:
    for result in results_of(http, [row("odd", "descriptors") for _ in range(6)]):
        assert result["response"]["output"][-1]["content"][0]["text"] == "[0, 1, 2]"


def test_a_program_in_a_sandbox_inherits_no_descriptor_of_the_worker(http: httpx.Client) -> None:
    try:
        find_provider()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    for result in results_of(http, [row("boxed", "descriptors") for _ in range(3)]):
        assert result["response"]["output"][-1]["content"][0]["text"] == "[0, 1, 2]"


def test_a_program_is_killed_with_all_that_it_started(http: httpx.Client, folder: Path) -> None:
    with ThreadPoolExecutor() as beside:
        cutting = beside.submit(results_of, http, [row("odd", f"sleep {SLEEP}")], limits={"rollout_timeout_s": 7})
        lingered, slept = results_of(http, [row("odd", f"linger {SLEEP}"), row("hasty", f"sleep {SLEEP}")])
    [cut] = cutting.result()
    assert lingered["outcome"] == "succeeded"
    assert (slept["error"]["kind"], slept["stop_reason"]) == ("timeout", "timeout")
    assert "hasty took longer than 3 s" in slept["error"]["message"]
    assert cut["error"]["kind"] == "timeout"
    assert [each["model_calls"] for each in (lingered, slept, cut)] == [1, 1, 1]
    assert processes_with(SLEEP) == []
    assert list((folder / "tmp").glob("farm-agent-*")) == []


def test_a_program_that_asks_for_ever_is_refused_after_its_turns(http: httpx.Client) -> None:
    [result] = results_of(http, [row("odd", "many")], limits={"max_turns": 3})
    assert (result["outcome"], result["stop_reason"], result["model_calls"]) == ("succeeded", "max_turns", 3)


def test_an_agent_that_the_model_failed_is_not_to_blame(http: httpx.Client) -> None:
    [refused] = results_of(http, [row("calculator", "Hello [[status 400]]")])
    assert (refused["error"]["kind"], refused["error"]["stage"]) == ("model_rejected", "model")
    away = {"base_urls": ["http://127.0.0.1:9/v1"], "model": "m"}
    [unreachable] = results_of(http, [row("odd", "print yes")], policy=away, limits={"max_attempts": 2})
    tries = [each["kind"] for each in unreachable["error"]["attempts"]]
    assert tries == ["model_unreachable", "model_unreachable"], "as the infrastructure's failures, it runs again"


def test_an_agent_speaks_to_the_policy_that_its_batch_brought_along(http: httpx.Client, farm: LocalFarm) -> None:
    inline = {**farm.policy.model_dump(mode="json", exclude_none=True), "version": 5}
    [result] = results_of(http, [row("odd", "print yes", wanted="yes")], policy=inline)
    assert (result["reward"], result["policy_version"]) == (1.0, {"min": 5, "max": 5})


def test_a_program_in_a_sandbox_reaches_the_model_and_nothing_else(http: httpx.Client, folder: Path) -> None:
    try:
        find_provider()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    printed, dialled, failed, slept, stolen = results_of(
        http,
        [
            row("boxed", "print The end: 42", wanted="The end: 42"),
            row("boxed", f"dial {http.base_url.port}", wanted="nobody there, no other network"),
            row("boxed", "fail"),
            row("patient", f"sleep {SLEEP}"),
            row("boxed", "steal"),
        ],
    )
    assert (printed["error"], printed["reward"], printed["model_calls"]) == (None, 1.0, 1)
    assert (dialled["error"], dialled["reward"]) == (None, 1.0)
    assert "exit code 1: it went wrong with the key …" in failed["error"]["message"]
    assert slept["error"]["kind"] == "timeout"
    assert "403" in stolen["error"]["message"]
    assert processes_with(SLEEP) == []
    assert list((folder / "tmp").glob("farm-agent-*")) == []


def test_a_killed_workers_program_dies_and_the_next_attempt_begins_with_nothing(
    http: httpx.Client, farm: LocalFarm
) -> None:
    answer = http.post("/v1/batches", json={"rows": [row("odd", f"again {SLEEP}")]})
    batch, give_up_at = answer.json()["batch_id"], time.monotonic() + WITHIN_S
    while not (first := processes_with(SLEEP)):
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
    shown = http.get(f"/v1/rollouts/{batch}:0:0").json()
    assert (shown["state"], shown["captured"]["model_calls"]) == ("running", 1), "its calls are shown while it runs"
    assert shown["captured"]["response"]["output"][0]["role"] == "assistant"
    [worker] = [each for each in psutil.Process(farm.process.pid).children() if each.cmdline()[-1] == "worker"]
    worker.kill()
    assert psutil.wait_procs(first, timeout=60)[1] == []
    items: list[dict[str, Any]] = []
    while not items:
        assert time.monotonic() < give_up_at
        page = http.get(f"/v1/batches/{batch}/results", params={"wait": "10", "view": "full"}).json()
        items = page["items"]
    [result] = items
    assert "captured" not in http.get(f"/v1/rollouts/{batch}:0:0").json()
    assert (result["outcome"], result["attempt"], result["model_calls"]) == ("succeeded", 2, 2)
    assert [item["role"] for item in result["response"]["output"]] == ["assistant", "user", "assistant"]


def test_an_agent_that_is_not_in_the_settings_is_refused(http: httpx.Client) -> None:
    refused = http.post("/v1/batches", json={"rows": [row("somebody", "hello")]})
    assert refused.status_code == 422
    assert "there is no agent `somebody`; there are boxed, calculator, hasty" in refused.json()["error"]["message"]
