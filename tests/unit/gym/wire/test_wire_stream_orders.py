"""Streams whose pieces come in an unusual order end as the same answer that was not streamed."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym.wire.chat.chunks import ChatAccumulator
from gym.wire.chat.stream import ChatStream, StreamTranslator
from gym.wire.gemini.reply import to_gemini
from gym.wire.gemini.stream import GeminiStream
from gym.wire.messages.reply import to_message
from gym.wire.messages.stream import MessagesStream
from gym.wire.responses.reply import to_response
from gym.wire.responses.stream import ResponsesStream

Json = dict[str, Any]

MANY = settings(max_examples=20 * settings().max_examples)
BASE: Json = {"id": "chatcmpl-1", "created": 1, "model": "served"}
REQUEST: Json = {"model": "m", "max_tokens": 5, "messages": [], "input": "hi"}

THINKING: Json = {"model": "m", "contents": [], "generationConfig": {"thinkingConfig": {"includeThoughts": True}}}


def whole_of(message: Json, finish: str = "tool_calls") -> Json:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {**BASE, "object": "chat.completion", "choices": [choice]}


def chunks_of(deltas: list[Json], finish: str = "tool_calls") -> list[Json]:
    base = {**BASE, "object": "chat.completion.chunk"}
    chunks = [{**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    return [*chunks, {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}]


def call_delta(index: int | None, call_id: str | None = None, name: str | None = None, arguments: Any = None) -> Json:
    piece: Json = {"function": {}}
    if index is not None:
        piece["index"] = index
    if call_id is not None:
        piece |= {"id": call_id, "type": "function"}
    if name is not None:
        piece["function"]["name"] = name
    if arguments is not None:
        piece["function"]["arguments"] = arguments
    return {"tool_calls": [piece]}


def call(call_id: str, name: str, arguments: str) -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def accumulated(deltas: list[Json]) -> Json:
    accumulator = ChatAccumulator()
    for chunk in chunks_of(deltas):
        accumulator.feed(chunk)
    return accumulator.completion()


def events_of(translator: StreamTranslator, deltas: list[Json]) -> list[Json]:
    events = copy.deepcopy(translator.start())
    for chunk in chunks_of(deltas):
        events += copy.deepcopy(translator.feed(chunk))
    return [data for _, data in events + copy.deepcopy(translator.finish())]


def streamed_response(deltas: list[Json]) -> tuple[list[Json], Json]:
    """The items as their `done` events gave them, in order, and the last response."""
    events = events_of(ResponsesStream(REQUEST, response_id="resp_1", created_at=5.0), deltas)
    added = [event for event in events if event["type"] == "response.output_item.added"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in added] == [event["output_index"] for event in done]
    assert [event["output_index"] for event in done] == list(range(len(done)))
    grown: dict[str, str] = {}
    for event in events:
        if event["type"] == "response.function_call_arguments.delta":
            grown[event["item_id"]] = grown.get(event["item_id"], "") + event["delta"]
    items = [event["item"] for event in done]
    assert grown == {item["id"]: item["arguments"] for item in items if item["type"] == "function_call"}
    return items, events[-1]["response"]


def streamed_message(deltas: list[Json]) -> tuple[Json, list[str]]:
    """The message that the events add up to, tool inputs left empty, and the inputs as they were written."""
    message: Json = {}
    inputs: dict[int, str] = {}
    opened: int | None = None
    for event in events_of(MessagesStream(REQUEST, message_id="msg_1"), deltas):
        match event:
            case {"type": "message_start"}:
                message = event["message"]
            case {"type": "content_block_start"}:
                assert opened is None, "blocks overlap"
                opened = event["index"]
                assert opened == len(message["content"])
                message["content"].append(event["content_block"])
                if event["content_block"]["type"] == "tool_use":
                    inputs[event["index"]] = ""
            case {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": piece}}:
                assert event["index"] == opened
                inputs[event["index"]] += piece
            case {"type": "content_block_delta", "delta": delta}:
                assert event["index"] == opened
                field = delta["type"].removesuffix("_delta")
                message["content"][event["index"]][field] += delta[field]
            case {"type": "content_block_stop"}:
                assert event["index"] == opened
                opened = None
            case {"type": "message_delta"}:
                message |= {**event["delta"], "usage": event["usage"]}
    assert opened is None
    return message, list(inputs.values())


def streamed_gemini(deltas: list[Json]) -> Json:
    """The answer that the pieces add up to: texts of a kind are joined, and an empty one is left out."""
    texts = {True: "", False: ""}
    calls: list[Json] = []
    pieces = events_of(GeminiStream(THINKING, response_id="g1"), deltas)
    for piece in pieces:
        for part in piece["candidates"][0]["content"]["parts"]:
            if "text" in part:
                texts[bool(part.get("thought"))] += part["text"]
            else:
                calls.append(part)
    parts: list[Json] = [{"text": texts[True], "thought": True}] if texts[True] else []
    parts += [{"text": texts[False]}] if texts[False] else []
    last: Json = pieces[-1]
    last["candidates"][0]["content"]["parts"] = [*parts, *calls] or [{"text": ""}]
    return last


def joined_by_a_client(deltas: list[Json]) -> list[Json]:
    """The tool calls as the openai client joins them: texts of the same index are glued, ids and names too."""
    calls: dict[int, Json] = {}
    for event in events_of(ChatStream(REQUEST), deltas):
        for piece in event["choices"][0]["delta"].get("tool_calls") or ():
            known = calls.setdefault(piece["index"], call("", "", ""))
            known["id"] += piece.get("id") or ""
            for name in ("name", "arguments"):
                known["function"][name] += piece["function"].get(name) or ""
    return [calls[index] for index in sorted(calls)]


def assert_streams_as(deltas: list[Json], whole: Json) -> None:
    """The record and both dialects' answers are those of the whole completion."""
    assert accumulated(deltas) == whole
    items, response = streamed_response(deltas)
    assert response == to_response(REQUEST, whole, response_id="resp_1", created_at=5.0)
    assert items == response["output"]
    message, inputs = streamed_message(deltas)
    expected = to_message(REQUEST, whole, message_id="msg_1")
    calls = whole["choices"][0]["message"].get("tool_calls") or ()
    assert inputs == [each["function"]["arguments"] for each in calls]
    for block in expected["content"]:
        if block["type"] == "tool_use":
            block["input"] = {}
    assert message == expected
    assert streamed_gemini(deltas) == to_gemini(THINKING, whole, response_id="g1")
    shown = [call(each["id"], each["function"]["name"], each["function"]["arguments"] or "{}") for each in calls]
    assert joined_by_a_client(deltas) == shown


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[Json], Json]:
    """Deltas in any order that servers may choose, and the whole completion."""

    def pieces(text: str) -> list[str]:
        cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=3)))
        parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return [part for part in parts if part]

    reasoning, content = draw(st.text(max_size=6)), draw(st.text(max_size=8))
    names = st.text("abc_", min_size=1, max_size=5)
    written = draw(st.lists(st.tuples(names, st.sampled_from(['{"a": 1}', '{"a": "é\\n"}', '{"cut', ""])), max_size=4))
    lines: list[list[Json]] = [[{"content": piece} for piece in pieces(content)]]
    for index, (name, arguments) in enumerate(written):
        given_late = draw(st.sampled_from(["nothing", "name", "id", "both in turn"]))
        head: list[Json] = {
            "nothing": [call_delta(index, f"c{index}", name)],
            "name": [call_delta(index, f"c{index}", ""), call_delta(index, None, name)],
            "id": [call_delta(index, None, name), call_delta(index, f"c{index}")],
            "both in turn": [call_delta(index), call_delta(index, f"c{index}"), call_delta(index, None, name)],
        }[given_late]
        lines.append(head + [call_delta(index, arguments=piece) for piece in pieces(arguments)])
    deltas = [{"reasoning": piece} for piece in pieces(reasoning)]
    while lines := [line for line in lines if line]:
        deltas.append(draw(st.sampled_from(lines)).pop(0))
    message: Json = {}
    if reasoning:
        message["reasoning"] = reasoning
    message["content"] = content or (None if written else "")
    if written:
        message["tool_calls"] = [call(f"c{index}", *each) for index, each in enumerate(written)]
    return deltas, whole_of(message)


