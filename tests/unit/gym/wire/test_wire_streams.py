"""Streams: for any chunks, the events add up to the answer without streaming."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.wire.chat.chunks import ChatAccumulator
from gym.wire.chat.request import to_completion
from gym.wire.chat.stream import ChatStream, Event, StreamTranslator, encode
from gym.wire.errors import BadCompletion
from gym.wire.messages.reply import to_message
from gym.wire.messages.stream import MessagesStream
from gym.wire.responses.reply import to_response
from gym.wire.responses.stream import ResponsesStream

Json = dict[str, Any]

CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 1}}


def completion(message: Json, finish: str = "stop", **choice: Any) -> Json:
    """A completion as vLLM answers it, explicit nulls left out."""
    tokens = [{"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []} for text in "abcde"]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "served",
        "prompt_token_ids": [1, 2, 3],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", **message},
                "finish_reason": finish,
                "token_ids": [7, 8, 9, 10, 11],
                "logprobs": {"content": tokens},
                **choice,
            }
        ],
        "usage": USAGE,
    }


def chunks_of(whole: Json, size: int = 3) -> list[Json]:
    """The chunks in which vLLM streams a completion: role first, with the prompt's ids, usage last, alone."""
    choice = whole["choices"][0]
    message = choice["message"]
    deltas: list[Json] = []
    for name in ("reasoning", "content", "refusal"):
        deltas += [{name: piece} for piece in _pieces(message.get(name) or "", size)]
    for index, call in enumerate(message.get("tool_calls") or ()):
        head = {"index": index, "id": call["id"], "type": "function", "function": {"name": call["function"]["name"]}}
        deltas.append({"tool_calls": [head]})
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
            for piece in _pieces(call["function"]["arguments"], size)
        ]
    if not deltas:
        deltas.append({"content": ""})
    base = {"id": whole["id"], "object": "chat.completion.chunk", "created": 1, "model": whole["model"]}
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    chunks: list[Json] = [{**base, "choices": [role], "prompt_token_ids": whole["prompt_token_ids"]}]
    ids, entries = list(choice["token_ids"]), list(choice["logprobs"]["content"])
    for number, delta in enumerate(deltas):
        last = number == len(deltas) - 1
        given_ids, ids = (ids, []) if last else (ids[:1], ids[1:])
        given_entries, entries = (entries, []) if last else (entries[:1], entries[1:])
        part = {"index": 0, "delta": delta, "token_ids": given_ids, "logprobs": {"content": given_entries}}
        if last:
            part |= {"finish_reason": choice["finish_reason"], "stop_reason": choice.get("stop_reason")}
        chunks.append({**base, "choices": [part], "usage": None})
    return [*chunks, {**base, "choices": [], "usage": whole["usage"]}]


def _pieces(text: str, size: int) -> Iterator[str]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


def run(translator: StreamTranslator, chunks: list[Json]) -> list[Event]:
    """All events of a stream, each as it was when it was sent."""
    events = translator.start()
    sent = copy.deepcopy(events)
    for chunk in chunks:
        sent += copy.deepcopy(translator.feed(chunk))
    return sent + copy.deepcopy(translator.finish())


def responses_events(body: Json, whole: Json, size: int = 3) -> list[Event]:
    return run(ResponsesStream(body, response_id="resp_1", created_at=5.0), chunks_of(whole, size))


texts = st.text(max_size=12)
calls = st.lists(
    st.builds(
        lambda call_id, name, arguments: {
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        },
        st.text("abc123", min_size=1, max_size=8),
        st.text("abc_", min_size=1, max_size=8),
        st.sampled_from(["{}", '{"a": 1}', '{"a": "é\\n"}', '{"broken', ""]),
    ),
    max_size=3,
)


@st.composite
def completions(draw: st.DrawFn) -> Json:
    message: Json = {}
    if reasoning := draw(texts):
        message["reasoning"] = reasoning
    tool_calls = draw(calls)
    content = draw(texts)
    message["content"] = content or (None if tool_calls else "")
    if tool_calls:
        message["tool_calls"] = tool_calls
    finish = draw(st.sampled_from(["stop", "length", "content_filter", "tool_calls"]))
    return completion(message, finish)


@given(completions(), st.integers(1, 5))
def test_accumulated_chunks_equal_the_whole_completion(whole: Json, size: int) -> None:
    accumulator = ChatAccumulator()
    for chunk in chunks_of(whole, size):
        accumulator.feed(chunk)
    assert accumulator.finished
    assert accumulator.completion() == whole


@given(completions(), st.integers(1, 5))
def test_a_streamed_response_ends_as_the_whole_one(whole: Json, size: int) -> None:
    body = {"model": "m", "input": "hi", "stream": True}
    name, last = responses_events(body, whole, size)[-1]
    expected = to_response(body, whole, response_id="resp_1", created_at=5.0)
    assert last["response"] == expected
    assert name == f"response.{expected['status']}"


