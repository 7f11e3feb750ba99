"""Refusals of model servers, and detection of context overflows.

An overflow is recognised by error fields if the server sends them, else by the whole beginning of its sentence. A
message that merely mentions the context or `max_tokens` is not an overflow. A request whose token limit leaves no room
for any prompt is a wrong setting, not an overflow: it would silently end every rollout of a batch.

Sources: vLLM 0.4 to 0.32 (`entrypoints/openai`, `renderers/params.py`, `v1/engine/input_processor.py`), SGLang, OpenAI.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

MESSAGE_CHARS = 500

_STATUSES = frozenset({400, 413, 422, 500})  # some releases of vLLM answered 500 to a prompt that is too long
_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_PARAMS = frozenset({"input_tokens", "input_text"})  # vLLM from 0.13 on
# prefix that routers add to the server's sentence, as in "litellm.BadRequestError: OpenAIException - "
_PREFIX = r"(?:[\w.]*(?:Error|Exception)(?::| -) )*"
_CONTEXT = r"This model's maximum context length is (?P<limit>\d+) tokens\. However, "
_TOO_LARGE = (
    r"'max_tokens' or 'max_completion_tokens' is too large: (?P<output>\d+)\. This model's maximum context length is "
)
_PASSED = r"You passed \d+ input (?:tokens|characters) and requested (?P<output>\d+) output tokens\. "
_COUNT = (
    r"Requested token count exceeds the model's maximum context length of (?P<limit>\d+) tokens\. "
    r"You requested a total of \d+ tokens: "
)
_LONGER = r"is longer than the maximum model length of \d+"
_SENTENCES = tuple(
    re.compile(_PREFIX + sentence)
    for sentence in (
        # vLLM to 0.8, OpenAI
        _CONTEXT + r"you requested \d+ tokens \(\d+ in the messages, (?:.* )?(?P<output>\d+) in the completion\)",
        _CONTEXT + r"your messages resulted in \d+ tokens",
        # vLLM 0.9 to 0.14
        _CONTEXT + r"your request has \d+ input tokens",
        _TOO_LARGE + r"(?P<limit>\d+) tokens and your request has \d+ input tokens",
        # vLLM 0.15 to 0.17
        _PASSED + r"However, the model's context length is only (?P<limit>\d+) tokens",
        # vLLM from 0.18 on
        _CONTEXT + r"you requested (?P<output>\d+) output tokens and your prompt contains (?:at least )?\d+ "
        r"(?:input tokens|characters)",
        # vLLM 0.32, which uses the rest of the context if the requested limit does not fit
        _CONTEXT + r"your prompt contains (?:at least )?\d+ (?:input tokens|characters)",
        r"Input length \(\d+\) exceeds model's maximum context length \(\d+\)",
        # vLLM's engine, for requests that passed the front end
        r"The (?:encoder|decoder) prompt \(length \d+\) " + _LONGER,
        r"The decoder prompt \(length \d+\) plus the number of requested output tokens \(at least 1\) " + _LONGER,
        r"(?:The )?[Pp]rompt length of \d+ " + _LONGER,
        r"The prompt \(total length \d+\) is too long to fit into the model \(context length \d+\)",
        # SGLang
        r"The input \(\d+ tokens\) is longer than the model's context length \(\d+ tokens\)",
        _COUNT + r"\d+ tokens from the input messages and (?P<output>\d+) tokens for the completion",
    )
)
# vLLM 0.4 to 0.6, and 0.32 if the prompt fills the context: the limit became the remaining room
_NOTHING_LEFT = re.compile(_PREFIX + r"max_(?:completion_)?tokens must be at least 1, got (?:0|-\d+)\b")
_ROUTER_CODE = re.compile(r"litellm\.ContextWindowExceededError:")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Error answer: `{"error": {message, type, param, code}}`, the older flat one, `detail`, or plain text."""

    message: str
    type: str = ""
    param: str = ""
    code: str = ""


def read_refusal(body: bytes) -> Refusal:
    """Read the error in a body of any shape; the message is truncated to fit an error text."""
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Refusal(body[:MESSAGE_CHARS].decode(errors="replace").strip())
    if isinstance(value, dict):
        error = value.get("error")
        if isinstance(error, dict):
            value = error
        elif isinstance(error, str):
            return Refusal(error[:MESSAGE_CHARS])
        message = value.get("message") or _detail(value.get("detail"))
        if isinstance(message, str) and message:
            fields = (str(value.get(name) or "") for name in ("type", "param", "code"))
            return Refusal(message[:MESSAGE_CHARS], *fields)
    return Refusal(body[:MESSAGE_CHARS].decode(errors="replace").strip())


def is_context_overflow(status: int, refusal: Refusal, *, max_tokens: int | None) -> bool:
    """Return whether the prompt and the tokens that may follow it exceed the model's context."""
    if status not in _STATUSES:
        return False
    match = next((found for sentence in _SENTENCES if (found := sentence.match(refusal.message))), None)
    if match is not None:
        groups = match.groupdict()
        limit, output = groups.get("limit"), groups.get("output")
        return limit is None or output is None or int(output) < int(limit)
    if refusal.code in _CODES or refusal.type in _CODES:
        return True
    if status == 400 and refusal.param in _PARAMS:
        return True
    if _ROUTER_CODE.match(refusal.message):
        return True
    return (max_tokens is None or max_tokens > 0) and _NOTHING_LEFT.match(refusal.message) is not None


def _detail(detail: Any) -> str:
    """Return FastAPI's `detail` as a text; of a list of {loc, msg, input} the input is left out."""
    if isinstance(detail, str):
        return detail
    if not isinstance(detail, list):
        return ""
    problems = [item for item in detail if isinstance(item, dict)]
    return "; ".join(f"{'.'.join(map(str, item.get('loc') or ()))}: {item.get('msg')}" for item in problems)
