"""Values of environments through a whole farm: numbers of any library are taken, the rest fails its rollout alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.local.local_farm import LocalFarm, local_farm
from gym.client import connect_sync

MOST_CALL_S = 30.0
LONG = 123456789012345678901234567890
NEIGHBOURS = 100
MODULE = Path(__file__).with_name("odd_values.py")
HELD = ("float64", "float32", "float16", "array", "tensor", "decimal", "fraction", "plain")
UNSTORABLE = ("nan", "inf", "set", "bytes", "object", "awkward", "vector", "long", "none", "text", "circular", "deep")
TYPES = {
    **{name: name for name in ("set", "bytes", "object")},
    "nan": "numpy.float64",
    "inf": "float",
    "awkward": "Awkward",
    "vector": "numpy.ndarray",
    "long": "int",
    "none": "NoneType",
    "text": "str",
    "circular": "list",
    "deep": "list",
}


@pytest.fixture(scope="module")
def odd_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFarm]:
    """A farm of one worker that knows the odd environments."""
    settings = {
        "FARM_ENVIRONMENTS": json.dumps([f"{MODULE}:{name}" for name in ("Odd", "OddApart", "OddSteps")]),
        "FARM_WORKER_ENVIRONMENT_PROCESSES": "4",
    }
    options = ["--workers", "1", "--concurrency", "64", "--no-flower"]
    with local_farm(tmp_path_factory.mktemp("odd"), options=options, settings=settings) as farm:
        yield farm


def results_of(farm: LocalFarm, environment: str, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    """The rows' results in their order."""
    given = [{"responses_create_params": {"input": "[[say done]]"}, **row} for row in rows]
    with connect_sync(farm.url) as connected:
        batch = connected.submit(given, environment=environment, **options)
        found = {int(result.raw["rollout_id"].split(":")[-2]): result.raw for result in batch.results(view="full")}
    return [found[number] for number in range(len(rows))]


@pytest.mark.parametrize("environment", ["odd", "odd_apart"])
def test_an_integer_of_30_digits_in_a_row_is_the_one_that_the_environment_sees(
    odd_farm: LocalFarm, environment: str
) -> None:
    script = f'[[call is_account {{"number": {LONG}}}]]\n---\n[[say done]]'
    row = {"account": LONG, "where": "account", "responses_create_params": {"input": script, "metadata": {"a": "b"}}}
    (found,) = results_of(odd_farm, environment, [row])
    assert (found["outcome"], found["reward"]) == ("succeeded", 1.0), found["error"]
    (output,) = (each["output"] for each in found["response"]["output"] if each["type"] == "function_call_output")
    assert output == "true"


@pytest.mark.parametrize("environment", ["odd", "odd_apart"])
def test_an_integer_of_30_digits_in_a_session_is_kept(http: httpx.Client, environment: str) -> None:
    path = f"/v1/sessions/{opened(http, environment, account=LONG, where='account').json()['session_id']}"
    called = http.post(f"{path}/tools/is_account", json={"arguments": {"number": LONG}}).json()
    assert (called["output"], called["failed"]) == ("true", False)
    assert http.post(f"{path}/verify", json={"response": "done"}).json()["reward"] == 1.0


def test_numbers_of_any_library_are_rewards(odd_farm: LocalFarm) -> None:
    rows = [{"gives": name, "where": where} for name in (*HELD, "bool", "int") for where in ("reward", "component")]
    for row, result in zip(rows, results_of(odd_farm, "odd", rows), strict=True):
        assert result["outcome"] == "succeeded", (row, result["error"])
        expected = 0.5 if row["gives"] in HELD else 1.0
        found = result["reward"] if row["where"] == "reward" else result["reward_components"]["share"]
        assert found == expected, row


def test_a_value_that_cannot_be_stored_fails_its_rollout_alone_and_is_named(odd_farm: LocalFarm) -> None:
    odd = [
        {"gives": name, "where": where}
        for where in ("reward", "component", "facts")
        for name in UNSTORABLE
        if where != "facts" or name not in ("vector", "long", "none", "text")
    ]
    mixed = [*odd, *[{"gives": "float64"}] * NEIGHBOURS]
    results = results_of(odd_farm, "odd", mixed)
    for row, result in zip(odd, results, strict=False):
        error = result["error"]
        assert (result["outcome"], result["reward"], error["kind"]) == ("failed", None, "verifier_error"), row
        named = {"reward": "the reward", "component": "reward_components.share", "facts": "facts.weight"}[row["where"]]
        assert named in error["message"], (row, error)
        if row["where"] != "facts" or row["gives"] not in ("circular", "deep"):
            assert TYPES[row["gives"]] in error["message"], (row, error)
    assert [result["reward"] for result in results[len(odd) :]] == [0.5] * NEIGHBOURS


