"""Every completion under `golden/*_reply` becomes what the file says."""

import copy
from pathlib import Path

import orjson
import pytest

from gym.wire.chat.request import to_completion
from gym.wire.gemini.reply import to_gemini
from gym.wire.messages.reply import to_message
from gym.wire.responses.reply import to_response

GOLDEN = Path(__file__).parent / "golden"
RESPONSES = sorted((GOLDEN / "responses_reply").glob("*.json"))
CHAT = sorted((GOLDEN / "chat_reply").glob("*.json"))
GEMINI = sorted((GOLDEN / "gemini_reply").glob("*.json"))
MESSAGES = sorted((GOLDEN / "messages_reply").glob("*.json"))


@pytest.mark.parametrize("path", RESPONSES, ids=lambda path: path.stem)
def test_a_completion_becomes_the_response_of_its_golden_file(path: Path) -> None:
    case = orjson.loads(path.read_bytes())
    completion = copy.deepcopy(case["completion"])
    response = to_response(case["request"], completion, response_id="resp_1", created_at=1700000000.5)
    assert response == case["response"]
    assert completion == case["completion"], "the server's completion was changed"


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_a_completion_becomes_the_message_of_its_golden_file(path: Path) -> None:
    case = orjson.loads(path.read_bytes())
    assert to_message(case["request"], case["completion"], message_id="msg_1") == case["message"]


@pytest.mark.parametrize("path", GEMINI, ids=lambda path: path.stem)
def test_a_completion_becomes_the_gemini_answer_of_its_golden_file(path: Path) -> None:
    case = orjson.loads(path.read_bytes())
    assert to_gemini(case["request"], case["completion"], response_id="g1") == case["answer"]


@pytest.mark.parametrize("path", CHAT, ids=lambda path: path.stem)
def test_a_completion_is_shown_to_a_chat_caller_as_its_golden_file_says(path: Path) -> None:
    case = orjson.loads(path.read_bytes())
    completion = copy.deepcopy(case["completion"])
    assert to_completion(case["request"], completion) == case["answer"]
    assert completion == case["completion"], "the server's completion was changed"


def test_there_are_golden_replies_of_all_dialects() -> None:
    assert len(CHAT) > 8
    assert len(RESPONSES) > 20
    assert len(MESSAGES) > 10
    assert len(GEMINI) > 3
