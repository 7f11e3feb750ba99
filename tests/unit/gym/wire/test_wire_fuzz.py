"""Any JSON is translated, or refused by its own error: never by a TypeError, KeyError or the like."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.captures.conversation import chain, count_items, input_items
from gym.model_client.tokens.splice import altered
from gym.wire.chat import request as chat
from gym.wire.chat.chunks import ChatAccumulator
from gym.wire.chat.request import to_completion
from gym.wire.chat.stream import ChatStream, StreamTranslator
from gym.wire.errors import BadCompletion, WireError
from gym.wire.messages import request as messages_request
from gym.wire.messages.reply import to_message
from gym.wire.messages.stream import MessagesStream
from gym.wire.responses import request as responses_request
from gym.wire.responses.reply import to_response
from gym.wire.responses.stream import ResponsesStream

Json = dict[str, Any]
GOLDEN = Path(__file__).parents[3] / "contract" / "wire" / "golden"

scalars = st.one_of(st.none(), st.booleans(), st.integers(-2, 9), st.floats(allow_nan=False), st.text(max_size=4))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "x"]), inner),
    max_leaves=4,
)


def _golden(kind: str, field: str) -> list[Any]:
    return [orjson.loads(path.read_bytes())[field] for path in sorted((GOLDEN / kind).glob("*.json"))]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path]
    for key, child in inner:
        found += _places(child, (*path, key))
    return found


@st.composite
def damaged(draw: st.DrawFn, originals: list[Any]) -> Any:
    """A golden value in which one thing is replaced by something else, or taken out."""
    value = copy.deepcopy(draw(st.sampled_from(originals)))
    *way, last = draw(st.sampled_from(_places(value)[1:] or [("x",)]))
    inner = value
    for key in way:
        inner = inner[key]
    if isinstance(inner, dict) and draw(st.booleans()):
        inner.pop(last, None)
    else:
        inner[last] = draw(values)
    return value


RESPONSES, MESSAGES, CHAT = (_golden(f"{name}_request", "request") for name in ("responses", "messages", "chat"))
COMPLETIONS = _golden("responses_reply", "completion") + _golden("messages_reply", "completion")
STREAMS = _golden("stream", "chunks")


@pytest.mark.parametrize(
    ("translate", "originals"),
    [
        (responses_request.to_chat_request, RESPONSES),
        (messages_request.to_chat_request, MESSAGES),
        (chat.to_chat_request, CHAT),
    ],
)
@given(data=st.data())
def test_a_damaged_request_is_translated_or_refused(
    translate: Callable[[Json], Json], originals: list[Json], data: st.DataObject
) -> None:
    request = data.draw(damaged(originals))
    before = copy.deepcopy(request)
    try:
        translated = translate(request)
    except WireError as error:
        assert error.details["field"] == error.field  # noqa: PT017  either outcome is right
    else:
        orjson.dumps(translated)
        messages = translated["messages"]
        assert messages
        # the request sent can be recorded and continued
        assert len(chain(messages)) == len(messages)
        assert len(input_items(messages, id_prefix="r")) == count_items(messages)
        altered(messages)
    assert request == before


@given(damaged(COMPLETIONS))
def test_a_damaged_completion_is_translated_or_broken(completion: Json) -> None:
    for translate in (
        lambda: to_response({"top_logprobs": 1}, completion, response_id="resp_1", created_at=1.0),
        lambda: to_message({}, completion, message_id="msg_1"),
        lambda: to_completion({"logprobs": True}, completion),
    ):
        try:
            orjson.dumps(translate())
        except BadCompletion as error:
            assert error.message  # noqa: PT017  either outcome is right


@given(damaged(STREAMS))
def test_damaged_chunks_are_translated_or_broken(chunks: list[Json]) -> None:
    accumulator = ChatAccumulator()
    translators: list[StreamTranslator] = [
        ResponsesStream({"top_logprobs": 1}, response_id="resp_1", created_at=1.0),
        MessagesStream({}, message_id="msg_1"),
        ChatStream({"logprobs": True}),
    ]
    for chunk in chunks:
        if not isinstance(chunk, dict):
            continue
        for feed in (accumulator.feed, *(translator.feed for translator in translators)):
            try:
                feed(chunk)
            except BadCompletion as error:
                assert error.message  # noqa: PT017  either outcome is right
    orjson.dumps(accumulator.completion())