@MANY
@given(answers())
def test_any_order_of_pieces_streams_as_the_whole_answer(answer: tuple[list[Json], Json]) -> None:
    assert_streams_as(*answer)


TWO = whole_of({"content": None, "tool_calls": [call("a", "f", '{"x": 1}'), call("b", "g", '{"y": 2}')]})


@pytest.mark.parametrize(
    "deltas",
    [
        pytest.param([call_delta(0, "a", "f", '{"x": 1}'), call_delta(0, "b", "g", '{"y": 2}')], id="all at one index"),
        pytest.param(
            [
                call_delta(0, "a", "f", '{"x"'),
                call_delta(0, None, None, ": 1}"),
                call_delta(0, "b", "g", '{"y"'),
                call_delta(0, None, None, ": 2}"),
            ],
            id="all at one index, in pieces",
        ),
        pytest.param(
            [call_delta(0, "a", "f", '{"x": 1}'), call_delta(0, "b"), call_delta(0, None, "g", '{"y": 2}')],
            id="all at one index, a late name",
        ),
        pytest.param([call_delta(None, "a", "f", '{"x": 1}'), call_delta(None, "b", "g", '{"y": 2}')], id="no index"),
        pytest.param(
            [
                call_delta(None, "a", "f", '{"x"'),
                call_delta(None, "b", "g", '{"y"'),
                call_delta(None, "a", None, ": 1}"),
                call_delta(None, "b", None, ": 2}"),
            ],
            id="no index, interleaved by id",
        ),
        pytest.param(
            [
                call_delta(None, "a", "f"),
                call_delta(None, None, None, '{"x": 1}'),
                call_delta(None, "b", "g"),
                call_delta(None, None, None, '{"y": 2}'),
            ],
            id="no index, in pieces",
        ),
        pytest.param([call_delta(1, "b", "g", '{"y": 2}'), call_delta(0, "a", "f", '{"x": 1}')], id="backwards"),
        pytest.param([call_delta(3, "a", "f", '{"x": 1}'), call_delta(7, "b", "g", '{"y": 2}')], id="gaps"),
        pytest.param(
            [
                call_delta(0, "a", "f", '{"x"'),
                call_delta(0, "other", None, ": 1}"),
                call_delta(1, "b", "g", '{"y"'),
                call_delta(1, "third", None, ": 2}"),
            ],
            id="an id made up for each piece",
        ),
    ],
)
def test_calls_are_told_apart_however_they_are_marked(deltas: list[Json]) -> None:
    assert_streams_as(deltas, TWO)


