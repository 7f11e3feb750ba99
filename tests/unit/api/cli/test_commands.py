"""The client's commands, against a farm in memory."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from api.cli.client.tables import ledger_text, parked_text
from api.cli.doctor.checks import check_endpoint
from gym.client.records import read_status
from gym.jsontypes import JsonObject
from gym.testing.stand_ins.fake_farm import FakeFarm, Fault

ROW: JsonObject = {"responses_create_params": {"input": "How is the weather in Paris?"}, "environment": "weather"}


def flaky(row: JsonObject, sample: int) -> JsonObject:
    if sample == 0:
        error = {"kind": "environment_error", "stage": "setup", "message": "the [database] is away", "retryable": False}
        return {"outcome": "failed", "stop_reason": "error", "error": error}
    return {"outcome": "succeeded", "stop_reason": "completed", "reward": 1.0, "model_calls": 2}


def test_submit_says_what_it_made_and_how_to_watch_it(farm: FakeFarm, run: Any, write_rows: Any) -> None:
    done = run("submit", write_rows(ROW, ROW), "--num-samples", "4", "--batch-id", "mine", "--run", "r")
    assert done.code == 0
    assert "batch mine: 8 rollouts from 2 rows" in done.out
    assert "farm watch mine" in done.out
    assert farm.batches["mine"].body["run"] == "r"


def test_submit_with_follow_writes_every_result_once_and_ends_with_a_table(
    farm: FakeFarm, run: Any, write_rows: Any, tmp_path: Path
) -> None:
    out = tmp_path / "results.jsonl"
    done = run("submit", write_rows(*[ROW] * 5), "--num-samples", "2", "--follow", "--out", out)
    assert done.code == 0
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({result["rollout_id"] for result in results}) == len(results) == 10
    assert "weather" in done.out
    for heading in ("rollouts", "succeeded", "reward", "pass@1", "pass@2", "turns", "tokens", "p50", "p95"):
        assert heading in done.out
    assert "10/10" in done.err


def test_submit_with_follow_and_json_prints_nothing_but_json(run: Any, write_rows: Any, monkeypatch: Any) -> None:
    with FakeFarm(outcome=flaky) as farm:
        done = run("submit", write_rows(ROW), "--num-samples", "2", "--follow", "--json", "--url", farm.url)
    answer = json.loads(done.out)
    assert answer["batch"]["ledger"]["succeeded"] == 1
    assert answer["environments"][0]["pass_at"] == {"1": 1.0}
    assert answer["failures"] == [
        {"environment": "weather", "kind": "environment_error", "count": 1, "example": "the [database] is away"}
    ]


def test_failures_are_told_by_kind_as_they_were_written(run: Any, write_rows: Any) -> None:
    with FakeFarm(outcome=flaky) as farm:
        done = run("submit", write_rows(ROW, ROW), "--num-samples", "2", "--follow", "--url", farm.url)
    assert "environment_error" in done.out
    assert "the [database] is away" in done.out


def test_rows_come_from_standard_input_too(farm: FakeFarm, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(ROW).encode() + b"\n\n" + json.dumps(ROW).encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text)))
    done = run("submit", "-", "--batch-id", "piped", "--json")
    assert json.loads(done.out)["submitted"] == 2


def test_a_line_that_is_not_json_is_named_and_nothing_is_sent(farm: FakeFarm, run: Any, write_rows: Any) -> None:
    done = run("submit", write_rows(ROW, "", "{broken", ROW))
    assert done.code == 2
    assert done.err.startswith("error: rows.jsonl, line 3: not JSON")
    assert len(done.err.splitlines()) == 1
    assert farm.requests == []


@pytest.mark.parametrize("empty", [True, False])
def test_a_file_that_holds_no_row_or_is_not_there_is_named(
    farm: FakeFarm, run: Any, tmp_path: Path, *, empty: bool
) -> None:
    if empty:
        (tmp_path / "rows.jsonl").touch()
    done = run("submit", tmp_path / "rows.jsonl")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert "rows.jsonl" in done.err


def test_a_row_that_is_refused_is_named_with_its_line(farm: FakeFarm, run: Any, write_rows: Any) -> None:
    done = run("submit", write_rows(ROW, "", ROW | {"num_samples": "many"}))
    assert done.code == 2
    assert "rows.jsonl, line 3: row 1, field `num_samples`" in done.err
    assert farm.requests == []


def test_a_policy_by_url_is_sent_inline_and_one_by_name_as_its_name(farm: FakeFarm, run: Any, write_rows: Any) -> None:
    rows = write_rows(ROW)
    run("submit", rows, "--batch-id", "a", "--policy", "http://127.0.0.1:9/v1", "--model", "m")
    run("submit", rows, "--batch-id", "b", "--policy", "policy-a")
    assert farm.batches["a"].body["policy"] == {"base_urls": ["http://127.0.0.1:9/v1"], "model": "m"}
    assert farm.batches["b"].body["policy"] == "policy-a"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--policy", "http://127.0.0.1:9/v1"], "--model"),
        (["--model", "m"], "URL"),
        (["--out", "x.jsonl"], "--follow"),
        (["--num-samples", "0"], "num_samples"),
        (["--priority", "10"], "priority"),
        (["--no-such-option"], "no-such-option"),
    ],
)
def test_options_that_do_not_fit_are_exit_2(
    farm: FakeFarm, run: Any, write_rows: Any, options: list[str], words: str
) -> None:
    done = run("submit", write_rows(ROW), *options)
    assert done.code == 2
    assert words in done.err
    assert farm.batches == {}


def test_parked_rollouts_are_told_with_what_holds_them() -> None:
    reason = {"kind": "policy", "name": "p", "since": "2026-01-01T00:00:00Z", "error": "nobody is there [at all]"}
    status = read_status(
        {
            "batch_id": "b",
            "run": "b",
            "state": "running",
            "ledger": {"submitted": 3, "queued": 2, "succeeded": 1},
            "parked": {"count": 2, "reasons": [reason]},
        }
    )
    assert ledger_text(status) == "queued 2  succeeded 1  parked 2 (policy p)"
    assert parked_text(reason).plain == "rollouts are parked: policy p keeps failing: nobody is there [at all]"


def test_watch_follows_a_batch_that_exists(farm: FakeFarm, run: Any, write_rows: Any) -> None:
    run("submit", write_rows(ROW, ROW), "--batch-id", "b")
    done = run("watch", "b")
    assert done.code == 0
    assert "pass@1" in done.out


def test_results_come_as_a_table_as_lines_and_as_a_file(
    farm: FakeFarm, run: Any, write_rows: Any, tmp_path: Path
) -> None:
    run("submit", write_rows(*[ROW] * 5), "--batch-id", "b")
    assert "b:4:0" in run("results", "b").out
    lines = run("results", "b", "--json").out.splitlines()
    assert [json.loads(line)["rollout_id"] for line in lines] == [f"b:{number}:0" for number in range(5)]
    done = run("results", "b", "--view", "full", "--out", tmp_path / "r.jsonl")
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 5
    assert "5 results" in done.err


def test_a_rollout_is_shown_with_its_conversation(run: Any, write_rows: Any) -> None:
    def talked(row: JsonObject, sample: int) -> JsonObject:
        output = [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Where is Paris?"}]},
            {"type": "function_call", "name": "get_weather", "arguments": '{"city": "Paris"}'},
            {"type": "function_call_output", "output": "[cold]"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is cold."}]},
        ]
        error = {"kind": "verifier_error", "stage": "verify", "message": "no verdict", "attempts": [{"attempt": 1}]}
        params = row["responses_create_params"]
        return flaky(row, 1) | {"response": {"output": output}, "responses_create_params": params, "error": error}

    with FakeFarm(outcome=talked) as farm:
        run("submit", write_rows(ROW), "--batch-id", "b", "--url", farm.url)
        shown = run("show", "b:0:0", "--url", farm.url).out
        raw = json.loads(run("show", "b:0:0", "--json", "--url", farm.url).out)
    said = ["How is the weather", "Where is Paris?", "get_weather(", "[cold]", "It is cold.", "no verdict"]
    assert [word for word in said if word in shown] == said
    assert [shown.index(word) for word in said] == sorted(shown.index(word) for word in said)
    assert raw["rollout_id"] == "b:0:0"


def test_cancel_and_requeue_do_what_they_say(farm: FakeFarm, run: Any, write_rows: Any) -> None:
    run("submit", write_rows(ROW), "--batch-id", "b")
    assert run("requeue", "b", "--error-kind", "timeout").code == 0
    assert "cancelled b:0:0" in run("cancel", "b:0:0").out
    assert json.loads(run("cancel", "b", "--json").out) == {"cancelled": 0}
    changes = [request for request in farm.requests if not request.startswith("GET ")]
    assert changes[-3:] == ["POST /v1/batches/b/requeue", "DELETE /v1/rollouts/b:0:0", "DELETE /v1/batches/b"]


@pytest.mark.parametrize("name", ["b", "b:0", "b:0:0"])
def test_cancelling_an_unknown_name_says_so_and_cancels_nothing(farm: FakeFarm, run: Any, name: str) -> None:
    cancelled = run("cancel", name)
    assert (cancelled.code, cancelled.out) == (2, "")
    assert "no batch" in cancelled.err
    assert not [request for request in farm.requests if request.startswith("DELETE")]


@pytest.mark.parametrize("command", [["watch", "b"], ["cancel", "b"], ["show", "b:0:0"]])
def test_a_command_without_a_farm_says_so_within_seconds(run: Any, closed_url: str, command: list[str]) -> None:
    began = time.monotonic()
    ran = run(*command, "--url", closed_url)
    assert time.monotonic() - began < 10
    assert ran.code != 0
    assert f"no farm answers at {closed_url}" in ran.err


def test_rejudge_names_the_judge_and_the_rollouts(farm: FakeFarm, run: Any, write_rows: Any) -> None:
    run("submit", write_rows(ROW), "--batch-id", "b")
    assert "rejudging 0, skipped 0" in run("rejudge", "b", "--judge", "strict", "--rollout", "b:0:0").out
    assert farm.rejudges[-1] == {"rollout_ids": ["b:0:0"], "judge": "strict"}


def test_environments_are_listed_and_shown(farm: FakeFarm, run: Any) -> None:
    assert "get_weather" in run("environments").out
    assert "How is the weather in Paris?" in run("environments", "weather").out
    assert json.loads(run("environments", "weather", "--json").out)["name"] == "weather"


def test_environments_are_listed_and_shown_without_a_farm(run: Any, tmp_path: Path) -> None:
    config = tmp_path / "farm.yaml"
    config.write_text("environments: ['configs/examples/coin.py:Coin']\n")
    assert "coin" in run("environments", "--config", config).out
    assert json.loads(run("environments", "coin", "--config", config, "--json").out)["tools"][0]["name"] == "throw"


def test_an_unknown_environment_is_one_line_that_names_the_known_ones(farm: FakeFarm, run: Any) -> None:
    done = run("environments", "wether")
    assert done.code == 2
    assert "weather" in done.err


def test_a_named_farm_that_does_not_answer_is_not_replaced_by_this_installation(run: Any, closed_url: str) -> None:
    done = run("environments", "--url", closed_url)
    assert (done.code, done.out) == (1, "")


def test_rows_are_made_only_by_environments_that_can(run: Any) -> None:
    done = run("environments", "weather", "--generate", "chain_sum")
    assert done.code == 2
    assert "reasoning_gym" in done.err


def test_what_is_not_there_is_one_line_and_exit_2(farm: FakeFarm, run: Any) -> None:
    done = run("watch", "nowhere")
    assert (done.code, done.err.strip().splitlines()[-1]) == (2, "error: there is no batch nowhere")


def test_a_farm_that_cannot_answer_is_one_line_and_exit_1(farm: FakeFarm, run: Any) -> None:
    farm.faults += [Fault("GET", "/v1/environments", "503")] * 50
    farm.api_key = "another-key-than-none"
    done = run("environments")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1


def test_the_key_comes_from_option_or_environment(farm: FakeFarm, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    farm.api_key = "a-key-for-this-test"
    assert run("environments").code == 2
    assert run("environments", "--api-key", farm.api_key).code == 0
    monkeypatch.setenv("FARM_API_KEY", farm.api_key)
    assert run("environments").code == 0


def test_settings_are_shown_without_secrets(run: Any, tmp_path: Path) -> None:
    config = tmp_path / "farm.yaml"
    config.write_text("redis: {url: 'redis://:hidden@127.0.0.1/0'}\napi: {port: 9999}\n")
    done = run("config", "show", "--config", config)
    assert "port: 9999" in done.out
    assert "hidden" not in done.out
    assert json.loads(run("config", "show", "--json").out)["api"]["port"] == 8700


def test_settings_that_cannot_be_used_are_named(run: Any, tmp_path: Path) -> None:
    config = tmp_path / "farm.yaml"
    config.write_text("api: {prt: 1}\n")
    done = run("config", "show", "--config", config)
    assert done.code == 2
    assert "api.prt" in done.err


def test_a_mock_model_serves_until_it_is_stopped(run: Any) -> None:
    command = [sys.executable, "-m", "api.cli.main", "mock-model", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        try:
            url = line.removeprefix("ready ").strip()
            assert check_endpoint("p", f"{url}/v1", None).level == "ok"
            taken = run("mock-model", "--port", url.rpartition(":")[2])
            assert (taken.code, taken.err.count("\n")) == (2, 1)
            assert "--port" in taken.err
        finally:
            server.terminate()
        assert server.wait(10) == 0


def test_the_installed_command_shows_its_help() -> None:
    command = Path(sys.executable).with_name("farm")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    for name in (
        "submit",
        "watch",
        "results",
        "show",
        "cancel",
        "requeue",
        "rejudge",
        "environments",
        "doctor",
        "mock-model",
    ):
        assert name in done.stdout


def test_help_imports_nothing_heavy() -> None:
    heavy = ["httpx", "pydantic", "redis", "celery", "fastapi", "aiohttp", "yaml", "orjson"]
    program = (
        "import sys\nfrom api.cli.main import build\nbuild()\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]", done.stderr
