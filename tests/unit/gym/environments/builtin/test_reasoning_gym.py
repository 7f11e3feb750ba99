from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gym.environments.builtin.reasoning_gym import DEMO_DATASETS, ReasoningGym, extract_answer, generate
from gym.environments.hosting.session import EnvironmentSession
from gym.errors import BadRow, Invalid

pytestmark = pytest.mark.anyio
Open = Callable[..., EnvironmentSession]
Episode = Callable[..., Any]


async def reward_of(session: EnvironmentSession, trajectory: Any) -> float:
    await session.setup()
    return (await session.verify(trajectory)).value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so <answer> 7 </answer>", "7"),
        ("<answer>6</answer> no, <answer>7</answer>", "7"),
        ("<answer>7</answer> or \\boxed{8}", "7"),
        (r"hence \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (" 7\n", "7"),
        ("", ""),
    ],
)
def test_the_answer_is_in_the_last_tags_or_box_or_is_the_whole_text(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


async def test_a_row_of_nemo_gym_runs_as_it_is(open_session: Open, episode: Episode) -> None:
    row = {
        "responses_create_params": {"input": [{"role": "user", "content": "Zoey says … who is a sage?"}]},
        "question": "Zoey says … who is a sage?",
        "answer": "Zoey is a fool, and Riley is a sage.",
        "metadata": {"source_dataset": "knights_knaves", "source_index": 0, "solution": [False, True]},
    }
    assert (
        await reward_of(
            open_session(ReasoningGym, row), episode("<answer>Zoey is a fool, and Riley is a sage.</answer>")
        )
        == 1.0
    )
    assert await reward_of(open_session(ReasoningGym, row), episode("<answer>Zoey is a sage.</answer>")) == 0.0


@pytest.mark.parametrize("dataset", [*DEMO_DATASETS, "countdown", "n_queens", "simple_integration", "spiral_matrix"])
async def test_generated_rows_are_scored_by_the_verifier_of_their_dataset(
    open_session: Open, episode: Episode, dataset: str
) -> None:
    (row,) = list(generate(dataset, size=1, seed=3))
    row = json.loads(json.dumps(row))
    right = f"<answer>{row['answer']}</answer>"
    assert await reward_of(open_session(ReasoningGym, row), episode(right)) == 1.0
    assert await reward_of(open_session(ReasoningGym, row), episode("<answer>potato</answer>")) < 0.5


def test_rows_are_the_same_for_the_same_seed_and_follow_the_configuration() -> None:
    config = {"min_terms": 5, "max_terms": 5}
    rows = list(generate("chain_sum", size=3, seed=1, config=config))
    assert rows == list(generate("chain_sum", size=3, seed=1, config=config))
    assert rows != list(generate("chain_sum", size=3, seed=2, config=config))
    assert [row["task_id"] for row in rows] == ["chain_sum-1-0", "chain_sum-1-1", "chain_sum-1-2"]
    assert all(row["question"].count(" + ") + row["question"].count(" - ") == 4 for row in rows)


async def test_an_entry_is_found_again_by_its_place_in_a_dataset_whose_entries_depend_on_its_size(
    open_session: Open,
) -> None:
    rows = list(generate("acre", size=6, seed=1))
    place = {"responses_create_params": {"input": "…"}, "dataset": "acre", "seed": 1, "index": 3}
    session = open_session(ReasoningGym, place)
    await session.setup()
    assert session._ready().entry["question"] == rows[3]["question"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"dataset": "no_such_set"}, "no dataset `no_such_set`"),
        ({"question": "?", "answer": "!", "metadata": {"source_dataset": "no_such_set"}}, "no dataset"),
        ({"dataset": "chain_sum", "config": {"colour": 1}}, "does not take this configuration"),
        ({"dataset": "chain_sum", "config": {"min_terms": -1}}, "does not take this configuration"),
        ({"dataset": "chain_sum", "question": "of another version"}, "generate it again"),
    ],
)
async def test_a_row_that_cannot_be_made_is_a_bad_row(open_session: Open, row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match=said):
        await open_session(ReasoningGym, row).setup()


def test_generating_from_an_unknown_dataset_is_an_invalid_request() -> None:
    with pytest.raises(Invalid, match="no dataset `no_such_set`"):
        list(generate("no_such_set", size=1, seed=0))


@pytest.mark.parametrize(
    ("dataset", "score"), [("polynomial_multiplication", 0.0), ("countdown", 0.01), ("string_insertion", 0.0)]
)
async def test_code_in_an_answer_is_never_run(
    open_session: Open, episode: Episode, tmp_path: Path, dataset: str, score: float
) -> None:
    (row,) = list(generate(dataset, size=1, seed=0))
    mark = tmp_path / "ran"
    attack = f"<answer>__import__('pathlib').Path({str(mark)!r}).touch()</answer>"
    assert await reward_of(open_session(ReasoningGym, row), episode(attack)) == score
    assert not mark.exists()


async def test_an_answer_that_the_verifier_stumbles_over_is_a_wrong_answer(
    open_session: Open, episode: Episode
) -> None:
    (row,) = list(generate("prime_factorization", size=1, seed=0))
    session = open_session(ReasoningGym, row)
    await session.setup()
    reward = await session.verify(episode("<answer>garbage</answer>"))
    assert (reward.value, reward.components) == (0.0, {"unreadable": 1.0})


async def test_the_example_row_is_answered_by_seven(open_session: Open, episode: Episode) -> None:
    assert await reward_of(open_session(ReasoningGym), episode("<answer>7</answer>")) == 1.0
