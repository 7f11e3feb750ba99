"""Messages of the relay: channels, and frames of a JSON head, a newline and a payload. No I/O.

Frames of a client: `hello` (which server listens?), `ask` (a request with the start of its body), `body` (a further
piece, sent only after `more` allowed it), `more` (this many pieces of the response were taken), `ping` (is the call
still known?). Frames of a server: `here`, `answer` (status, headers, start of the body), `part`, `more`, `lost` (it is
not known).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from gym.jsontypes import JsonObject

PIECE_BYTES = 256 * 1024
FIRST_BYTES = 64 * 1024  # of an `ask`, which needs no grant
MAX_FRAME_BYTES = PIECE_BYTES + 64 * 1024
WINDOW = 16
"""Pieces of a response in transit. Redis disconnects a reader with more than 8 MiB waiting for long."""

ANY = "any"
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TOKEN = re.compile(r"[a-z0-9-]{1,64}")
AskScope = Literal["submit", "read"]
SCOPES: tuple[AskScope, ...] = ("submit", "read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """The caller by its channel, on which only that Redis user may publish."""

    scope: AskScope
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """The channels of one farm. Publish/subscribe ignores databases, so the farm's is in the name."""

    prefix: str
    db: int = 0

    def ask(self, asker: Asker, server: str = ANY) -> str:
        """Return the channel from a client to one server, or to all."""
        return f"{self.prefix}:{self.db}:relay:ask:{asker.scope}:{asker.name}:{server}"

    def asked(self, server: str) -> str:
        """Return the pattern of all channels to a server."""
        return f"{self.prefix}:{self.db}:relay:ask:*:*:{server}"

    def tell(self, name: str, line: str) -> str:
        """Return the channel on which one client connection receives its responses."""
        return f"{self.prefix}:{self.db}:relay:tell:{name}:{line}"

    def asker(self, channel: str) -> Asker | None:
        """Return the caller on a channel, None if it is not a client's channel."""
        parts = channel.split(":")
        if len(parts) != 7 or parts[4] not in SCOPES or not NAME.fullmatch(parts[5]):
            return None
        return Asker(scope="submit" if parts[4] == "submit" else "read", name=parts[5])


@dataclass(frozen=True, slots=True)
class Frame:
    """One message; `call` identifies its call, `head` holds the fields of its kind."""

    kind: str
    call: str
    head: JsonObject
    payload: bytes = b""

    def encode(self) -> bytes:
        """Encode the frame for publishing."""
        return orjson.dumps({"kind": self.kind, "call": self.call, **self.head}) + b"\n" + self.payload

    def text(self, name: str) -> str:
        """Return a string field of the head, empty if it is missing."""
        value = self.head.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> int:
        """Return an integer field of the head, 0 if it is missing."""
        value = self.head.get(name)
        return value if isinstance(value, int) else 0


def decode(data: bytes) -> Frame | None:
    """Decode a frame; None for other data."""
    head, _, payload = data.partition(b"\n")
    try:
        fields: Any = orjson.loads(head)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(fields, dict):
        return None
    kind, call = fields.pop("kind", None), fields.pop("call", None)
    if not isinstance(kind, str) or not is_token(call):
        return None
    return Frame(kind, call, fields, payload)


def is_token(value: object) -> bool:
    """Return whether a value may name a call, a connection or a server."""
    return isinstance(value, str) and _TOKEN.fullmatch(value) is not None


def cut(body: Iterable[bytes], first_bytes: int = FIRST_BYTES) -> Iterator[tuple[bytes, bool]]:
    """Split a body into pieces, each with whether it is the last one; at least one piece."""
    held = b""
    limit = first_bytes
    for piece in body:
        view = memoryview(piece)
        while len(held) + len(view) > limit:
            room = limit - len(held)
            yield held + bytes(view[:room]), False
            view = view[room:]
            held, limit = b"", PIECE_BYTES
        held += bytes(view)
    yield held, True
