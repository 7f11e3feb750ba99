"""The farm's side of the relay: an api process listens here and answers with its own ASGI app.

Invariants: a call is answered by one server. A call whose client has gone sees a disconnect, as over HTTP. If this
server's subscription breaks, it returns under another name, so that no client waits for missed messages.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gym.errors import TooLarge, Unavailable
from gym.relay.call import App, RelayCall
from gym.relay.frames import ANY, FIRST_BYTES, MAX_FRAME_BYTES, Channels, Frame, decode, is_token
from gym.relay.shares import Shares
from gym.state.redis.store import end_tasks

T = TypeVar("T")

MAX_CALLS = 1024
RESERVED_CALLS = 16  # for each client, however many the others have
MAX_GRANTS = 32
HEAD_BYTES = 64 * 1024  # size of an `ask` before its body, as over HTTP
PUBLISHING = 64
WATCH_S = 1.0
BEAT_EVERY_S = 5.0
SILENCE_S = 20.0
AGAIN_S = 0.5
AGAIN_MOST_S = 5.0
LEAVE_S = 3.0
_TOO_LARGE = f"a call begins with at most {HEAD_BYTES} bytes of headers and {FIRST_BYTES} bytes of its body"
_LOG = logging.getLogger(__name__)


class RelayServer:
    """Server that answers calls until `serve` is cancelled; while Redis is unavailable it waits."""

    def __init__(
        self, url: str, channels: Channels, app: App, *, timeout_s: float = 10.0, max_calls: int = MAX_CALLS
    ) -> None:
        # No retries here: the client notices a failure and repeats its call. Commands have our own bounds: with a
        # socket timeout redis-py sends inside `asyncio.wait_for`, which before Python 3.12 may swallow a cancellation.
        self._redis: Any = Redis.from_url(
            url,
            socket_timeout=None,
            socket_connect_timeout=min(timeout_s, 5.0),
            retry=Retry(NoBackoff(), 0),
            max_connections=PUBLISHING + 8,
        )
        self._timeout_s = timeout_s
        self._channels = channels
        self._app = app
        self._max_calls = max_calls
        self._publishing = asyncio.Semaphore(PUBLISHING)
        # a client's calls and uploads take no capacity from others (`Shares`), however many it begins and abandons
        self._grants = Shares(total=MAX_GRANTS, each=MAX_GRANTS // 4, reserved=1)
        self._places = Shares(total=max_calls, each=max(1, max_calls // 2), reserved=min(RESERVED_CALLS, max_calls))
        self._calls: dict[str, RelayCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscription: Any = None
        self._retired = False
        self.listening = asyncio.Event()
        """Set once the subscription is confirmed for the first time."""
        self.trouble = ""
        """Reason why clients are not served at present; empty if they are or if it has not been tried."""

    async def serve(self) -> None:
        """Listen and answer. When cancelled, calls under way get `LEAVE_S` to end."""
        pause_s = AGAIN_S
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                try:
                    await self._session(f"s-{secrets.token_hex(8)}")
                except* RedisError as errors:
                    reason = self.trouble = type(errors.exceptions[0]).__name__
                    _LOG.warning("the relay cannot reach Redis: %s", reason, extra={"action": "relay_away"})
                for call in self._calls.values():
                    call.leave()
                self._calls.clear()
                pause_s = AGAIN_S if loop.time() - began > SILENCE_S else min(AGAIN_MOST_S, 2 * pause_s)
                await asyncio.sleep(pause_s)
        finally:
            await self._end()

    async def retire(self) -> None:
        """Accept no further calls: other servers answer them. Calls under way continue."""
        self._retired = True
        if self._subscription is not None:
            try:
                await self._bounded(self._subscription.punsubscribe(self._channels.asked(ANY)))
            except RedisError as error:
                _LOG.warning("the relay cannot unsubscribe: %s", type(error).__name__, extra={"action": "relay_away"})

    async def _end(self) -> None:
        """Let calls end, then cancel them; a second cancellation shortens the wait."""
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=LEAVE_S)
        finally:
            left = list(self._tasks)
            await end_tasks(left)
            await asyncio.gather(*left, return_exceptions=True)
            await self._redis.aclose()

    async def _session(self, server: str) -> None:
        """Listen under one name until the subscription breaks."""
        pubsub = self._subscription = self._redis.pubsub()
        try:
            await self._bounded(pubsub.psubscribe(self._channels.asked(server), self._channels.asked(ANY)))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(server), name="relay watch")
                heard_at = asyncio.get_running_loop().time()
                while True:
                    message = await pubsub.get_message(timeout=SILENCE_S / 4)
                    now = asyncio.get_running_loop().time()
                    if message is not None:
                        heard_at = now
                        if message["type"] == "pmessage":
                            self._hear(message["channel"].decode(errors="replace"), message["data"], server)
                        elif message["data"] == 2:  # both patterns are confirmed
                            self.listening.set()
                            self.trouble = ""
                        await asyncio.sleep(0)  # reading messages that are already there yields to no other task
                    elif now - heard_at > SILENCE_S:
                        # `_watch` publishes beats to this subscription; without one it has broken unnoticed
                        raise RedisConnectionError("the subscription is silent")
        finally:
            await pubsub.aclose()

    async def _watch(self, server: str) -> None:
        """Publish beats, and detect clients that have gone."""
        beat_at = 0.0
        while True:
            now = asyncio.get_running_loop().time()
            if now >= beat_at:
                await self._publish(self._channels.asked(server), b"beat")
                beat_at = now + BEAT_EVERY_S
            calls = list(self._calls.values())
            if calls:
                counts = await self._bounded(self._redis.pubsub_numsub(*(call.channel for call in calls)))
                for call, (_, listeners) in zip(calls, counts, strict=True):
                    if not listeners:
                        call.leave()
            await asyncio.sleep(WATCH_S)

    def _hear(self, channel: str, data: bytes, server: str) -> None:
        asker = self._channels.asker(channel)
        frame = decode(data) if asker is not None and len(data) <= MAX_FRAME_BYTES else None
        if asker is None or frame is None:
            return
        call = self._calls.get(frame.call)
        if call is not None:
            if call.asker == asker:
                call.hear(frame)
            return
        line = frame.text("line")
        if not is_token(line):
            return
        tell = self._channels.tell(asker.name, line)
        to_all = channel.endswith(f":{ANY}")
        if frame.kind == "hello" and not self._retired:
            self._start(self._say(tell, Frame("here", frame.call, {"server": server})), "hello")
        elif frame.kind == "ping" and not to_all:
            self._start(self._say(tell, Frame("lost", frame.call, {})), "ping")
        elif frame.kind == "ask" and not to_all:
            call = RelayCall(frame, asker, tell, self._publish, self._grants)
            if self._retired:
                self._start(self._say(tell, Frame("lost", frame.call, {})), "refusal")
            elif len(frame.payload) > FIRST_BYTES or len(data) - len(frame.payload) > HEAD_BYTES:
                self._start(call.refuse(TooLarge("ask_too_large", _TOO_LARGE)), "refusal")
            elif self._places.take(asker.name):
                self._calls[frame.call] = call
                self._start(self._run(call, frame.call), "call")
            else:
                full = Unavailable(
                    "relay_busy",
                    f"{self._max_calls} calls are under way here, or half as many of {asker.name}'s; retry later",
                    retry_after_s=2,
                )
                self._start(call.refuse(full), "refusal")

    async def _run(self, call: RelayCall, call_id: str) -> None:
        try:
            await call.run(self._app)
        finally:
            self._places.give_back(call.asker.name)
            if self._calls.get(call_id) is call:
                del self._calls[call_id]

    async def _say(self, channel: str, frame: Frame) -> None:
        try:
            await self._publish(channel, frame.encode())
        except RedisError as error:
            _LOG.warning(
                "a message to a client failed: %s", type(error).__name__, extra={"action": "relay_answer_lost"}
            )

    async def _publish(self, channel: str, data: bytes) -> int:
        async with self._publishing:
            return int(await self._bounded(self._redis.publish(channel, data)))

    async def _bounded(self, command: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await command
        except TimeoutError:
            raise RedisTimeoutError(f"Redis did not answer within {self._timeout_s:g} s") from None

    def _start(self, work: Coroutine[Any, Any, None], what: str) -> None:
        task = asyncio.create_task(work, name=f"relay {what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
