"""What travels over the relay: channels, and frames of a JSON head, a line end and a payload. No I/O.

Frames of a client: `hello` (which server listens?), `ask` (a request with the start of its body), `body` (a further
piece, sent only after `more` allowed it), `more` (so many pieces of the answer were taken), `ping` (is the call still
known?). Frames of a server: `here`, `answer` (status, headers, start of the body), `part`, `more`, `lost` (it is not).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from gym.jsontypes import JsonObject

PIECE_BYTES = 256 * 1024
FIRST_BYTES = 64 * 1024  # of an `ask`, which comes unasked
MAX_FRAME_BYTES = PIECE_BYTES + 64 * 1024
WINDOW = 16
"""Pieces of an answer that may be under way. Redis disconnects a reader with more than 8 MiB waiting for long."""

ANY = "any"
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TOKEN = re.compile(r"[a-z0-9-]{1,64}")
AskScope = Literal["submit", "read"]
SCOPES: tuple[AskScope, ...] = ("submit", "read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks, as the channel says, on which only that Redis user may publish."""

    scope: AskScope
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """The channels of one farm. Publish/subscribe knows no databases, so the farm's is in the name."""

    prefix: str
    db: int = 0

    def ask(self, asker: Asker, server: str = ANY) -> str:
        """Where a client asks a server, or all of them."""
        return f"{self.prefix}:{self.db}:relay:ask:{asker.scope}:{asker.name}:{server}"

    def asked(self, server: str) -> str:
        """The pattern of all that is asked of a server."""
        return f"{self.prefix}:{self.db}:relay:ask:*:*:{server}"

    def tell(self, name: str, line: str) -> str:
        """Where a line of a client is told its answers."""
        return f"{self.prefix}:{self.db}:relay:tell:{name}:{line}"

    def asker(self, channel: str) -> Asker | None:
        """Who asks on a channel, `None` where it is no channel of a client."""
        parts = channel.split(":")
        if len(parts) != 7 or parts[4] not in SCOPES or not NAME.fullmatch(parts[5]):
            return None
        return Asker(scope="submit" if parts[4] == "submit" else "read", name=parts[5])


@dataclass(frozen=True, slots=True)
class Frame:
    """One message; `call` says what it belongs to, `head` holds what its kind needs."""

    kind: str
    call: str
    head: JsonObject
    payload: bytes = b""

    def encode(self) -> bytes:
        """As it is published."""
        return orjson.dumps({"kind": self.kind, "call": self.call, **self.head}) + b"\n" + self.payload

    def text(self, name: str) -> str:
        """A text of the head, empty where there is none."""
        value = self.head.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> int:
        """A whole number of the head, 0 where there is none."""
        value = self.head.get(name)
        return value if isinstance(value, int) else 0


def decode(data: bytes) -> Frame | None:
    """A frame, `None` for what is none."""
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
    """Whether a value may name a call, a line or a server."""
    return isinstance(value, str) and _TOKEN.fullmatch(value) is not None


def cut(body: Iterable[bytes], first_bytes: int = FIRST_BYTES) -> Iterator[tuple[bytes, bool]]:
    """A body in pieces, each with whether it is the last one; at least one piece."""
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
