"""Every request under `golden/*_request` translates to the file's chat request, or is refused naming the field.

One file is one case: `about`, `request`, and `chat` or `error` (the field).
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from gym.wire.chat import request as chat
from gym.wire.errors import WireError
from gym.wire.gemini import request as gemini_request
from gym.wire.messages import request as messages_request
from gym.wire.responses import request as responses_request

GOLDEN = Path(__file__).parent / "golden"
TRANSLATE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "responses_request": responses_request.to_chat_request,
    "messages_request": messages_request.to_chat_request,
    "gemini_request": gemini_request.to_chat_request,
    "chat_request": chat.to_chat_request,
}
CASES = sorted(path for kind in TRANSLATE for path in (GOLDEN / kind).glob("*.json"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_request_becomes_what_its_golden_file_says(path: Path) -> None:
    case = orjson.loads(path.read_bytes())
    translate = TRANSLATE[path.parent.name]
    request = copy.deepcopy(case["request"])
    if "error" in case:
        with pytest.raises(WireError) as refused:
            translate(request)
        assert refused.value.details == {"field": case["error"]}
        assert (refused.value.code, refused.value.status) == ("untranslatable", 422)
    else:
        assert translate(request) == case["chat"]
    assert request == case["request"], "the caller's request was changed"


@pytest.mark.parametrize("kind", sorted(TRANSLATE))
def test_each_dialect_has_golden_requests_of_both_outcomes(kind: str) -> None:
    outcomes = {"error" in orjson.loads(path.read_bytes()) for path in CASES if path.parent.name == kind}
    assert outcomes == {True, False}