@given(completions(), st.integers(1, 5))
def test_a_streamed_message_adds_up_to_the_whole_one(whole: Json, size: int) -> None:
    body: Json = {"model": "m", "max_tokens": 5, "messages": []}
    events = run(MessagesStream(body, message_id="msg_1"), chunks_of(whole, size))
    message: Json = {}
    arguments: dict[int, str] = {}
    for name, data in events:
        assert name == data["type"]
        match data:
            case {"type": "message_start"}:
                message = data["message"]
            case {"type": "content_block_start"}:
                assert data["index"] == len(message["content"])
                message["content"].append(data["content_block"])
            case {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": piece}}:
                arguments[data["index"]] = arguments.get(data["index"], "") + piece
            case {"type": "content_block_delta", "delta": delta}:
                field = delta["type"].removesuffix("_delta")
                message["content"][data["index"]][field] += delta[field]
            case {"type": "message_delta"}:
                message |= {**data["delta"], "usage": data["usage"]}
    expected = to_message(body, whole, message_id="msg_1")
    raw = [call["function"]["arguments"] for call in whole["choices"][0]["message"].get("tool_calls") or ()]
    uses = [number for number, block in enumerate(expected["content"]) if block["type"] == "tool_use"]
    assert [arguments.get(number, "") for number in uses] == raw
    for number in uses:
        expected["content"][number]["input"] = {}
    assert message == expected


@given(completions(), st.integers(1, 5))
def test_streamed_deltas_are_the_texts_that_their_done_events_repeat(whole: Json, size: int) -> None:
    grown: dict[tuple[str, Any, Any], str] = {}
    for name, data in responses_events({"input": "hi"}, whole, size):
        assert name is not None
        stem, _, what = name.rpartition(".")
        place = (stem, data.get("item_id"), data.get("content_index"))
        if what == "delta":
            grown[place] = grown.get(place, "") + data["delta"]
        elif what == "done" and "item_id" in data and "part" not in data:
            said = data.get("text", data.get("refusal", data.get("arguments")))
            assert grown.pop(place, "") == said
    assert not grown


@given(completions())
def test_sequence_numbers_count_from_zero(whole: Json) -> None:
    events = responses_events({"input": "hi"}, whole)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))


def _without_repeats(names: list[str | None]) -> list[str | None]:
    return names[:1] + [name for before, name in pairwise(names) if name != before]


