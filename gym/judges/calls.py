"""Calls to a judge's replicas through the model client: health checks, load balancing, retries within a deadline.

Errors of the model client become judge errors: an unreachable judge must not count as an unreachable policy.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from gym.errors import JudgeParked, JudgeRefused, JudgeUnreachable, ModelRejected, ModelUnreachable
from gym.jsontypes import JsonObject
from gym.judges.settings import JudgeSettings
from gym.model_client.client import OverflowReply, PolicyClient
from gym.model_client.forward import ChatCall
from gym.model_client.http.hosts import EVERY_HOST, HostRules
from gym.model_client.retry import UNHEALTHY_WAIT_S
from gym.model_client.routing.served_model import ModelSource, ServedModel
from gym.model_client.settings import ModelSettings

LOOK_S = 0.25  # between checks for a ready replica
WHOLE = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")  # finish reasons of an answer that was not cut
Result = TypeVar("Result")


class JudgeCalls:
    """Calls to one judge, as an async context manager; at most `concurrency` of them are in flight."""

    def __init__(
        self,
        name: str,
        settings: JudgeSettings,
        replicas: ModelSource,
        *,
        published_version: Callable[[str], str] = lambda _: "",
        connect_timeout_s: float = 5.0,
        hosts: HostRules = EVERY_HOST,
    ) -> None:
        self.name = name
        self._replicas = replicas
        self._published_version = published_version
        self._digest = settings.digest()
        self._free = asyncio.Semaphore(settings.concurrency)
        self._call_timeout_s = settings.call_timeout_s
        self.in_flight = 0
        self.answered_at = -math.inf  # loop.time() of the last answer; refusals count
        self._parkings = 0
        model = ModelSettings(
            connect_timeout_s=connect_timeout_s,
            call_timeout_s=settings.call_timeout_s,
            max_retries=settings.max_retries,
            connections_per_endpoint=settings.concurrency,
        )
        self._last: ServedModel | None = None
        self._client = PolicyClient(model, self, hosts=hosts)

    @property
    def version(self) -> str:
        """Current version of the judge: the configuration's digest and the version that its replicas published."""
        published = self._published_version(self.name)
        return f"{self._digest}@{published}" if published else self._digest

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def chat(self, messages: list[JsonObject], sampling: JsonObject, *, deadline: float, request_id: str) -> str:
        """Return a chat model's answer without its reasoning; empty if the answer was cut.

        Raises JudgeUnreachable, JudgeRefused.
        """
        call = await self._call({**sampling, "messages": messages}, deadline=deadline, request_id=request_id)
        async with self._in_flight(call):
            reply = await self._client.complete(call)
        if isinstance(reply, OverflowReply):
            raise JudgeRefused(f"judge {self.name!r}: the question does not fit its context: {reply.message}")
        choice = reply.completion["choices"][0]
        if choice.get("finish_reason") not in WHOLE:
            return ""
        content: Any = choice["message"].get("content")
        return content if isinstance(content, str) else ""

    async def post(self, path: str, body: JsonObject, *, deadline: float, request_id: str) -> JsonObject:
        """Return a judge server's answer. Raises JudgeUnreachable, JudgeRefused."""
        call = await self._call(body, deadline=deadline, request_id=request_id, path=path)
        async with self._in_flight(call):
            return await self._client.post(call)

    def endpoints(self) -> list[JsonObject]:
        """Describe the replicas as this process sees them, without secrets."""
        found: list[JsonObject] = []
        for lane in self._client.load().values():
            found += lane["endpoints"]
        return found

    def park(self) -> None:
        """Fail waiting calls with JudgeParked: those that wait for a free slot, a replica or a healthy replica.

        Calls in flight continue. Later calls, such as probes, are sent as usual.
        """
        self._parkings += 1

    def reopen(self) -> None:
        """End the back-off of ejected replicas, since the judge may work again."""
        self._client.reopen(self.name)

    async def _call(self, body: JsonObject, *, deadline: float, request_id: str, path: str | None = None) -> ChatCall:
        began = self._parkings

        def turn_back() -> None:
            if self._parkings != began:
                raise JudgeParked(f"judge {self.name!r} keeps failing", judge=self.name)

        record = await self._record(deadline, turn_back)
        # no stickiness: a unique key sends each call to the least loaded replica
        return ChatCall(
            policy=record,
            body=body,
            sticky_key=request_id,
            deadline=deadline,
            request_id=request_id,
            path=path,
            on_held=turn_back,
        )

    def get(self, name: str) -> ServedModel | None:
        """Return the current replicas, or the last known ones for a call in progress (protocol `ModelSource`)."""
        self._last = self._replicas.get(name) or self._last
        return self._last

    async def _record(self, deadline: float, on_held: Callable[[], None]) -> ServedModel:
        """Return the judge as a served model; wait for a replica as the model client waits for a healthy one."""
        loop = asyncio.get_running_loop()
        until = min(deadline, loop.time() + UNHEALTHY_WAIT_S)
        while (record := self._replicas.get(self.name)) is None:
            if loop.time() >= until:
                raise JudgeUnreachable(
                    f"judge {self.name!r} has no replica that is ready; start one, as with "
                    f"`farm judge-server --judge {self.name} …`, or give its base_urls in the settings",
                    judge=self.name,
                )
            await asyncio.sleep(min(LOOK_S, max(0.0, until - loop.time())))
            on_held()
        return record

    @asynccontextmanager
    async def _in_flight(self, call: ChatCall) -> AsyncIterator[None]:
        """Hold a concurrency slot, note when the judge last answered, and turn model errors into judge errors."""
        try:
            async with asyncio.timeout_at(call.deadline):
                await self._free.acquire()
        except TimeoutError:
            raise JudgeUnreachable(
                f"judge {self.name!r} was busy until the deadline: {self.in_flight} calls in flight", judge=self.name
            ) from None
        self.in_flight += 1
        try:
            if call.on_held is not None:
                call.on_held()
            yield
        except ModelUnreachable as error:
            raise JudgeUnreachable(error.message, judge=self.name) from error
        except ModelRejected as error:
            raise JudgeRefused(error.message, judge=self.name) from error
        finally:
            self.answered_at = max(self.answered_at, self._client.last_answer(self.name))
            self.in_flight -= 1
            self._free.release()


async def together(coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run several calls concurrently and return their results; if one fails, cancel the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
