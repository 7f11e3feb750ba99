"""Prompts that go on from exact tokens: where a turn's end is found, and where it is not."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from gym.model_client.tokens.splice import altered, begins_with, spliced

END, NEW, USER, ASK, MARK = 900, 901, 902, 903, 950
TEXT = st.lists(st.integers(0, 50), max_size=8)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def ids(*parts: list[int] | int) -> array[int]:
    return array("i", [n for part in parts for n in ([part] if isinstance(part, int) else part)])


def test_the_last_assistant_message_gets_another_content():
    messages = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    changed, called = altered(messages) or ([], True)
    assert called is False
    assert changed[0]["content"] != "a"
    assert changed[1] == messages[1]
    assert messages[0]["content"] == "a"


def test_the_last_call_gets_other_arguments_and_its_message_stays():
    messages = [{"role": "assistant", "content": "a", "tool_calls": [CALL, CALL]}, {"role": "tool", "content": "b"}]
    changed, called = altered(messages) or ([], False)
    assert called is True
    assert changed[0]["content"] == "a"
    first, second = changed[0]["tool_calls"]
    assert first == CALL
    assert second["id"] == "c"
    assert second["function"]["arguments"] != CALL["function"]["arguments"]


def test_a_conversation_without_an_answer_has_nothing_to_go_on_from():
    assert altered([{"role": "user", "content": "b"}]) is None


@given(TEXT, TEXT, TEXT, TEXT, TEXT)
def test_what_is_new_follows_the_turn_as_it_was_generated(asked, thought, answer, kept, new):
    earlier = ids(USER, asked, END, NEW, ASK, thought, answer, END)
    whole = ids(USER, asked, END, NEW, ASK, kept, END, NEW, USER, new, END, NEW, ASK)
    other = ids(USER, asked, END, NEW, ASK, MARK, END, NEW, USER, new, END, NEW, ASK)
    found = spliced(earlier, whole, other, ended=True, called=False)
    assert found == earlier + ids(NEW, USER, new, END, NEW, ASK)


@given(TEXT, TEXT)
def test_a_turn_that_was_cut_is_closed_first(answer, new):
    earlier = ids(USER, END, ASK, answer, 7)
    whole = ids(USER, END, ASK, 8, END, NEW, USER, new, END, ASK)
    other = ids(USER, END, ASK, MARK, END, NEW, USER, new, END, ASK)
    assert spliced(earlier, whole, other, ended=False, called=False) == earlier + ids(END, NEW, USER, new, END, ASK)


def test_a_call_is_left_out_of_what_follows_it():
    earlier = ids(USER, END, ASK, 1, 60, 61, END)
    whole = ids(USER, END, ASK, 60, 61, END, NEW, 5, END, ASK)
    other = ids(USER, END, ASK, MARK, 61, END, NEW, 5, END, ASK)
    assert spliced(earlier, whole, other, ended=True, called=True) == earlier + ids(NEW, 5, END, ASK)


def test_a_cut_call_is_not_gone_on_from():
    earlier = ids(USER, END, ASK, 1, 60, 61)
    whole = ids(USER, END, ASK, 60, 61, END, NEW, 5, END, ASK)
    other = ids(USER, END, ASK, MARK, 61, END, NEW, 5, END, ASK)
    assert spliced(earlier, whole, other, ended=False, called=True) is None


def test_a_template_that_closes_turns_with_another_token_is_not_spliced():
    earlier = ids(USER, END, ASK, 1, 999)
    whole = ids(USER, END, ASK, 2, END, USER, 5, END, ASK)
    other = ids(USER, END, ASK, MARK, END, USER, 5, END, ASK)
    assert spliced(earlier, whole, other, ended=True, called=False) is None


def test_a_template_that_leaves_the_answer_out_is_not_spliced():
    earlier = ids(USER, END, ASK, 1, END)
    whole = ids(USER, END, USER, 5, END, ASK)
    assert spliced(earlier, whole, whole, ended=True, called=False) is None


def test_a_marker_that_changes_a_later_message_too_is_not_spliced():
    earlier = ids(USER, END, ASK, 1, END)
    whole = ids(USER, END, ASK, 2, END, USER, 5, 2, 6, END, ASK)
    other = ids(USER, END, ASK, MARK, END, USER, 5, MARK, 6, END, ASK)
    assert spliced(earlier, whole, other, ended=True, called=False) is None


def test_an_end_that_is_not_known_is_one_where_the_template_has_it_right_behind_the_content():
    whole = ids(USER, END, ASK, 2, END, NEW, USER, 5, END, ASK)
    other = ids(USER, END, ASK, MARK, END, NEW, USER, 5, END, ASK)
    closed, cut = ids(USER, END, ASK, 1, END), ids(USER, END, ASK, 1, NEW)
    assert spliced(closed, whole, other, ended=None, called=False) == closed + ids(NEW, USER, 5, END, ASK)
    assert spliced(closed, whole, other, ended=None, called=True) is None
    assert spliced(cut, whole, other, ended=None, called=False) is None


def test_a_prompt_goes_on_only_with_more_tokens():
    assert begins_with(ids(1, 2, 3), ids(1, 2))
    assert not begins_with(ids(1, 2), ids(1, 2))
    assert not begins_with(ids(1, 3, 3), ids(1, 2))
