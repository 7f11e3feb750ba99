"""Comparison of clocks."""

from __future__ import annotations

import pytest

from api.cli.doctor.checks import Level
from api.cli.doctor.remote_checks import clock_check


@pytest.mark.parametrize(("offset_s", "level"), [(0.4, Level.OK), (-30.0, Level.WARN), (30.0, Level.WARN)])
def test_clocks_that_are_apart_are_a_warning(offset_s: float, level: Level) -> None:
    assert clock_check(offset_s).level == level
