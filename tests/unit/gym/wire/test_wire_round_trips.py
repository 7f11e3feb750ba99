"""A model's answer comes back to it unchanged: through the reply, a client's memory, and the next request."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gym.wire.messages import request as messages_request
from gym.wire.messages.reply import to_message
from gym.wire.responses import request as responses_request
from gym.wire.responses.reply import output_items, to_response

Json = dict[str, Any]

texts = st.text(max_size=12)
some_text = st.text(min_size=1, max_size=12)
arguments = st.one_of(
    st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=3).map(
        lambda value: (
            orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_SUBCLASS).decode()
            if all(isinstance(inner, str) or abs(inner) < 2**53 for inner in value.values())
            else "{}"
        )
    ),
    st.sampled_from(['{"broken', "[1]", "null", "no JSON"]),
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[Json, list[Json]]:
    """An assistant message, and tool messages that answer its calls in any order."""
    ids = draw(st.lists(st.text("abc123_:.-", min_size=1, max_size=9), unique=True, max_size=4))
    message: Json = {"role": "assistant"}
    if reasoning := draw(texts):
        message |= {"reasoning": reasoning, "reasoning_content": reasoning}
    content = draw(texts)
    message["content"] = content or (None if ids else "")
    if ids:
        message["tool_calls"] = [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": draw(st.sampled_from(["f", "get_weather"])), "arguments": draw(arguments)},
            }
            for call_id in ids
        ]
    results = [
        {"role": "tool", "tool_call_id": call_id, "content": draw(texts)} for call_id in draw(st.permutations(ids))
    ]
    return message, results


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """A conversation as a chat server saw it, in which users speak after answers without calls."""
    messages: list[Json] = [{"role": "user", "content": draw(texts)}]
    for message, results in draw(st.lists(answers(), max_size=4)):
        messages += [message, *results]
        if not results:
            messages.append({"role": "user", "content": draw(texts)})
    return messages


def as_responses_input(messages: list[Json]) -> list[Json]:
    """Return a conversation as a Responses client keeps it."""
    items: list[Json] = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            items += output_items(message, id_prefix=str(number))
        elif message["role"] == "tool":
            output = message["content"]
            items.append({"type": "function_call_output", "call_id": message["tool_call_id"], "output": output})
        else:
            items.append(message)
    return items


@given(conversations())
def test_a_conversation_survives_as_responses_items(messages: list[Json]) -> None:
    assert responses_request.to_chat_messages(as_responses_input(messages)) == messages


@given(conversations())
def test_items_survive_as_chat_messages(messages: list[Json]) -> None:
    items = as_responses_input(messages)
    again = as_responses_input(responses_request.to_chat_messages(items))
    assert again == items


@given(conversations())
def test_item_ids_of_a_conversation_are_its_own(messages: list[Json]) -> None:
    ids = [item["id"] for item in as_responses_input(messages) if "id" in item]
    assert len(ids) == len(set(ids))


def _parsed(messages: list[Json]) -> list[Json]:
    """Messages with arguments read where they are JSON objects: spacing is not kept by the Messages format."""
    read = []
    for message in messages:
        calls = []
        for call in message.get("tool_calls", ()):
            try:
                value = orjson.loads(call["function"]["arguments"])
            except orjson.JSONDecodeError:
                value = None
            said = value if isinstance(value, dict) else call["function"]["arguments"]
            calls.append((call["id"], call["function"]["name"], said))
        read.append({**message, "tool_calls": calls})
    return read


@given(conversations())
def test_a_conversation_survives_as_anthropic_messages(messages: list[Json]) -> None:
    kept: list[Json] = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            completion = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            said = to_message({}, completion, message_id=f"msg_{number}")["content"]
            kept.append({"role": "assistant", "content": said})
        elif message["role"] == "tool":
            block = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"]}
            kept.append({"role": "user", "content": [block]})
        else:
            kept.append(message)
    request = messages_request.to_chat_request({"model": "m", "max_tokens": 1, "messages": kept})
    assert _parsed(request["messages"]) == _parsed(messages)


@given(answers(), some_text)
def test_a_response_replayed_as_input_says_the_same(answer: tuple[Json, list[Json]], question: str) -> None:
    message, _ = answer
    completion = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    output = to_response({"input": question}, completion, response_id="resp_1", created_at=1.0)["output"]
    body = {"input": [{"role": "user", "content": question}, *output]}
    assert responses_request.to_chat_request(body)["messages"] == [{"role": "user", "content": question}, message]
