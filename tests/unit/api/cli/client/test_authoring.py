"""`farm environments init`; tests/integration/environments runs the package that it writes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gym.environments.registry import load_registry


def test_the_written_class_is_an_environment_of_that_name(run: Any, tmp_path: Path) -> None:
    assert run("environments", "init", "word-count", "--into", str(tmp_path)).code == 0
    project = tomllib.loads((tmp_path / "word-count" / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["rollout_farm.environments"]
    registry = load_registry([f"{tmp_path}/word-count/word_count/__init__.py:WordCount"])

    assert points == {"word-count": "word_count:WordCount"}
    assert registry.get("word-count").error is None
    assert [tool.name for tool in registry.get("word-count").tools] == ["roll"]
    assert not [path for path in (tmp_path / "word-count").rglob("*") if path.is_file() and "@" in path.stem]


@pytest.mark.parametrize("name", ["Word", "3d", "a b", "gym", "class", "../up", ""])
def test_a_name_that_is_none_of_a_package_is_refused(run: Any, tmp_path: Path, name: str) -> None:
    assert run("environments", "init", name, "--into", str(tmp_path)).code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(run: Any, tmp_path: Path) -> None:
    (tmp_path / "coins").mkdir()
    done = run("environments", "init", "coins", "--into", str(tmp_path))
    assert done.code == 2
    assert "already exists" in done.err
    assert list((tmp_path / "coins").iterdir()) == []


def test_two_names_without_init_are_refused(run: Any) -> None:
    assert run("environments", "weather", "sql").code == 2
