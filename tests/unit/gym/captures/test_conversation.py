"""Contribution of a captured call: new messages, new tokens, and the resulting trajectory."""

from __future__ import annotations

from array import array
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gym.captures.conversation import Head, Tokens, chain, count_items, input_items, pack_tokens, rebuild
from gym.model_client.http.streaming import chunks_of
from gym.trajectory import Segments, TurnTokens
from gym.wire.chat.chunks import ChatAccumulator
from gym.wire.responses.items import recorded_messages

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1, "b": [2]}'}}


def test_a_conversation_that_goes_on_begins_with_the_digests_of_what_was_said():
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert chain([*said, {"role": "user", "content": "more"}])[:2] == chain(said)
    assert chain(said[1:], chain(said[:1])[0]) == chain(said)[1:]


def test_what_a_dialect_loses_on_the_way_is_no_part_of_a_digest():
    sent = {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [CALL]}
    function = {"name": "f", "arguments": '{"b":[2],"a":1}'}
    back = {"role": "assistant", "content": "", "tool_calls": [{**CALL, "index": 0, "function": function}]}
    assert chain([sent]) == chain([back])
    text = {"role": "user", "content": [{"type": "text", "text": "x"}]}
    assert chain([text]) == chain([{"role": "user", "content": "x"}])


def test_another_text_role_or_argument_is_another_conversation():
    messages = [
        {"role": "user", "content": "x"},
        {"role": "system", "content": "x"},
        {"role": "user", "content": "y"},
        {"role": "assistant", "content": "x"},
        {"role": "assistant", "content": "x", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
        {"role": "tool", "tool_call_id": "b", "content": "x"},
    ]
    assert len({chain([message])[0] for message in messages}) == len(messages)


def test_the_end_of_a_call_survives_being_stored():
    head = Head(0, Tokens(3, b"\x01" * 16))
    assert Head.unpack(head.pack().replace("$", "7")) == Head(7, head.tokens)
    assert Head.unpack(Head(0, None).pack().replace("$", "7")) == Head(7, None)
    assert Head.unpack(Head(0, head.tokens, "ab").pack().replace("$", "7")) == Head(7, head.tokens, "ab")
    assert Head.unpack("i") is None
    assert Head.unpack("") is None


IDS = st.lists(st.integers(0, 5), max_size=6)


@given(turns=st.lists(st.tuples(st.booleans(), IDS, IDS, st.booleans()), min_size=1, max_size=6))
def test_a_conversation_stored_as_deltas_has_the_segments_of_one_recorded_whole(turns):
    whole, records, known = Segments(), [], None
    so_far: list[int] = []
    for place, (goes_on, prompt, generated, has_tokens) in enumerate(turns):
        ids = [*so_far, *prompt] if goes_on else prompt
        turn = TurnTokens(ids, generated, [-0.5] * len(generated)) if has_tokens else None
        if turn is not None:
            whole.add_turn(turn, place)
            so_far = [*ids, *generated]
        packed, known = pack_tokens(turn, known)
        records.append(record(place, packed))
    assert rebuild(records).segments.segments == whole.segments
    assert rebuild(records).tokens_complete == all(has_tokens for *_, has_tokens in turns)


def test_a_turn_without_a_prompt_begins_a_segment_and_is_gone_on_from_like_any_other():
    first, after = pack_tokens(TurnTokens([1, 2], [3], [-1.0]), None)
    empty, after = pack_tokens(TurnTokens([], [4], [-1.0]), after)
    last, _ = pack_tokens(TurnTokens([4, 5], [6], [-1.0]), after)
    segments = rebuild([record(0, first), record(1, empty), record(2, last)]).segments.segments
    assert [list(segment.token_ids) for segment in segments] == [[1, 2, 3], [4, 5, 6]]
    assert [list(segment.loss_mask) for segment in segments] == [[0, 0, 1], [1, 0, 1]]


def test_what_goes_back_to_an_earlier_call_gets_a_segment_of_its_own():
    first, after = pack_tokens(TurnTokens([1, 2], [3], [-1.0]), None)
    left, _ = pack_tokens(TurnTokens([1, 2, 3, 4], [5], [-1.0]), after)
    right, _ = pack_tokens(TurnTokens([1, 2, 3, 6], [7], [-1.0]), after)
    segments = rebuild([record(0, first), record(1, left, parent=0), record(2, right, parent=0)]).segments.segments
    assert [list(segment.token_ids) for segment in segments] == [[1, 2, 3, 4, 5], [1, 2, 3, 6, 7]]
    assert [list(segment.loss_mask) for segment in segments] == [[0, 0, 1, 0, 1], [0, 0, 0, 0, 1]]


def test_a_turn_adds_only_what_its_prompt_adds():
    _, after = pack_tokens(TurnTokens(range(1000), [1], [-1.0]), None)
    packed, _ = pack_tokens(TurnTokens([*range(1000), 1, 2, 3], [4], [-1.0]), after)
    assert packed is not None
    assert (packed["base"], packed["prompt"]) == (1001, array("i", [2, 3]).tobytes())


def record(place: int, packed: Any, parent: int | None = None) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    return {
        "call_id": f"r-1-{place}",
        "parent": place - 1 if parent is None else parent,
        "settings": {},
        "messages": [{"role": "user", "content": "q"}],
        "completion": {"choices": [choice]},
        "usage": [1, 1, 0, 0],
        "endpoint": "http://e",
        "started_s": 0.0,
        "duration_s": 0.1,
        "attempts": 1,
        "finish": "stop",
        "version_before": place,
        "version_after": place,
        "request_items": 1,
        "tokens": packed,
    }


def test_messages_of_another_dialect_become_items():
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "u"}}],
        },
        {"role": "assistant", "content": "yes", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "out"},
    ]
    user, said, called, answered = input_items(messages, id_prefix="r")
    assert [part["type"] for part in user["content"]] == ["input_text", "input_image"]
    assert said["content"][0]["text"] == "yes"
    assert (called["type"], called["call_id"]) == ("function_call", "c1")
    assert answered == {"type": "function_call_output", "call_id": "c1", "output": "out"}


def test_a_refusal_beside_a_call_is_an_item_too():
    message = {"role": "assistant", "content": None, "refusal": "no", "tool_calls": [CALL]}
    assert count_items([message]) == len(input_items([message], id_prefix="r")) == 2


def test_a_completion_taken_apart_is_put_together_the_same():
    message = {"role": "assistant", "content": "hi", "tool_calls": [CALL]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    completion = {"id": "i", "object": "chat.completion", "model": "m", "choices": [choice], "usage": {"a": 1}}
    whole = ChatAccumulator()
    for chunk in chunks_of(completion):
        whole.feed(chunk)
    assert whole.completion() == completion


def test_items_that_chat_cannot_say_are_shown_again_as_they_were():
    items = [
        {"role": "user", "content": "q"},
        {"type": "custom_tool_call", "call_id": "c1", "name": "run", "input": "ls"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "a"},
        {"role": "user", "content": [{"type": "input_file", "file_data": "eA=="}]},
    ]
    messages = recorded_messages(items)
    assert input_items(messages, id_prefix="x") == items
    assert len(set(chain(messages))) == count_items(messages) == 4
