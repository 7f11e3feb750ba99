"""`farm rows check`, without a farm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from api.cli.main import build

GOOD = {"responses_create_params": {"input": "Weather in Oslo?"}, "environment": "weather"}
COUNTER = {"responses_create_params": {"input": "count"}, "environment": "stateful_counter"}


def check(path: Path, *options: str) -> tuple[int, Any, str]:
    done = CliRunner().invoke(build(), ["rows", "check", str(path), *options])
    text = done.stdout
    return done.exit_code, json.loads(text) if "--json" in options else None, text


def test_a_good_file_is_counted_and_exits_with_0(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "num_samples": 3}, {**COUNTER, "initial_count": 1, "expected_count": 2}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, report, _ = check(tmp_path / "rows.jsonl", "--json", "--num-samples", "2")

    assert code == 0
    assert report["environments"] == {"weather": 2, "stateful_counter": 1}
    assert (report["rows"], report["rollouts"], report["bad_rows"]) == (3, 7, 0)


def test_every_problem_is_counted_with_its_lines(tmp_path: Path) -> None:
    bad: list[Any] = [GOOD, COUNTER, COUNTER, {**GOOD, "environment": "wether"}, 7, {"environment": "weather"}]
    twice = {**GOOD, "task_id": "a"}
    lines = [*map(json.dumps, bad), "not json", json.dumps(twice), json.dumps(twice)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    code, report, _ = check(tmp_path / "rows.jsonl", "--json")

    assert code == 1
    found = {each["problem"]: each["lines"] for each in report["problems"]}
    assert [lines for problem, lines in found.items() if "expected_count" in problem or "initial" in problem] == [
        [2, 3]
    ]
    assert [lines for problem, lines in found.items() if "did you mean `weather`?" in problem] == [[4]]
    assert [lines for problem, lines in found.items() if "JSON object" in problem] == [[5]]
    assert [lines for problem, lines in found.items() if "responses_create_params" in problem] == [[6]]
    assert (found["not JSON"], found["its task_id is already used on an earlier line"]) == ([7], [9])
    assert report["bad_rows"] == 7


def test_the_report_for_people_names_the_first_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(["{"] * 8))
    code, _, text = check(tmp_path / "rows.jsonl")
    assert code == 1
    assert "8  not JSON  (lines 1, 2, 3, 4, 5, and 3 more)" in " ".join(text.split("\n"))


@pytest.mark.parametrize("environment", ["weather", None])
def test_rows_without_an_environment_take_the_one_that_is_given(tmp_path: Path, environment: str | None) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"responses_create_params": {"input": "Oslo?"}}))
    code, _, _ = check(tmp_path / "rows.jsonl", *(["--environment", environment] if environment else []))
    assert code == (0 if environment else 1)
