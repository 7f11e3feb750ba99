import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.ids import ID_PATTERN, RolloutRef, is_id, parse_group_id, parse_member, parse_rollout_id

ids = st.from_regex(ID_PATTERN, fullmatch=True)


@given(ids, st.integers(0, 10**6), st.integers(0, 4095))
def test_a_rollout_is_found_by_its_id_whatever_colons_its_batch_has(batch_id: str, row: int, sample: int) -> None:
    rollout = RolloutRef(batch_id, row, sample)
    assert parse_rollout_id(str(rollout)) == rollout
    assert parse_member(batch_id, rollout.member) == rollout
    group = parse_group_id(rollout.group_id)
    assert group is not None
    assert str(group) == rollout.group_id


@pytest.mark.parametrize("text", ["", "a", "a:b", "a:1", "a:01:1", ":1:1", "a b:1:1", "a:1:-1", "a:1:1\n"])
def test_what_is_not_a_rollout_id_is_none(text: str) -> None:
    assert parse_rollout_id(text) is None


@pytest.mark.parametrize(("text", "good"), [("a" * 128, True), ("a" * 129, False), ("", False), ("a\n", False)])
def test_an_id_has_1_to_128_characters(text: str, good: bool) -> None:
    assert is_id(text) is good
