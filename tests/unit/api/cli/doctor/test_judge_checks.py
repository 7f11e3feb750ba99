"""Checks of the judge pool's Ray."""

from __future__ import annotations

from api.cli.doctor.checks import Level
from api.cli.doctor.judge_checks import check_pool
from gym.config import load_settings


def test_without_pooled_judges_ray_is_not_asked_for() -> None:
    assert list(check_pool(load_settings(None))) == []


def test_an_interpreter_that_is_not_there_fails() -> None:
    settings = load_settings(None, pool={"python": "/nowhere/python", "judges": {"judge": {}}})
    [check] = check_pool(settings)
    assert check.level == Level.FAIL
    assert "/nowhere/python" in check.seen
