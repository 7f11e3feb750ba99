"""Rows from several datasets of the real package reasoning_gym, by weight and level."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from gym.environments.builtin.reasoning_gym import ReasoningGym
from gym.environments.builtin.reasoning_mixture import Mixture, Pace, Source, highest_level, level_config, read_source
from gym.environments.hosting.session import EnvironmentSession
from gym.errors import Invalid

SOURCES = {"chain_sum": Source(weight=3, level=0), "leg_counting": Source()}


def test_datasets_are_mixed_by_weight_and_the_same_seed_makes_the_same_rows() -> None:
    rows = list(Mixture(SOURCES, seed=1).rows(200))
    counts = Counter(row["dataset"] for row in rows)

    assert rows == list(Mixture(SOURCES, seed=1).rows(200))
    assert rows != list(Mixture(SOURCES, seed=2).rows(200))
    assert 120 <= counts["chain_sum"] <= 180
    assert len({row["task_id"] for row in rows}) == 200


def test_a_level_makes_tasks_harder_and_the_configuration_wins_over_it() -> None:
    easy, hard = level_config("chain_sum", 0), level_config("chain_sum", highest_level("chain_sum"))
    assert easy["max_digits"] < hard["max_digits"]
    (row,) = Mixture({"chain_sum": Source(level=2, config={"min_terms": 3, "max_terms": 3})}).rows(1)
    assert row["question"].count(" + ") + row["question"].count(" - ") == 2
    assert row["config"]["max_digits"] == level_config("chain_sum", 2)["max_digits"]


@pytest.mark.anyio
async def test_a_row_of_a_level_is_scored_by_itself(
    open_session: Callable[..., EnvironmentSession], episode: Callable[..., Any]
) -> None:
    for row in Mixture(SOURCES, seed=4).rows(6):
        session = open_session(ReasoningGym, json.loads(json.dumps(row)))
        await session.setup()
        reward: Any = await session.verify(episode(f"<answer>{row['answer']}</answer>"))
        assert reward.value == 1.0


def test_a_dataset_gets_harder_where_it_is_solved_and_easier_where_it_is_not() -> None:
    mixture = Mixture({"chain_sum": Source(level=1)}, pace=Pace(window=4))
    solved = [mixture.score(row["task_id"], 1.0) for row in mixture.rows(4)]
    assert solved == [None, None, None, 2]
    failed = [mixture.score(row["task_id"], 0.0) for row in mixture.rows(4)]
    assert failed == [None, None, None, 1]
    assert next(mixture.rows(1))["level"] == 1


def test_rewards_that_say_nothing_of_the_present_level_do_not_count() -> None:
    mixture = Mixture({"chain_sum": Source(level=1)}, pace=Pace(window=2))
    old = next(mixture.rows(1))["task_id"].replace("L1", "L0")
    for task_id, reward in ((old, 1.0), ("chain_sum-0-0-L1", None), ("of-another-1-L1", 1.0), ("row-7", 1.0)):
        assert [mixture.score(task_id, reward) for _ in range(5)] == [None] * 5
    assert mixture.levels == {"chain_sum": 1}


def test_levels_stay_within_those_that_there_are() -> None:
    highest = highest_level("chain_sum")
    mixture = Mixture({"chain_sum": Source(level=highest)}, pace=Pace(window=1))
    assert mixture.score(f"chain_sum-0-0-L{highest}", 1.0) is None
    assert mixture.levels == {"chain_sum": highest}


def test_a_level_that_the_dataset_itself_refuses_is_not_gone_to() -> None:
    mixture = Mixture({"caesar_cipher": Source(level=1)}, pace=Pace(window=1))
    assert mixture.score("caesar_cipher-0-0-L1", 1.0) is None
    assert len(list(mixture.rows(3))) == 3


def test_a_mixture_goes_on_from_its_state() -> None:
    first = Mixture(SOURCES, seed=1, pace=Pace(window=2))
    for _ in range(2):
        first.score("chain_sum-1-0-L0", 1.0)
    list(first.rows(10))
    second = Mixture(SOURCES, seed=1, pace=Pace(window=2))
    second.restore(json.loads(json.dumps(first.state())))

    assert second.levels == {"chain_sum": 1}
    assert list(second.rows(5)) == list(first.rows(5))


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("chain_sum", "chain_sum", Source()),
        ("chain_sum=0.5", "chain_sum", Source(weight=0.5)),
        ("chain_sum=2@3", "chain_sum", Source(weight=2, level=3)),
    ],
)
def test_a_source_is_read_from_a_text(text: str, name: str, source: Source) -> None:
    assert read_source(text) == (name, source)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ({}, "needs datasets"),
        ({"chain_sum": Source(weight=0)}, "weight above 0"),
        ({"chain_sum": Source(level=99)}, "has levels from 0 to"),
        ({"no_such_set": Source(level=0)}, "no curriculum for `no_such_set`"),
    ],
)
def test_a_mixture_that_cannot_be_made_says_why(sources: dict[str, Source], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        Mixture(sources)


def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(Invalid, match="'chain sum' is not NAME"):
        read_source("chain sum")