def test_arguments_that_come_as_an_object_are_their_text() -> None:
    deltas = [call_delta(0, "a", "f", {"x": "é"})]
    assert_streams_as(deltas, whole_of({"content": None, "tool_calls": [call("a", "f", '{"x": "é"}')]}))


@pytest.mark.parametrize("absent", [None, ""])
def test_absent_arguments_are_an_empty_object_for_clients(absent: str | None) -> None:
    deltas = [call_delta(0, "a", "f", absent)]
    items, _ = streamed_response(deltas)
    assert items[0]["arguments"] == "{}"
    function: Json = {"name": "f", "arguments": absent}
    whole = whole_of({"content": None, "tool_calls": [{"id": "a", "type": "function", "function": function}]})
    response = to_response(REQUEST, whole, response_id="resp_1", created_at=5.0)
    assert response["output"][0]["arguments"] == "{}"
    assert to_message(REQUEST, whole, message_id="msg_1")["content"][0]["input"] == {}


def test_text_between_calls_belongs_to_the_message_before_them() -> None:
    deltas = [
        {"content": "Let me look."},
        call_delta(0, "a", "f", "{}"),
        {"content": "\n"},
        call_delta(1, "b", "g", "{}"),
    ]
    calls = [call("a", "f", "{}"), call("b", "g", "{}")]
    assert_streams_as(deltas, whole_of({"content": "Let me look.\n", "tool_calls": calls}))


def test_a_long_call_keeps_the_stream_alive() -> None:
    deltas = [call_delta(0, "a", "write"), *[call_delta(0, arguments="x") for _ in range(200)]]
    events = events_of(MessagesStream(REQUEST, message_id="msg_1"), deltas)
    types = [event["type"] for event in events]
    assert types.count("ping") == 3
    assert types.index("ping") < types.index("content_block_start")


def test_reasoning_that_comes_after_text_is_in_the_last_response() -> None:
    deltas = [{"reasoning": "hm"}, {"content": "a"}, {"reasoning": "hm"}, {"content": "b"}]
    _, response = streamed_response(deltas)
    whole = whole_of({"reasoning": "hmhm", "content": "ab"})
    assert response == to_response(REQUEST, whole, response_id="resp_1", created_at=5.0)
