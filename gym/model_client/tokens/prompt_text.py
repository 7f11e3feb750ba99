"""JSON text of a prompt's token ids, so that each turn parses and serialises only its own part. Pure.

A chat server returns all ids of its prompt with each answer, and may get all of them with each request. Parsing and
serialising them at every turn dominates the cost of a long conversation. So their text is kept beside them: if the next
prompt's text begins with it, only the rest is parsed.

Invariant: the result equals that of a JSON parser on the whole answer; in case of doubt nothing is cut.
"""

from __future__ import annotations

import secrets
from array import array
from dataclasses import dataclass

import orjson

from gym.model_client.tokens.prefix import prefix_of
from gym.trajectory import TurnTokens

FIELD = b'"prompt_token_ids":'
MARK = secrets.token_hex(16)  # placeholder of a list that was cut out; unknown to servers
SHORT_BYTES = 2048  # up to this size of an answer a parser is as fast
_SPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class PromptIds:
    """Token ids of a prompt, and the text between the brackets of their list."""

    ids: array[int]
    text: bytes

    def continued(self, token_ids: array[int]) -> bytes:
        """Return the text of the prompt and the generated tokens, as the same server would write it."""
        more = orjson.dumps(token_ids.tolist())[1:-1]
        if not more:
            return self.text
        if b", " in self.text[:32]:
            return b"%b, %b" % (self.text, more.replace(b",", b", "))
        return b"%b,%b" % (self.text, more)


def cut_prompt(raw: bytes, earlier: TurnTokens | None) -> tuple[bytes, PromptIds | None]:
    """Replace the prompt's ids in an answer by `MARK`, and return them; else return the answer unchanged.

    `earlier` are the tokens of the previous turn. A quote within a JSON string is escaped, so the field is certainly a
    key. The caller checks by the mark that it is the key of the answer itself.
    """
    place = raw.find(FIELD) if len(raw) > SHORT_BYTES else -1
    if place < 0 or raw.find(FIELD, place + len(FIELD)) >= 0:
        return raw, None
    start = place + len(FIELD)
    while raw[start : start + 1] and raw[start] in _SPACE:
        start += 1
    end = raw.find(b"]", start)
    if raw[start : start + 1] != b"[" or end < 0:
        return raw, None
    text = raw[start + 1 : end].strip(_SPACE)
    ids, unread = array("i"), text
    if earlier is not None and earlier.text is not None and text.startswith(earlier.text):
        length = len(earlier.text)
        if text[length : length + 1] == b",":
            ids, unread = prefix_of(earlier), text[length + 1 :]
    try:
        if not (more := orjson.loads(b"[%b]" % unread)):
            return raw, None
        ids.extend(more)
    except (orjson.JSONDecodeError, TypeError, OverflowError):
        return raw, None
    return b'%b"%b"%b' % (raw[:start], MARK.encode(), raw[end + 1 :]), PromptIds(ids, text)
