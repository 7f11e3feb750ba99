"""Server-sent events: bytes out, and payloads in from bytes that arrive in any pieces.

Source: the HTML standard, "Server-sent events".
"""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.wire.errors import BadCompletion

DONE = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 64 * 2**20


def event(name: str | None, data: JsonObject) -> bytes:
    """One event; Chat Completions' have no name."""
    payload = exact_json.dumps(data)
    if name is None:
        return b"data: %b\n\n" % payload
    return b"event: %b\ndata: %b\n\n" % (name.encode(), payload)


class SseDecoder:
    """Cuts a byte stream into the data of its events; names, ids and comments are left out.

    An event that the server breaks off in the middle is never returned. The work is linear in the bytes, however
    they are cut.
    """

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._rest: list[bytes] = []  # the pieces of a line without its end
        self._rest_bytes = 0
        self._data: list[bytes] = []
        self._size = 0
        self._started = False
        self._held = False  # a CR at the end, which may be the first half of a CRLF

    def feed(self, received: bytes) -> list[bytes]:
        """The data of the events that these bytes complete, `[DONE]` too. Raises BadCompletion for a huge one."""
        events: list[bytes] = []
        self._rest.append(received)
        self._rest_bytes += len(received)
        self._check_size()
        if self._started and b"\n" not in received and b"\r" not in received and not self._held:
            return events
        text = b"".join(self._rest)
        if not self._started:
            if len(text) < 3 and b"\xef\xbb\xbf".startswith(text):
                return events
            text = text.removeprefix(b"\xef\xbb\xbf")
            self._started = True
        self._held = text.endswith(b"\r")
        held = b"\r" if self._held else b""
        text = text[: len(text) - len(held)]
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, last = text.split(b"\n")
        self._rest = [last + held]
        self._rest_bytes = len(last) + len(held)
        for line in lines:
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
                    self._size = 0
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
                self._size += len(line)
            elif line == b"data":
                self._data.append(b"")
                self._size += len(line)
        self._check_size()
        return events

    def _check_size(self) -> None:
        if self._size + self._rest_bytes > self._max:
            raise BadCompletion(f"the model server sent an event of more than {self._max} bytes")