def test_responses_events_come_in_the_official_order() -> None:
    whole = completion({"reasoning": "hmhm", "content": "hello", "tool_calls": [CALL]}, "tool_calls")
    names = _without_repeats([name for name, _ in responses_events({"input": "hi"}, whole)])
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_messages_events_come_in_the_official_order() -> None:
    whole = completion({"reasoning": "hmhm", "content": "hello", "tool_calls": [CALL]}, "tool_calls")
    events = run(MessagesStream({"max_tokens": 5}, message_id="msg_1"), chunks_of(whole))
    names = [data.get("delta", {}).get("type") or name for name, data in events]
    assert _without_repeats(names) == [
        "message_start",
        "content_block_start",
        "thinking_delta",
        "signature_delta",
        "content_block_stop",
        "content_block_start",
        "text_delta",
        "content_block_stop",
        "content_block_start",
        "input_json_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_a_message_start_knows_the_length_of_the_prompt() -> None:
    events = run(MessagesStream({"max_tokens": 5}, message_id="msg_1"), chunks_of(completion({"content": "x"})))
    assert events[0][1]["message"]["usage"]["input_tokens"] == 3
    assert events[-2][1]["usage"] == {
        "input_tokens": 2,
        "cache_read_input_tokens": 1,
        "cache_creation_input_tokens": 0,
        "output_tokens": 5,
    }


def test_a_streamed_refusal_is_a_part_of_its_own() -> None:
    whole = completion({"content": "well", "refusal": "no"})
    events = responses_events({"input": "hi"}, whole)
    names = _without_repeats([name for name, _ in events])
    assert "response.refusal.delta" in names
    assert "response.refusal.done" in names
    assert [data["content_index"] for name, data in events if name == "response.content_part.added"] == [0, 1]
    assert events[-1][1]["response"]["output"][0]["content"] == [
        {"type": "output_text", "text": "well", "annotations": []},
        {"type": "refusal", "refusal": "no"},
    ]


def test_streamed_log_probabilities_end_as_the_whole_ones() -> None:
    body = {"input": "hi", "include": ["message.output_text.logprobs"]}
    whole = completion({"content": "abcde"})
    events = responses_events(body, whole, size=1)
    expected = to_response(body, whole, response_id="resp_1", created_at=5.0)
    assert events[-1][1]["response"] == expected
    pieces = [entry for name, data in events if name == "response.output_text.delta" for entry in data["logprobs"]]
    assert pieces == expected["output"][0]["content"][0]["logprobs"]
    assert len(pieces) == 5


def test_a_response_that_lacks_its_end_is_no_answer() -> None:
    for translator in (
        ResponsesStream({"input": "hi"}, response_id="resp_1", created_at=5.0),
        MessagesStream({"max_tokens": 5}, message_id="msg_1"),
        ChatStream({}),
    ):
        translator.start()
        for chunk in chunks_of(completion({"content": "hello"}))[:2]:
            translator.feed(chunk)
        with pytest.raises(BadCompletion):
            translator.finish()


def test_an_error_in_mid_stream_is_told_apart_from_a_chunk() -> None:
    error = {"error": {"message": "out of memory", "type": "InternalServerError", "code": 500}}
    for translator in (ResponsesStream({}, response_id="r", created_at=5.0), MessagesStream({}, message_id="m")):
        with pytest.raises(BadCompletion, match="out of memory"):
            translator.feed(error)
    with pytest.raises(BadCompletion, match="out of memory"):
        ChatAccumulator().feed(error)


def test_a_failed_response_keeps_the_items_that_were_finished() -> None:
    whole = completion({"reasoning": "hm", "content": "hello"})
    translator = ResponsesStream({"input": "hi"}, response_id="resp_1", created_at=5.0)
    sent = translator.start()
    for chunk in chunks_of(whole)[:4]:
        sent += translator.feed(chunk)
    [(name, data)] = translator.fail("the endpoint died")
    assert name == "response.failed"
    assert data["response"]["status"] == "failed"
    assert data["response"]["error"] == {"code": "server_error", "message": "the endpoint died"}
    assert [item["type"] for item in data["response"]["output"]] == ["reasoning"]
    assert data["sequence_number"] == len(sent)


def test_a_failed_message_and_a_failed_chat_say_so_in_their_own_words() -> None:
    assert MessagesStream({}, message_id="m").fail("gone") == [
        ("error", {"type": "error", "error": {"type": "api_error", "message": "gone"}})
    ]
    [(name, data)] = ChatStream({}).fail("gone")
    assert name is None
    assert data["error"]["message"] == "gone"


def test_a_second_choice_is_refused() -> None:
    chunk = {"choices": [{"index": 1, "delta": {"content": "x"}, "finish_reason": None}]}
    with pytest.raises(BadCompletion):
        ChatAccumulator().feed(chunk)


def test_a_server_that_repeats_names_and_ids_does_not_double_them() -> None:
    accumulator = ChatAccumulator()
    for arguments in ('{"city":', '"Oslo"}'):
        call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
        accumulator.feed({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    assert accumulator.completion()["choices"][0]["message"]["tool_calls"] == [CALL]
    assert not accumulator.finished


def test_an_aborted_answer_is_no_completed_one() -> None:
    translator = ResponsesStream({}, response_id="r", created_at=5.0)
    translator.feed({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "abort"}]})
    with pytest.raises(BadCompletion, match="abort"):
        translator.finish()


def test_a_chat_stream_hides_what_only_the_farm_asked_for() -> None:
    chunks = chunks_of(completion({"content": "hello"}))
    plain = [data for _, data in run(ChatStream({}), chunks)]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in plain) == "hello"
    assert len(plain) == len(chunks) - 1
    for chunk in plain:
        assert chunk.keys() == {"id", "object", "created", "model", "choices"}
        assert not chunk["choices"][0].keys() & {"token_ids", "logprobs"}
    body = {"return_token_ids": True, "logprobs": True, "stream_options": {"include_usage": True}}
    assert [data for _, data in run(ChatStream(body), chunks)] == chunks


def test_a_chat_completion_hides_what_only_the_farm_asked_for() -> None:
    whole = completion({"content": "hello"})
    hidden = to_completion({}, whole)
    assert hidden.keys() == whole.keys() - {"prompt_token_ids"}
    assert hidden["choices"][0].keys() == whole["choices"][0].keys() - {"token_ids", "logprobs"}
    assert to_completion({"return_token_ids": True, "logprobs": True}, whole) == whole


def test_events_are_encoded_with_their_names() -> None:
    assert encode([("a.b", {"x": 1}), (None, {"y": "é"})]) == (
        b'event: a.b\ndata: {"x":1}\n\ndata: {"y":"\xc3\xa9"}\n\n'
    )
    assert ChatStream({}).tail == b"data: [DONE]\n\n"
    assert ResponsesStream({}, response_id="r", created_at=1.0).tail == b""
