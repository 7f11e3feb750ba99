"""Every stream under `golden/stream` becomes the events and the completion that the file says."""

import copy
from pathlib import Path
from typing import Any

import orjson
import pytest

from gym.wire.chat.chunks import ChatAccumulator
from gym.wire.chat.stream import ChatStream, StreamTranslator
from gym.wire.messages.stream import MessagesStream
from gym.wire.responses.stream import ResponsesStream

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted((GOLDEN / "stream").glob("*.json"))
CHAT = sorted((GOLDEN / "chat_stream").glob("*.json"))


def _events(translator: StreamTranslator, chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    events = copy.deepcopy(translator.start())
    for chunk in chunks:
        events += copy.deepcopy(translator.feed(chunk))
    events += translator.finish()
    assert all(name == data["type"] for name, data in events)
    return [data for _, data in events]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_stream_becomes_what_its_golden_file_says(path: Path) -> None:
    case = orjson.loads(path.read_bytes())
    body, chunks = case["request"], case["chunks"]
    responses = ResponsesStream(body, response_id="resp_1", created_at=5.0)
    assert _events(responses, chunks) == case["responses"]
    assert _events(MessagesStream(body, message_id="msg_1"), chunks) == case["messages"]
    accumulator = ChatAccumulator()
    for chunk in chunks:
        accumulator.feed(chunk)
    assert accumulator.completion() == case["completion"]


@pytest.mark.parametrize("path", CHAT, ids=lambda path: path.stem)
def test_chunks_are_shown_to_a_chat_caller_as_the_golden_file_says(path: Path) -> None:
    case = orjson.loads(path.read_bytes())
    chunks = copy.deepcopy(case["chunks"])
    stream = ChatStream(case["request"])
    events = [event for chunk in chunks for event in stream.feed(chunk)] + stream.finish()
    assert [data for _, data in events] == case["events"]
    assert {name for name, _ in events} == {None}
    assert chunks == case["chunks"], "the server's chunks were changed"


def test_there_are_golden_streams() -> None:
    assert len(CHAT) > 2
    assert len(CASES) > 6
