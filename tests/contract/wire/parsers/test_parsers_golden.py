"""Every text under `golden` becomes the message and finish reason that its file says: those of vLLM 0.32.0.

Where vLLM loses, cuts or changes what a model wrote, `ours` is the message here and `message` is still the server's.
`tests/vllm/test_parsers_against_vllm.py` holds the same files against vLLM itself.
"""

from pathlib import Path
from typing import Any

import orjson
import pytest

from gym.wire.parsers import REASONING_PARSERS, TOOL_PARSERS, finish_reason, parse_reply

GOLDEN = Path(__file__).parent / "golden"
TOOLS = orjson.loads((GOLDEN / "tools.json").read_bytes())
CASES = {
    f"{path.stem}-{case['name']}": case
    for path in sorted(GOLDEN.glob("*.json"))
    if path.stem != "tools"
    for case in orjson.loads(path.read_bytes())
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_text_becomes_the_message_of_its_golden_case(case: dict[str, Any]) -> None:
    message = parse_reply(
        case["text"],
        tool_parser=case["tool_parser"],
        reasoning_parser=case["reasoning_parser"],
        tools=case.get("tools", TOOLS),
        id_prefix="g",
        tool_choice=case.get("tool_choice"),
        thinking=case.get("thinking", True),
    )
    assert message == case.get("ours", case["message"])
    assert finish_reason(message, case.get("stopped", "stop"), case.get("tool_choice")) == (
        "tool_calls" if "ours" in case else case["finish_reason"]
    )


def test_each_parser_has_golden_cases_or_shares_those_of_another_name() -> None:
    shared = {"qwen3_json": "hermes", "llama4_json": "llama3_json", "qwen3_xml": "qwen3_coder"}
    assert {case["tool_parser"] for case in CASES.values()} == {*TOOL_PARSERS, None} - set(shared)
    assert {case["reasoning_parser"] for case in CASES.values()} == {*REASONING_PARSERS, None}
    assert len(CASES) > 350
