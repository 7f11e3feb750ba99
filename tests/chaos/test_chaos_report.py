"""The report of a run: times to recover, and the table."""

from __future__ import annotations

from collections import Counter

from tests.chaos.observations import Kill
from tests.chaos.report import Report, percentile, recovery_times, table

REPORT = Report(
    seed=7,
    kills=Counter({"redis": 2, "worker": 3}),
    rollouts=100,
    outcomes=Counter({"succeeded": 90, "cancelled": 10}),
    lost=0,
    duplicated=0,
    most_attempts=3,
    alarms={},
    polls=50,
    model_calls=400,
    late_call_s=0.5,
    recover_s=(1.0, 2.0, 9.0),
    took_s=90.0,
    load=4.2,
    breaches=(),
)


def kill(at: float) -> Kill:
    return Kill(at=at, kind="worker", pid=1)


def test_a_farm_has_recovered_when_it_is_ready_and_a_further_rollout_has_ended() -> None:
    ready = [(0.0, True), (5.0, False), (7.0, True)]
    assert recovery_times([kill(4.0)], ready, [3.0, 6.0]) == (3.0,)
    assert recovery_times([kill(4.0)], ready, [3.0, 9.5]) == (5.5,)


def test_after_the_last_rollout_readiness_alone_counts() -> None:
    assert recovery_times([kill(4.0)], [(6.0, True)], [3.0]) == (2.0,)


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(value) for value in range(100)], 0.95) == 95.0
    assert percentile([], 0.5) == 0.0


def test_the_table_has_a_line_for_each_seed_and_one_for_all() -> None:
    lines = table([REPORT, REPORT]).splitlines()
    assert len(lines) == 5
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:3] == ["7", "5", "3"]
    assert cells[-4:] == ["2.0", "9.0", "1.5", "4"]
    assert lines[-1].startswith("| **all** | 10 |")
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
