"""The client's side of the relay, without I/O: which channels to subscribe, publish to and wait on for one call.

A `RelayConnection` is a subscription that carries one call at a time, as a kept HTTP connection does. Its `exchange` is
a generator of actions, each answered with its result; a transport carries them out, blocking or not.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from gym.relay.frames import SCOPES, WINDOW, Asker, Channels, Frame, cut, decode, is_token

PROBE_S = 2.0
"""Seconds of silence after which the client checks whether its server is still there."""
HELLO_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayRequest:
    """A request in the form that the API accepts over HTTP; `query` is encoded, header names are in lower case."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayAnswer:
    """The API's response, complete."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAnswer:
    """Failure without a response. `sent` is False if no server can have seen the request."""

    reason: str
    sent: bool


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe to a channel and wait for the confirmation; answered with True or `RedisFailure`."""

    channel: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish; answered with the number of receivers, or `RedisFailure`."""

    channel: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for a message; answered with it, with None if none came in time, or `RedisFailure`."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class RedisFailure:
    """Failure of Redis. `status` is 401 or 403 if it refused: the user is unknown, or lacks the permission."""

    reason: str
    status: int | None = None


Action = Subscribe | Publish | Receive
Event = bool | int | bytes | RedisFailure | None
Exchange = Generator[Action, Event, RelayAnswer | LostAnswer]


class _OverError(Exception):
    """The call is over before its response."""

    def __init__(self, outcome: RelayAnswer | LostAnswer) -> None:
        super().__init__()
        self.outcome = outcome


class RelayConnection:
    """One subscription and its server. After a call that was lost or abandoned, discard it."""

    def __init__(self, channels: Channels, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._channels = channels
        self._name = name
        self._line = secrets.token_hex(8)
        self._clock = clock
        self._subscribed = False
        self._asker = Asker(scope=SCOPES[0], name=name)
        self._server: str | None = None
        self._sent = False
        self.usable = False
        """Whether the last call was answered completely, so that the connection can carry another."""

    def exchange(self, ask: RelayRequest, *, silence_s: float) -> Exchange:
        """Send a request and return the response. `silence_s` bounds each silence of a live server."""
        self._sent = self.usable = False
        try:
            if not self._subscribed:
                yield from self._subscribe()
            pieces = cut(ask.body)
            first, last = next(pieces)
            call = secrets.token_hex(8)
            asked = {"method": ask.method, "path": ask.path, "query": ask.query, "headers": dict(ask.headers)}
            frame = Frame("ask", call, {"line": self._line, "last": last, **asked}, first)
            if self._server is None or not (yield from self._publish_ask(frame)):
                self._server = yield from self._find_server(silence_s)
                if not (yield from self._publish_ask(frame)):
                    self._server = None
                    return LostAnswer(reason="the farm's process has gone", sent=False)
            return (yield from self._follow(call, pieces, silence_s))
        except _OverError as over:
            return over.outcome

    def _follow(self, call: str, pieces: Iterator[tuple[bytes, bool]], silence_s: float) -> Exchange:
        """Send the rest of the body as the server grants it, and collect the response."""
        start: Frame | None = None
        parts: list[bytes] = []
        heard_at = self._clock()
        while True:
            frame = yield from self._receive(call)
            if frame is None:
                if self._clock() - heard_at >= silence_s:
                    return LostAnswer(reason=f"nothing came for {silence_s:g} s", sent=True)
                if not (yield from self._publish(Frame("ping", call, {"line": self._line}))):
                    self._server = None
                    return LostAnswer(reason="the farm's process ended before it answered", sent=True)
                continue
            heard_at = self._clock()
            match frame.kind:
                case "more":
                    yield from self._send_body(call, pieces)
                case "lost":
                    return LostAnswer(reason="the farm lost the call before it was answered", sent=True)
                case "answer" | "part" if frame.number("part") == len(parts):
                    start = start or frame
                    parts.append(frame.payload)
                    if frame.head.get("last") is True:
                        self.usable = True
                        return _answer(start, parts)
                    if len(parts) % (WINDOW // 2) == 0:
                        yield from self._publish(Frame("more", call, {"pieces": WINDOW // 2}))
                case "answer" | "part" if frame.number("part") > len(parts):
                    return LostAnswer(reason="a part of the response is missing", sent=True)
                case _:
                    continue  # a duplicate part, or a frame of a newer farm

    def _send_body(self, call: str, pieces: Iterator[tuple[bytes, bool]]) -> Generator[Action, Event, None]:
        found = next(pieces, None)
        if found is not None:
            yield from self._publish(Frame("body", call, {"last": found[1]}, found[0]))

    def _subscribe(self) -> Generator[Action, Event, None]:
        self._expect((yield Subscribe(self._channels.tell(self._name, self._line))))
        self._subscribed = True

    def _find_server(self, silence_s: float) -> Generator[Action, Event, str]:
        """Find the first server that answers, with the scope that the user's ACL allows."""
        call = secrets.token_hex(8)
        for scope in SCOPES:
            self._asker = Asker(scope=scope, name=self._name)
            event = yield Publish(self._channels.ask(self._asker), Frame("hello", call, {"line": self._line}).encode())
            if not (isinstance(event, RedisFailure) and event.status == 403 and scope != SCOPES[-1]):
                break
        if not self._expect(event):
            raise _OverError(
                LostAnswer(reason="no farm listens on this Redis under this prefix and database", sent=False)
            )
        give_up_at = self._clock() + min(silence_s, HELLO_S)
        while self._clock() < give_up_at:
            frame = yield from self._receive(call)
            if frame is not None and frame.kind == "here" and is_token(server := frame.text("server")):
                return server
        raise _OverError(LostAnswer(reason="a farm listens on this Redis but did not answer", sent=False))

    def _publish_ask(self, frame: Frame) -> Generator[Action, Event, int]:
        """Publish a request; if Redis breaks meanwhile, a server may have received it."""
        self._sent = True
        heard = yield from self._publish(frame)
        self._sent = heard > 0
        return heard

    def _publish(self, frame: Frame) -> Generator[Action, Event, int]:
        """Return the number of receivers: 0 if the server is gone."""
        server = self._server or ""
        return int(self._expect((yield Publish(self._channels.ask(self._asker, server), frame.encode()))) or 0)

    def _receive(self, call: str) -> Generator[Action, Event, Frame | None]:
        """Return the next frame of a call, None after some time without one."""
        while True:
            event = self._expect((yield Receive(PROBE_S)))
            if not isinstance(event, bytes):
                return None
            frame = decode(event)
            if frame is not None and frame.call == call:
                return frame

    def _expect(self, event: Event) -> bool | int | bytes | None:
        if not isinstance(event, RedisFailure):
            return event
        if event.status is None:
            raise _OverError(LostAnswer(reason=event.reason, sent=self._sent))
        raise _OverError(_refusal(event.status, event.reason, self._name))


def _answer(start: Frame, parts: Sequence[bytes]) -> RelayAnswer:
    headers = start.head.get("headers")
    kept = {str(name): str(value) for name, value in headers.items()} if isinstance(headers, dict) else {}
    return RelayAnswer(status=start.number("status"), headers=kept, body=b"".join(parts))


def _refusal(status: int, reason: str, name: str) -> RelayAnswer:
    """Return the API's form of an error that Redis itself raised."""
    code = "unauthorized" if status == 401 else "forbidden"
    message = f"Redis refuses the user {name} ({reason}); `farm redis-acl {name}` prints the ACL that a client needs"
    error = {"error": {"code": code, "message": message, "details": {"user": name}}}
    return RelayAnswer(status=status, headers={}, body=orjson.dumps(error))