def test_values_of_an_environment_in_its_own_process_are_treated_alike(odd_farm: LocalFarm) -> None:
    odd = [{"gives": name, "where": "reward"} for name in ("set", "awkward", "nan", "deep")]
    facts = [{"gives": "set", "where": "facts"}, {"gives": "object", "where": "component"}]
    held = [{"gives": name, "where": where} for name in ("float32", "tensor") for where in ("reward", "component")]
    results = results_of(odd_farm, "odd_apart", [*odd, *facts, *held])
    for row, result in zip([*odd, *facts], results, strict=False):
        assert (result["outcome"], result["error"]["kind"]) == ("failed", "verifier_error"), (row, result)
        assert TYPES[row["gives"]] in result["error"]["message"], (row, result)
    rewards = [(result["reward"], result["reward_components"]) for result in results[len(odd) + len(facts) :]]
    assert rewards == [(0.5, {}), (1.0, {"share": 0.5})] * 2


def test_a_tool_that_gives_what_cannot_be_stored_is_an_environment_error(odd_farm: LocalFarm) -> None:
    rows = [
        {"responses_create_params": {"input": "[[call work]]\n---\n[[say done]]"}, "gives": name, "where": "tool"}
        for name in ("float64", "set", "object", "bytes", "nan", "circular", "long_int")
    ]
    results = results_of(odd_farm, "odd", rows)
    kinds = [
        None if result["error"] is None else (result["error"]["kind"], result["error"]["stage"]) for result in results
    ]
    failed = ("environment_error", "tool")
    assert kinds == [None, None, failed, failed, failed, failed, None]  # a set is shown as a list


def test_steps_of_numeric_libraries_are_taken_and_others_fail_with_field_and_type(odd_farm: LocalFarm) -> None:
    held = [
        *({"gives": name, "where": "reward"} for name in HELD),
        *({"gives": "bool", "where": where} for where in ("done", "observation", "info")),
        *({"gives": "vector", "where": where} for where in ("reset", "observation", "info")),
        {"gives": "long_int", "where": "info"},
    ]
    odd = [
        {"gives": name, "where": where}
        for where in ("reset", "observation", "info", "reward", "done")
        for name in ("set", "object", "awkward", "nan", "circular", "deep")
    ]
    results = results_of(odd_farm, "odd_steps", [*held, *odd])
    for row, result in zip(held, results, strict=False):
        assert result["outcome"] == "succeeded", (row, result["error"])
    for row, result in zip(odd, results[len(held) :], strict=True):
        assert (result["outcome"], result["error"]["kind"]) == ("failed", "environment_error"), (row, result)
        assert {"reset": "observation"}.get(row["where"], row["where"]) in result["error"]["message"], (row, result)


def test_a_300_mb_tool_output_is_cut_and_the_farm_does_not_grow(odd_farm: LocalFarm) -> None:
    call = {"responses_create_params": {"input": "[[call work]]\n---\n[[say done]]"}, "where": "tool"}
    results_of(odd_farm, "odd", [{**call, "gives": "plain"}] * 4)
    (before,) = workers(odd_farm)
    results = results_of(odd_farm, "odd", [{**call, "gives": name} for name in ("big_text", "big_list", "huge")])
    (after,) = workers(odd_farm)
    outputs = [
        item["output"]
        for result in results[:2]
        for item in result["response"]["output"]
        if item["type"] == "function_call_output"
    ]
    assert [len(output.encode()) <= 4 * 2**20 for output in outputs] == [True, True]
    assert all(output.endswith("[cut here: the output is longer than 4194304 bytes]") for output in outputs)
    assert (after - before) / 2**20 < 64


def workers(farm: LocalFarm) -> list[int]:
    """The resident bytes of each worker."""
    family = psutil.Process(farm.process.pid).children(recursive=True)
    return [process.memory_info().rss for process in family if process.cmdline()[-1:] == ["worker"]]


@pytest.fixture
def http(odd_farm: LocalFarm) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=odd_farm.url, timeout=MOST_CALL_S) as client:
        yield client


def opened(http: httpx.Client, environment: str, **row: Any) -> httpx.Response:
    given = {"responses_create_params": {"input": "Hello"}, **row}
    return http.post(f"/v1/environments/{environment}/sessions", json={"row": given})


def said(answer: httpx.Response) -> str:
    """The error's text; it is JSON with a code."""
    error = answer.json()["error"]
    assert error["code"]
    return str(error["message"])


