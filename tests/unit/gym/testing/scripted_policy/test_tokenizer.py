"""The scripted model's tokenizer and chat template."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gym.testing.scripted_policy.tokenizer import END_ID, MARKS, canonical_arguments, decode, encode, render

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
WITH_MARKS = st.lists(st.one_of(TEXT, st.sampled_from(MARKS))).map("".join)

ASK = {"role": "user", "content": "What is the weather like in Zürich?"}
CALL = {
    "role": "assistant",
    "content": None,
    "reasoning": "I should look.",
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Zürich"}'}}
    ],
}
OUTPUT = {"role": "tool", "tool_call_id": "c1", "content": '{"weather_description": "cold"}'}


@given(WITH_MARKS)
def test_decoding_gives_the_text_back(text: str) -> None:
    assert decode(encode(text)) == text


@given(WITH_MARKS)
def test_ids_fit_an_int32(text: str) -> None:
    assert all(0 <= token_id < 2**31 for token_id in encode(text))


@given(WITH_MARKS, st.integers(0, 50))
def test_the_first_tokens_of_a_text_encode_to_themselves(text: str, count: int) -> None:
    ids = encode(text)[:count]
    assert encode(decode(ids)) == ids


@given(st.lists(st.integers(-5, 2**40)))
def test_any_ids_decode_to_text_that_can_be_sent(ids: list[int]) -> None:
    decode(ids).encode()


def test_a_text_takes_about_a_token_for_four_characters() -> None:
    assert len(encode("word " * 100)) == 125


def test_each_mark_is_one_token() -> None:
    assert [len(encode(mark)) for mark in MARKS] == [1] * len(MARKS)


def test_a_longer_conversation_begins_with_prompt_and_generation_of_the_shorter() -> None:
    prompt = encode(render([ASK]))
    generated = encode(
        '<think>I should look.</think><tool_call>{"name": "get_weather", "arguments": {"city": "Zürich"}}</tool_call>'
    )
    longer = encode(render([ASK, CALL, OUTPUT]))
    assert longer[: len(prompt) + len(generated) + 1] == [*prompt, *generated, END_ID]


def test_arguments_that_a_client_reformatted_render_the_same() -> None:
    compact: dict[str, Any] = {
        **CALL,
        "tool_calls": [{"function": {"name": "get_weather", "arguments": '{"city":"Zürich"}'}}],
    }
    assert render([ASK, compact]) == render([ASK, CALL])


def test_arguments_that_are_not_json_stay_as_they_are() -> None:
    assert canonical_arguments('{"city": ') == '{"city": '


def test_stripped_history_drops_the_reasoning_of_earlier_turns() -> None:
    assert "I should look." not in render([ASK, CALL, OUTPUT], history="strip_reasoning")
    assert "get_weather" in render([ASK, CALL, OUTPUT], history="strip_reasoning")


def test_the_older_name_of_reasoning_renders_the_same() -> None:
    older = {key: value for key, value in CALL.items() if key != "reasoning"} | {"reasoning_content": "I should look."}
    assert render([ASK, older]) == render([ASK, CALL])


def test_content_parts_render_as_their_text() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}
    assert render([parts]) == render([{"role": "user", "content": "one two"}])


def test_tools_are_part_of_the_prompt() -> None:
    assert "get_weather" in render([ASK], [{"type": "function", "function": {"name": "get_weather"}}])
