from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gym.environments.base import Environment, Row
from gym.environments.registry import Registry, environment_type, load_registry
from gym.errors import Invalid, NotFound

BUILT_IN = ["equivalence", "essay_similarity", "reasoning_gym", "sql", "stateful_counter", "weather"]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


def test_the_built_in_environments_are_all_there_and_none_is_disabled(registry: Registry) -> None:
    assert registry.names() == sorted([*BUILT_IN, "code"])
    assert [registry.get(name).error for name in BUILT_IN] == [None] * len(BUILT_IN)
    assert registry.get("reasoning_gym").agent == "single_turn"


def test_listing_and_checking_rows_imports_no_heavy_package() -> None:
    program = (
        "import sys; from gym.environments.registry import load_registry; registry = load_registry(); "
        "registry.describe(); "
        "[registry.check_row(name, registry.get(name).example_row, row=0) for name in registry.names() "
        "if registry.get(name).cls]; "
        "print([name for name in ('reasoning_gym', 'numpy', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_each_environment_is_described_by_json_alone(registry: Registry) -> None:
    for described in registry.describe():
        if described["name"] == "code":
            described.pop("error", None)
        assert set(described) == {"name", "description", "tools", "judges", "row_schema", "example_row"}
        assert json.loads(json.dumps(described)) == described
        assert described["description"]
        assert described["row_schema"]["required"][0] == "responses_create_params"


def test_a_row_whose_judge_the_settings_do_not_have_is_refused_by_name() -> None:
    row = load_registry().get("equivalence").example_row
    assert row is not None
    load_registry(judges={"equality"}).check_row("equivalence", row, row=0)
    with pytest.raises(Invalid, match="asks the judge equality") as refused:
        load_registry(judges=()).check_row("equivalence", row, row=3)
    assert refused.value.details == {"row": 3, "field": "environment"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_example_and_demo_rows_are_rows(registry: Registry, name: str) -> None:
    kind = registry.get(name)
    assert kind.cls is not None
    assert kind.example_row is not None
    demo = kind.cls.demo_rows(7, seed=1)
    assert len(demo) == 7
    assert demo == kind.cls.demo_rows(7, seed=1)
    assert len({json.dumps(row) for row in demo}) > 2
    for number, row in enumerate([kind.example_row, *demo]):
        registry.check_row(name, json.loads(json.dumps(row)), row=number)


def test_an_unknown_environment_is_not_found_with_what_was_perhaps_meant(registry: Registry) -> None:
    with pytest.raises(NotFound, match="did you mean `weather`") as caught:
        registry.get("wether")
    assert caught.value.code == "environment_not_found"
    with pytest.raises(NotFound, match="there are code, equivalence, essay_similarity, reasoning_gym, sql"):
        registry.get("zzz")


@pytest.mark.parametrize(
    ("name", "row", "field"),
    [
        ("stateful_counter", {}, "expected_count"),
        ("stateful_counter", {"expected_count": "many"}, "expected_count"),
        ("sql", {"expected_rows": [[1], [{}]]}, "expected_rows.1.0.str"),
        ("sql", {}, ""),
        ("reasoning_gym", {"dataset": "chain_sum", "index": -1}, "index"),
        ("nowhere", {}, "environment"),
    ],
)
def test_a_bad_row_is_refused_by_row_line_and_field(registry: Registry, name: str, row: Any, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        registry.check_row(name, row, row=3, line=70_000)
    assert caught.value.details == {"row": 3, "line": 70_000, "field": field}
    assert "line 70000" in caught.value.message


def test_a_huge_value_is_not_repeated_in_the_error(registry: Registry) -> None:
    with pytest.raises(Invalid) as caught:
        registry.check_row("stateful_counter", {"expected_count": "9" * 1_000_000 + "x"}, row=0)
    assert len(caught.value.message) < 500


def test_an_environment_that_cannot_be_imported_is_listed_with_its_error_and_harms_no_other(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "quits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "other.py").write_text("class Thing:\n    pass\n")
    specs = [f"{tmp_path}/{file}.py:Thing" for file in ("broken", "quits", "other", "missing")]
    registry = load_registry([*specs, "no.such.module:Thing", "nonsense"])
    assert set(registry.names()) == {"code", *BUILT_IN, *specs, "no.such.module:Thing", "nonsense"}
    errors = [str(registry.get(spec).error) for spec in specs]
    assert errors[0] == "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"
    assert errors[1] == "SystemExit: 3"
    assert "not a subclass" in errors[2]
    assert "there is no file" in errors[3]
    assert registry.get("weather").error is None
    described = next(each for each in registry.describe() if each["name"] == specs[0])
    assert described["error"] == errors[0]
    with pytest.raises(Invalid, match="a_package_that_is_not_there"):
        registry.check_row(specs[0], {}, row=0)


def test_a_second_environment_of_a_name_is_listed_under_its_spec_and_the_first_stays() -> None:
    registry = load_registry(["gym.environments.builtin.stateful_counter:StatefulCounter"])
    assert registry.get("stateful_counter").error is None
    second = registry.get("gym.environments.builtin.stateful_counter:StatefulCounter")
    assert second.error == "the name stateful_counter is taken by another environment"


class Fine(Environment[Row]):
    """Nothing is wrong with it."""

    name = "fine"

    def verify(self, trajectory: Any) -> float:
        return 1.0

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        return {"responses_create_params": {"input": "hello"}}


class Needs(Row):
    answer: int


def test_a_class_that_is_no_complete_environment_is_refused_with_the_reason() -> None:
    class Unfinished(Environment[Row]):
        name = "unfinished"

    for attributes, said in (
        ({"name": "has blanks"}, "it must be letters, digits"),
        ({"row_model": dict}, "is not a subclass of gym.environments.base.Row"),
        ({"row_model": Needs}, "example_row is not a row of Broken: answer: Field required"),
        ({"requires": ("json", "a_package_that_is_not_there")}, "needs the packages a_package_that_is_not_there,"),
    ):
        with pytest.raises(TypeError, match=said):
            environment_type(type("Broken", (Fine,), attributes))
    with pytest.raises(TypeError, match="Unfinished lacks example_row, verify"):
        environment_type(Unfinished)
    assert environment_type(Fine).description == "Nothing is wrong with it."


def test_demo_rows_are_the_example_row_where_a_class_gives_none() -> None:
    first, second = Fine.demo_rows(2, seed=0)
    assert first == second == Fine.example_row()
    assert first is not second


def test_installed_environments_are_found_by_their_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coin = Path(__file__).parents[4] / "configs" / "examples" / "coin.py"
    (tmp_path / "installed_coin.py").write_text(coin.read_text())
    info = tmp_path / "installed_coin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-coin\nVersion: 1.0\n")
    points = "coin = installed_coin:Coin\nbroken = installed_coin:Missing\n"
    (info / "entry_points.txt").write_text(f"[rollout_farm.environments]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    registry = load_registry()
    assert registry.get("coin").error is None
    assert "Missing" in str(registry.get("broken").error)
