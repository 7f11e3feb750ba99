import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.trajectory import Segments, TurnTokens

ids = st.lists(st.integers(0, 2**31 - 1), max_size=20)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=6))
def test_turns_that_continue_the_tokens_before_them_make_one_segment(turns: list[tuple[list[int], list[int]]]) -> None:
    segments = Segments()
    tokens: list[int] = []
    mask: list[int] = []
    for number, (added, generated) in enumerate(turns):
        prompt = tokens + added
        segments.add_turn(TurnTokens(prompt, generated, [-0.5] * len(generated)), number)
        tokens = prompt + generated
        mask += [0] * len(added) + [1] * len(generated)
    [segment] = segments.segments
    assert segment.token_ids.tolist() == tokens
    assert list(segment.loss_mask) == mask
    assert [value != 0 for value in segment.logprobs] == [bool(bit) for bit in mask]
    spans = [(end - start, version) for start, end, version in segment.policy_versions]
    assert spans == [(len(generated), number) for number, (_, generated) in enumerate(turns) if generated]


def test_a_prompt_that_does_not_begin_with_the_tokens_before_it_starts_a_new_segment() -> None:
    segments = Segments()
    segments.add_turn(TurnTokens([1, 2], [3], [-0.1]), 1)
    segments.add_turn(TurnTokens([1, 2, 9, 4], [5], [-0.2]), 2)
    assert [segment.token_ids.tolist() for segment in segments.segments] == [[1, 2, 3], [1, 2, 9, 4, 5]]


def test_ids_and_logprobs_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 token ids, 1 log-prob"):
        Segments().add_turn(TurnTokens([1], [2, 3], [-0.1]), None)
