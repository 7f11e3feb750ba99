"""Short runs of chaos, as several modules have them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.report import Report
from tests.chaos.run import RunOptions, Trouble, run


@pytest.fixture
def folder() -> Iterator[Path]:
    """Folder of a run's logs; its path is short, since Unix sockets and error messages like that."""
    with tempfile.TemporaryDirectory(prefix="chaos-test-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def run_now() -> Callable[[RunOptions, Path, Trouble], Report]:
    """Run a farm in trouble; fail where anything was lost, came twice or broke an invariant."""
    return _run_now


def _run_now(options: RunOptions, folder: Path, trouble: Trouble) -> Report:
    said: list[str] = []
    report = asyncio.run(run(options, folder, said.append, trouble))
    assert report.breaches == (), "\n".join([*said, *report.breaches])
    assert (report.lost, report.duplicated) == (0, 0)
    return report
