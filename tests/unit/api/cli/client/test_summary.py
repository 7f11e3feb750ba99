"""The summary at the end of a batch."""

import io
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from api.cli.client.summary import Summary, pass_at_k, percentile
from api.cli.client.tables import summary_table
from gym.client import Result, read_result


def result(group: int = 0, sample: int = 0, *, reward: float | None = 1.0, **more: Any) -> Result:
    data: dict[str, Any] = {
        "rollout_id": f"b:{group}:{sample}",
        "batch_id": "b",
        "group_id": f"b:{group}",
        "task_id": str(group),
        "sample_index": sample,
        "environment": "weather",
        "outcome": "failed" if reward is None else "succeeded",
        "reward": reward,
        "model_calls": 2,
        "usage": {"input_tokens": 10, "output_tokens": 5},
        "timing": {"total_s": 1.0},
    }
    return read_result(data | more)


def error(kind: str, message: str) -> dict[str, Any]:
    return {"kind": kind, "stage": "setup", "message": message}


@given(n=st.integers(1, 8), data=st.data())
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


@given(n=st.integers(1, 4096), data=st.data())
def test_pass_at_k_stays_a_chance_and_grows_with_k(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    chance = pass_at_k(n, c, k)
    assert 0 <= chance <= 1
    assert chance >= pass_at_k(n, c, 1)
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)


@pytest.mark.parametrize(("n", "c", "k"), [(2, 3, 1), (2, 1, 3), (2, 1, 0), (2, -1, 1)])
def test_pass_at_k_of_nonsense_is_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(n, c, k)


def test_percentiles_lie_between_the_nearest_ranks() -> None:
    assert percentile([], 50) is None
    assert percentile([4.0], 95) == 4.0
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([float(value) for value in range(101)], 95) == 95
    assert percentile([0.0, 1.0], 95) == pytest.approx(0.95)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(0, 100))
def test_a_percentile_lies_within_its_values(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    assert found is not None
    assert min(values) - 1e-6 <= found <= max(values) + 1e-6


def test_the_figures_of_an_environment() -> None:
    summary = Summary()
    for group, rewards in enumerate([[1.0, 1.0], [1.0, 0.5], [0.0, 0.0]]):
        for sample, reward in enumerate(rewards):
            summary.add(result(group, sample, reward=reward))
    (line,) = summary.environments()
    assert (line.rollouts, line.succeeded, line.failed) == (6, 6, 0)
    assert line.mean_reward == pytest.approx(3.5 / 6)
    assert line.pass_at == {1: pytest.approx((1 + 0.5 + 0) / 3), 2: pytest.approx(2 / 3)}
    assert (line.turns, line.tokens, line.p50_s, line.p95_s) == (2, 15, 1.0, 1.0)


def test_a_failure_is_unscored_and_never_a_zero() -> None:
    summary = Summary()
    summary.add(result(0, 0, reward=1.0))
    summary.add(result(0, 1, reward=None, error=error("timeout", "too slow")))
    (line,) = summary.environments()
    assert line.mean_reward == 1.0
    assert line.pass_at == {1: 1.0}
    assert line.failed == 1


def test_nothing_scored_is_nothing_and_not_zero() -> None:
    summary = Summary()
    summary.add(result(reward=None, outcome="cancelled"))
    (line,) = summary.environments()
    assert (line.mean_reward, line.pass_at, line.turns, line.p50_s, line.cancelled) == (None, {}, None, None, 1)


def test_what_counts_as_solved_can_be_said() -> None:
    summary = Summary(success_at=0.5)
    summary.add(result(reward=0.5))
    assert summary.environments()[0].pass_at == {1: 1.0}


def test_a_rollout_that_ran_again_counts_once_as_it_ended_last() -> None:
    summary = Summary()
    summary.add(result(reward=None, error=error("worker_lost", "gone")))
    summary.add(result(reward=1.0, attempt=2))
    assert summary.environments()[0].rollouts == 1
    assert summary.failures() == []


def test_failures_are_counted_by_environment_and_kind_most_frequent_first() -> None:
    summary = Summary()
    for sample, kind in enumerate(["timeout", "environment_error", "environment_error"]):
        summary.add(result(0, sample, reward=None, error=error(kind, f"message {sample}")))
    assert [(line.kind, line.count, line.example) for line in summary.failures()] == [
        ("environment_error", 2, "message 1"),
        ("timeout", 1, "message 0"),
    ]


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    summary = Summary()
    for sample in range(8):
        summary.add(result(0, sample, environment="stateful_counter"))
    out = Console(width=80, file=io.StringIO())
    out.print(summary_table(summary.environments()))
    shown = out.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above
    assert "…" not in shown
    for word in ("stateful_counter", "succeeded", "pass@8", "1.000", "1.00"):
        assert word in shown


def test_environments_come_by_name() -> None:
    summary = Summary()
    summary.add(result(0, environment="weather"))
    summary.add(result(1, environment="sql"))
    assert [line.environment for line in summary.environments()] == ["sql", "weather"]
