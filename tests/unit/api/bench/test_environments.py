"""The measurement of environment costs, with few repeats."""

import math
import subprocess
import sys

import psutil
import pytest

from api.bench.environments import environments
from api.bench.figures import Figure
from api.bench.meter import CpuMeter
from api.bench.places import PLACES
from gym.sandbox.base import SandboxUnavailable
from gym.sandbox.choose import find_provider


def has_sandbox() -> bool:
    try:
        find_provider()
    except SandboxUnavailable:
        return False
    return True


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    return environments(1, most=2)


@pytest.mark.parametrize("place", [place.name for place in PLACES])
def test_each_place_has_figures_or_the_reason_why_not(figures: list[Figure], place: str) -> None:
    mine = [figure for figure in figures if figure.name == place or figure.name.startswith(f"{place}: ")]
    if place.startswith("sandbox") and not has_sandbox():
        assert [bool(figure.missing) for figure in mine] == [True]
        return
    assert {figure.name.rpartition(", ")[2] for figure in mine} == {"p50", "p95", "CPU"}
    assert all(figure.missing is None and figure.value > 0 for figure in mine)


def test_what_is_killed_with_its_session_counts_with_the_cpu_of_its_start(figures: list[Figure]) -> None:
    cost = {figure.name: figure.value for figure in figures}
    assert cost["process, new one: setup + close, CPU"] > 50  # it imports the farm
    if has_sandbox():
        assert cost["sandbox, cold, python_exec: setup + close, CPU"] > 10  # it starts Python


def test_nothing_is_left_of_it(figures: list[Figure]) -> None:
    assert figures
    assert [child.cmdline() for child in psutil.Process().children() if "gym.testing" in str(child.cmdline())] == []


def test_a_figure_that_is_missing_has_no_median_and_reaches_nothing() -> None:
    figure = Figure(case="c", name="n", unit="ms", repeats=(), target=1.0, missing="no sandbox")
    assert math.isnan(figure.value)
    assert figure.reached is None
    assert (figure.as_dict()["median"], figure.as_dict()["missing"]) == (None, "no sandbox")


def test_the_meter_keeps_what_a_process_used_before_it_was_killed() -> None:
    meter = CpuMeter()
    work = "sum(range(3_000_000)); print(1, flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE) as process:
        before = meter.read_s()
        assert process.stdout is not None
        process.stdout.readline()
        used = meter.read_s() - before
        process.kill()
    assert used > 0.005
    assert meter.read_s() >= before + used