@pytest.mark.parametrize("gives", ["set", "object", "awkward", "nan", "circular", "deep", "bytes"])
def test_every_call_of_a_session_answers_and_names_field_and_type(http: httpx.Client, gives: str) -> None:
    began = time.monotonic()
    first = opened(http, "odd_steps", gives=gives, where="reset")
    assert 400 <= first.status_code < 600
    assert "the observation" in said(first)

    for where in ("observation", "reward", "done", "info"):
        path = f"/v1/sessions/{opened(http, 'odd_steps', gives=gives, where=where).json()['session_id']}"
        step = http.post(f"{path}/step", json={"action": "go"})
        assert 400 <= step.status_code < 600, step.text
        assert where in said(step)
        assert http.delete(path).json()["closed"] is True

    for where in ("reward", "component", "facts"):
        path = f"/v1/sessions/{opened(http, 'odd', gives=gives, where=where).json()['session_id']}"
        verified = http.post(f"{path}/verify", json={"response": "done"})
        assert 400 <= verified.status_code < 600, verified.text
        assert {"component": "reward_components.share"}.get(where, where) in said(verified)
        called = http.post(f"{path}/tools/work", json={}).json()
        assert (called["output"], called["failed"]) == ("done", False)
        assert http.delete(path).json()["closed"] is True
    assert time.monotonic() - began < 4 * MOST_CALL_S


def test_values_of_numeric_libraries_are_told_over_rest(http: httpx.Client) -> None:
    vector = opened(http, "odd_steps", gives="vector", where="reset").json()
    assert vector["observation"] == [0.0, 0.0, 0.0]
    long = opened(http, "odd_steps", gives="long_int", where="info").json()
    step = http.post(f"/v1/sessions/{long['session_id']}/step", json={"action": "go"})
    assert json.loads(step.text)["info"] == {"value": 123456789012345678901234567890}
    scored = opened(http, "odd", gives="float32", where="reward").json()
    assert http.post(f"/v1/sessions/{scored['session_id']}/verify", json={"response": "x"}).json()["reward"] == 0.5


@pytest.mark.parametrize(
    "body",
    [
        b'{"action": "\\ud83c"}',
        b'{"action": 123456789012345678901234567890}',
        b'{"action": ' + b"9" * 5000 + b"}",
        b'{"action": NaN}',
        b'{"action": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        b'{"action": "\xff"}',
        b'{"action": ' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)
def test_any_action_is_answered(http: httpx.Client, body: bytes) -> None:
    path = f"/v1/sessions/{opened(http, 'odd_steps').json()['session_id']}"
    answer = http.post(f"{path}/step", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 413, 422), answer.text
    assert http.post(f"{path}/step", json={"action": "go"}).status_code == 200
    http.delete(path)


@pytest.mark.parametrize(
    "body",
    [
        b'{"arguments": {"a": "\\ud83c"}}',
        b'{"arguments": {"a": 123456789012345678901234567890}}',
        b'{"arguments": {"a": NaN}}',
        b'{"arguments": {"a": ' + b"[" * 300 + b"]" * 300 + b"}}",
        b'{"arguments": {"a": "' + b"x" * 2**21 + b'"}}',
    ],
)
def test_any_arguments_are_answered(http: httpx.Client, body: bytes) -> None:
    path = f"/v1/sessions/{opened(http, 'odd').json()['session_id']}"
    answer = http.post(f"{path}/tools/work", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 413, 422), answer.text
    assert http.post(f"{path}/tools/work", json={}).json()["output"] == "done"
    http.delete(path)


@pytest.mark.parametrize(
    "body",
    [
        b'{"response": "\\ud83c"}',
        b'{"response": [{"type": "message", "content": "\\ud83c", "n": 123456789012345678901234567890}]}',
        b'{"response": {"output": [{"type": "message", "content": 5}]}}',
        b'{"response": {"output": 5}}',
        b'{"response": ' + b'[{"a":' * 150 + b"1" + b"}]" * 150 + b"}",
    ],
)
def test_any_response_is_answered(http: httpx.Client, body: bytes) -> None:
    path = f"/v1/sessions/{opened(http, 'odd').json()['session_id']}"
    answer = http.post(f"{path}/verify", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 413, 422), answer.text
    assert http.post(f"{path}/verify", json={"response": "done"}).json()["reward"] == 0.5
    http.delete(path)


@pytest.mark.parametrize("seed", [2**70, -1, 2**31])
def test_any_seed_is_answered(http: httpx.Client, seed: int) -> None:
    row = {"responses_create_params": {"input": "Hello"}, "gives": "plain"}
    answer = http.post("/v1/environments/odd/sessions", json={"row": row, "seed": seed})
    assert answer.status_code in (201, 422), answer.text
