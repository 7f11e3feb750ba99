"""Requests to a server that has the Responses API itself, and its answers as they are read and shown.

One file under `golden/passed_request` is one case: `about`, `request`, and `server` or `error` (the field). One under
`golden/passed_reply`: `about`, `request`, `response` (the server's), `completion` (it as a chat completion), `shown`,
or `broken` (a part of the error's text).
"""

import copy
from pathlib import Path

import orjson
import pytest

from gym.wire.errors import BadCompletion, WireError
from gym.wire.passthrough.reply import RESPONSE, final_response, shown_response, to_completion
from gym.wire.passthrough.request import recorded_request, to_server_request
from gym.wire.passthrough.stream import PassedStream, events_of

GOLDEN = Path(__file__).parent / "golden"
REQUESTS = sorted((GOLDEN / "passed_request").glob("*.json"))
REPLIES = sorted((GOLDEN / "passed_reply").glob("*.json"))


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.stem)
def test_a_request_goes_to_the_server_as_its_golden_file_says(path: Path) -> None:
    case = orjson.loads(path.read_bytes())
    request = copy.deepcopy(case["request"])
    if "error" in case:
        with pytest.raises(WireError) as refused:
            to_server_request(request)
        assert refused.value.details == {"field": case["error"]}
    else:
        assert to_server_request(request) == case["server"]
        assert recorded_request(case["server"])["messages"] == case["recorded"]
    assert request == case["request"], "the caller's request was changed"


@pytest.mark.parametrize("path", REPLIES, ids=lambda path: path.stem)
def test_a_response_is_read_and_shown_as_its_golden_file_says(path: Path) -> None:
    case = orjson.loads(path.read_bytes())
    response = copy.deepcopy(case["response"])
    if "broken" in case:
        with pytest.raises(BadCompletion, match=case["broken"]):
            to_completion(response)
        return
    completion = to_completion(response)
    assert completion.pop(RESPONSE) == case["response"]
    assert completion == case["completion"]
    shown = shown_response(case["request"], response)
    assert shown == case["shown"]
    assert shown_response(case["request"], shown) == shown
    assert response == case["response"], "the server's response was changed"


@pytest.mark.parametrize("path", [path for path in REPLIES if b'"shown"' in path.read_bytes()], ids=lambda p: p.stem)
def test_the_events_of_a_known_response_end_in_it_and_have_all_of_its_texts(path: Path) -> None:
    case = orjson.loads(path.read_bytes())
    events = events_of(case["shown"])
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert final_response(events[-1]) == case["shown"]
    added = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == case["shown"]["output"]
    assert added == [item["id"] for item in done]
    texts = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert texts == case["completion"]["choices"][0]["message"]["content"]
    stream = PassedStream(case["request"], response_id="resp_1", created_at=0.0)
    passed = [event for chunk in events for event in stream.feed(chunk)]
    assert [event for _, event in [*passed, *stream.finish()]] == events
