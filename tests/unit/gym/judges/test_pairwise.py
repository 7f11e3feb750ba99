"""Answers compared with each other, by judges that prefer a place."""

from __future__ import annotations

import itertools

import pytest

from gym.judges.pairwise import all_pairs, merged, tournament

pytestmark = pytest.mark.anyio


async def longer(first: str, second: str) -> float | None:
    """Prefers the longer answer."""
    return 0.5 if len(first) == len(second) else float(len(first) > len(second))


@pytest.mark.parametrize(("ahead", "behind"), [(1.0, 1.0), (0.0, 0.0), (0.9, 0.6)])
def test_a_preference_for_a_place_is_a_tie(ahead: float, behind: float) -> None:
    assert merged(ahead, behind) == 0.5


@pytest.mark.parametrize(
    ("ahead", "behind", "score"), [(1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.5, 0.75), (0.5, 0.5, 0.5)]
)
def test_a_preference_for_an_answer_stands_in_both_orders(ahead: float, behind: float, score: float) -> None:
    assert merged(ahead, behind) == score


async def test_all_pairs_give_the_share_of_wins() -> None:
    answers = ["aa", "a", "aaa", "bb"]
    assert await all_pairs("aa", answers, longer) == [1.0, 0.0, 0.5]


async def test_a_comparison_that_cannot_be_read_is_left_out() -> None:
    async def compare(first: str, second: str) -> float | None:
        return None if "?" in second else await longer(first, second)

    assert await all_pairs("aa", ["aa", "a", "??"], compare) == [1.0]


async def test_in_a_tournament_the_best_wins_every_round_and_the_others_are_out_once() -> None:
    answers = ["a", "aa", "aaa", "aaaa", "aaaaa", "aaaaaa", "aaaaaaa", "aaaaaaaa"]
    shares = {}
    for answer in answers:
        others = [other for other in answers if other != answer]
        results = await tournament(answer, [answer, *others], longer)
        assert len(results) == 3
        shares[answer] = sum(results) / len(results)
    assert shares["aaaaaaaa"] == 1.0
    assert sorted(shares.values()) == pytest.approx([0, 0, 0, 0, 1 / 3, 1 / 3, 2 / 3, 1])


async def test_every_member_of_a_group_plays_the_same_tournament() -> None:
    asked: list[frozenset[tuple[str, str]]] = []
    answers = ["q", "www", "ee", "rrrr", "t"]
    for order in itertools.islice(itertools.permutations(answers), 0, 120, 17):
        pairs: set[tuple[str, str]] = set()

        async def compare(first: str, second: str, pairs: set[tuple[str, str]] = pairs) -> float | None:
            pairs.add((first, second))
            return await longer(first, second)

        await tournament("rrrr", order, compare)
        asked.append(frozenset(pairs))
    assert len(set(asked)) == 1
    assert len(asked[0]) == 4
