"""What farm doctor makes of the pool's Ray and of clocks."""

from __future__ import annotations

import pytest

from api.cli.doctor.checks import Level
from api.cli.doctor.pool_checks import check_pool, clock_check
from gym.config import load_settings


@pytest.mark.parametrize(("offset_s", "level"), [(0.4, Level.OK), (-30.0, Level.WARN), (30.0, Level.WARN)])
def test_clocks_that_are_apart_are_a_warning(offset_s: float, level: Level) -> None:
    assert clock_check(offset_s).level == level


def test_without_pooled_judges_ray_is_not_asked_for() -> None:
    assert list(check_pool(load_settings(None))) == []


def test_an_interpreter_that_is_not_there_fails() -> None:
    settings = load_settings(None, pool={"python": "/nowhere/python", "judges": {"judge": {}}})
    [check] = check_pool(settings)
    assert check.level == Level.FAIL
    assert "/nowhere/python" in check.seen
