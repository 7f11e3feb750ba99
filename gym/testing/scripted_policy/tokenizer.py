"""A tokenizer that needs no vocabulary, and the chat template of the scripted model.

Stateless and reversible: ASCII text becomes tokens of up to four characters, every other character is one token, and
marks of the template (`<|im_start|>user`, `<think>`, `<tool_call>` …) are one token each. Ids fit an int32. Invariants:
`decode(encode(text)) == text`; `encode` of a rendered prompt is that prompt's ids; a prefix of an encoding is the
encoding of its own text, except that a text cut inside a token gets another last token.

The template is prefix-stable: the ids of `messages` with a generation prompt, followed by the generated ids, are a
prefix of the ids of any longer conversation that continues from them, so that an episode is one segment. With
`history="strip_reasoning"` it drops the reasoning of earlier turns, as the templates of several reasoning models do,
and every turn after a reasoning one begins a new segment.
"""

from __future__ import annotations

import json
import re
import sys
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, Literal

import orjson

from gym.jsontypes import JsonObject

History = Literal["keep", "strip_reasoning"]

MARKS: Final = (
    "<|im_end|>",
    "<|im_start|>system\n",
    "<|im_start|>developer\n",
    "<|im_start|>user\n",
    "<|im_start|>assistant\n",
    "<|im_start|>tool\n",
    "<|im_start|>tools\n",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
)
# the four bytes of a packed text never begin with NUL, those of a mark always do
_ID_OF_MARK: Final = {mark: (number + 1) << 8 for number, mark in enumerate(MARKS)}
_MARK_OF_ID: Final = {token_id: mark for mark, token_id in _ID_OF_MARK.items()}
END_ID: Final = _ID_OF_MARK["<|im_end|>"]
GENERATION_PROMPT: Final = "<|im_start|>assistant\n"

_SPLIT = re.compile("(" + "|".join(re.escape(mark) for mark in MARKS) + ")")
_PIECES = re.compile(r"[\x01-\x7f]{1,4}|[^\x01-\x7f]")
_WIDTH = 4
_SHORT = 1024  # characters; the cache stays under 100 MB
_HIGH = 0x80  # the lowest bit pattern that no ASCII byte has
_dump = json.JSONEncoder(ensure_ascii=False).encode
REPLACEMENT = "\ufffd"


def encode(text: str) -> list[int]:
    """Return the token ids of a text; marks of the template are recognized anywhere in it."""
    if "<" not in text:
        return list(_encode_plain(text))
    ids: list[int] = []
    for part in _SPLIT.split(text):
        mark = _ID_OF_MARK.get(part)
        if mark is None:
            ids += _encode_plain(part)
        else:
            ids.append(mark)
    return ids


def decode(ids: Iterable[int]) -> str:
    """Return the text of token ids; an unknown id becomes U+FFFD."""
    return "".join(map(token_text, ids))


@lru_cache(maxsize=65_536)
def token_text(token_id: int) -> str:
    """Return the text of one token."""
    mark = _MARK_OF_ID.get(token_id)
    if mark is not None:
        return mark
    if not 0 < token_id < 2**31:
        return REPLACEMENT
    if token_id & _HIGH:
        code = (token_id >> 8 << 7) | (token_id & 0x7F)
        return chr(code) if code <= sys.maxunicode and not 0xD800 <= code < 0xE000 else REPLACEMENT
    packed = token_id.to_bytes(_WIDTH, "little").rstrip(b"\0")
    return packed.decode() if packed.isascii() and b"\0" not in packed else REPLACEMENT


def _encode_plain(text: str) -> Sequence[int]:
    # prompts share system messages, tools and earlier turns
    return _encode_short(text) if len(text) <= _SHORT else _encode_unmarked(text)


@lru_cache(maxsize=4096)
def _encode_short(text: str) -> tuple[int, ...]:
    return tuple(_encode_unmarked(text))


def _encode_unmarked(text: str) -> list[int]:
    if text.isascii() and "\0" not in text:
        data = text.encode()
        packed = array("I", data + bytes(-len(data) % _WIDTH))
        if sys.byteorder == "big":
            packed.byteswap()
        return packed.tolist()
    return [_encode_piece(piece) for piece in _PIECES.findall(text)]


def _encode_piece(piece: str) -> int:
    code = ord(piece[0])
    if 0 < code < _HIGH:
        return int.from_bytes(piece.encode(), "little")
    return (code >> 7 << 8) | _HIGH | (code & 0x7F)


def text_of(content: Any) -> str:
    """Return the text of a chat message's content: a string, a list of parts, or nothing."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part.get("text") or "" if isinstance(part, dict) else str(part) for part in content)
    return "" if content is None else str(content)


def canonical_arguments(arguments: Any) -> str:
    """Return tool call arguments in the template's form, whatever formatting a client applied.

    Arguments that are not JSON are returned unchanged.
    """
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            return str(arguments)
    return _dump(arguments)


def call_text(name: str, arguments: str) -> tuple[str, str, str]:
    """Return the parts of a generated tool call: the text before its arguments, the arguments, the text after them."""
    return f'{{"name": {_dump(name)}, "arguments": ', arguments, "}"


def _assistant_text(message: JsonObject, *, keep_reasoning: bool) -> str:
    parts: list[str] = []
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    if reasoning and keep_reasoning:
        parts += ("<think>", text_of(reasoning), "</think>")
    parts.append(text_of(message.get("content")))
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        head, arguments, tail = call_text(
            str(function.get("name", "")), canonical_arguments(function.get("arguments", ""))
        )
        parts += ("<tool_call>", head, arguments, tail, "</tool_call>")
    return "".join(parts)


def render(
    messages: Sequence[JsonObject],
    tools: Sequence[JsonObject] | None = None,
    *,
    history: History = "keep",
    add_generation_prompt: bool = True,
) -> str:
    """Return the prompt text of a conversation."""
    parts: list[str] = []
    if tools:
        parts += ("<|im_start|>tools\n", orjson.dumps(tools).decode(), "<|im_end|>")
    for message in messages:
        role = message.get("role")
        if role == "assistant":
            text = _assistant_text(message, keep_reasoning=history == "keep")
        else:
            text = text_of(message.get("content"))
        mark = f"<|im_start|>{role}\n"
        parts += (mark if mark in _ID_OF_MARK else "<|im_start|>user\n", text, "<|im_end|>")
    if add_generation_prompt:
        parts.append(GENERATION_PROMPT)
    return "".join(parts)
