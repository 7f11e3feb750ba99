"""Token ids of a prompt as the server wrote them, so that a turn reads and sends its own part only. Pure.

A chat server gives all ids of its prompt with each answer, and may be sent all of them with each request. To make
numbers of them and text again at every turn costs more than all else of a long conversation. So their text is kept
beside them: where the next prompt's text begins with that of the tokens so far, only what follows is read.

Invariant: what is read is what a JSON parser would read in the whole answer; where that is not certain nothing is cut.
"""

from __future__ import annotations

import secrets
from array import array
from dataclasses import dataclass

import orjson

from gym.model_client.tokens.prefix import prefix_of
from gym.trajectory import TurnTokens

FIELD = b'"prompt_token_ids":'
MARK = secrets.token_hex(16)  # stands where a list was cut out; no server can write it
SHORT_BYTES = 2048  # of an answer, for which a parser is as fast
_SPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class PromptIds:
    """A prompt, and the text between the brackets of its list."""

    ids: array[int]
    text: bytes

    def continued(self, token_ids: array[int]) -> bytes:
        """The text of the prompt and of what was generated after it, as the same server would write it."""
        more = orjson.dumps(token_ids.tolist())[1:-1]
        if not more:
            return self.text
        if b", " in self.text[:32]:
            return b"%b, %b" % (self.text, more.replace(b",", b", "))
        return b"%b,%b" % (self.text, more)


def cut_prompt(raw: bytes, earlier: TurnTokens | None) -> tuple[bytes, PromptIds | None]:
    """An answer without its prompt's ids, in whose place `MARK` stands, and the ids; else the answer as it is.

    `earlier` are the tokens of the turn before. A quote within a JSON text is escaped, so the field is a key for
    certain; whether it is that of the answer itself is for the caller to see, by the mark.
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
