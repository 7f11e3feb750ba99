"""Environments that the settings give a name and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gym.config import load_settings
from gym.environments.registry import load_registry
from gym.environments.settings import EnvironmentEntry
from gym.errors import SettingsError

COIN = """
from pydantic import BaseModel
from gym.environments.base import Environment

class Options(BaseModel):
    sides: int = 2

class Coin(Environment):
    \"\"\"A coin.\"\"\"
    name = "coin"
    options_model = Options
    options = Options()

    def verify(self, trajectory):
        return float(self.options.sides)

    @classmethod
    def example_row(cls):
        return {"responses_create_params": {"input": f"{cls.options.sides} sides"}}
"""


@pytest.fixture
def coin(tmp_path: Path) -> str:
    (tmp_path / "coin.py").write_text(COIN)
    return f"{tmp_path}/coin.py:Coin"


def test_one_class_is_several_environments_with_options_of_their_own(coin: str) -> None:
    settings = load_settings(
        environments={"plain": coin, "die": {"use": coin, "sides": 6}, "broken": {"use": coin, "sides": "many"}}
    )
    registry = load_registry(settings.environments)

    inputs = [(registry.get(name).example_row or {})["responses_create_params"]["input"] for name in ("plain", "die")]
    assert inputs == ["2 sides", "6 sides"]
    assert registry.get("die").description == "A coin."
    assert "its options cannot be used: sides: Input should be a valid integer" in str(registry.get("broken").error)


def test_a_list_may_mix_classes_and_entries(coin: str) -> None:
    registry = load_registry(load_settings(environments=[coin, {"name": "die", "use": coin, "sides": 6}]).environments)
    assert registry.get("coin").error is None
    assert registry.get("die").error is None


def test_entries_survive_the_way_to_a_child_process(coin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(environments={"die": {"use": coin, "sides": 6}, "plain": coin})
    monkeypatch.setenv(
        "FARM_ENVIRONMENTS", settings.model_dump_json(include={"environments"})[len('{"environments":') : -1]
    )
    assert load_settings().environments == settings.environments


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"adapter": "nonsense"}, "there is no adapter 'nonsense'; there are"),
        ({"use": "no.such.module:Thing"}, "No module named 'no'"),
        ({"use": "gym.ids:new_id"}, "is not a subclass"),
        ({"use": "gym.environments.builtin.weather:Weather", "sides": 3}, "sides: Extra inputs are not permitted"),
    ],
)
def test_an_entry_that_cannot_be_loaded_is_listed_with_the_reason(entry: dict[str, Any], said: str) -> None:
    registry = load_registry([EnvironmentEntry(name="mine", **entry)])
    assert said in str(registry.get("mine").error)
    assert registry.get("weather").error is None


def test_an_entry_with_a_name_that_is_taken_is_listed_beside_it(coin: str) -> None:
    registry = load_registry([EnvironmentEntry(name="weather", use=coin)])
    assert registry.get("weather").error is None
    assert registry.get("settings:weather").error == "the name weather is taken by another environment"


@pytest.mark.parametrize(
    "entries", [{"mine": 3}, {"mine": {}}, {"mine": {"use": "a:B", "adapter": "c"}}, {"no id!": "a:B"}]
)
def test_an_entry_that_says_nothing_sensible_stops_the_start(entries: Any) -> None:
    with pytest.raises(SettingsError, match="environments"):
        load_settings(environments=entries)
