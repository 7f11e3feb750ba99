"""Model calls under `/rollouts/{id}`: idempotent, recorded before their end is sent.

A repeat is answered from the record. During the first call it waits for that, until its own deadline; if the first call
fails, the repeat samples.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

from api.proxy.calls import Calls, ProxyCall, shown, still_waiting
from api.proxy.errors import ContextTooLong
from api.shutdown import Shutdown, shutting_down
from gym.agents.outside.keys import Grant
from gym.captures.call import MAX_TURNS, CallAnswer, CallFailure, CallRequest, OpenCall
from gym.captures.recording import Captures
from gym.errors import Forbidden, Invalid, ModelRejected, RolloutError
from gym.ids import is_id, parse_rollout_id
from gym.jsontypes import JsonObject
from gym.model_client.client import ChatReply, OverflowReply

FIRST_POLL_S = 0.03
POLL_S = 0.25


class CapturedCalls:
    """Runner of the calls of rollouts."""

    def __init__(self, calls: Calls, captures: Captures, shutdown: Shutdown) -> None:
        self._calls = calls
        self._captures = captures
        self._shutdown = shutdown

    async def run(self, call: ProxyCall, rollout_id: str, grant: Grant | None = None) -> None:
        """Run a call of a rollout. `grant` holds the attempt and the maximum number of calls.

        Raises RequestError, ModelUnreachable, ModelRejected, RedisError.
        """
        if not is_id(rollout_id):
            raise Invalid("invalid_rollout_id", f"{rollout_id[:140]!r} is not an id", {"field": "rollout_id"})
        request = CallRequest(
            rollout_id=rollout_id,
            attempt=grant.attempt if grant is not None else _attempt(call.exchange.header(b"x-farm-attempt")),
            dialect=call.dialect.name,
            body=call.body,
            chat=call.chat,
            policy=call.policy.name,
            model=call.policy.spec.model,
            request_items=call.dialect.request_items(call.body),
        )
        begun = await self._begin(call, request)
        if grant is not None and isinstance(begun, OpenCall) and begun.turn >= grant.max_calls:
            await self._refuse(begun, grant.max_calls)
        record = begun if isinstance(begun, dict) else await self._sample(call, begun)
        call.call_id, call.created_at = record["call_id"], record["created_at"]
        if record["completion"] is None:
            raise ContextTooLong(record["overflow"])
        if isinstance(begun, dict):
            await call.replay(record["completion"])
        else:
            await call.finish(record["completion"])

    async def _refuse(self, begun: OpenCall, most: int) -> NoReturn:
        message = f"this rollout has made its {most} model calls (limits.max_turns); end it"
        failure = CallFailure(kind=MAX_TURNS, message=message, status=None, endpoint=None, duration_s=0.0)
        await self._captures.give_up(begun, failure)
        raise Forbidden(MAX_TURNS, message)

    async def _begin(self, call: ProxyCall, request: CallRequest) -> OpenCall | JsonObject:
        loop = asyncio.get_running_loop()
        began, wait_s = loop.time(), FIRST_POLL_S
        while (begun := await self._captures.begin(request)) == "wait":
            remaining_s = call.deadline - loop.time()
            if remaining_s <= 0:
                raise still_waiting(loop.time() - began)
            await self._shutdown.bounded(asyncio.sleep(min(wait_s, remaining_s)))
            if self._shutdown.has_begun():
                raise shutting_down()
            wait_s = min(POLL_S, wait_s * 1.5)
        return begun

    async def _sample(self, call: ProxyCall, begun: OpenCall) -> JsonObject:
        call.call_id = begun.call_id
        rollout = parse_rollout_id(begun.request.rollout_id)
        sticky_key = begun.request.rollout_id if rollout is None else rollout.group_id
        sent_at = asyncio.get_running_loop().time()
        failure: CallFailure | None = None
        try:
            # servers that may ignore the tokens get them only if the earlier turn is in memory
            spec = call.policy.spec
            rebuild = spec.api == "tokens" or spec.required_prefix is True
            prefix = await self._captures.earlier_turn(begun, rebuild=rebuild)
            reply = await self._calls.send(call, sticky_key=sticky_key, prefix=prefix)
            return await self._captures.record(begun, _answer(call, reply))
        except (RolloutError, asyncio.CancelledError) as error:
            failure = _failure(error, asyncio.get_running_loop().time() - sent_at)
            raise
        finally:
            await self._captures.give_up(begun, failure)


def _answer(call: ProxyCall, reply: ChatReply | OverflowReply) -> CallAnswer:
    if isinstance(reply, OverflowReply):
        return CallAnswer(
            completion=None, overflow=reply.message, created_at=call.created_at, facts=reply.facts, tokens=None
        )
    return CallAnswer(
        completion=shown(call, reply.completion),
        overflow=None,
        created_at=call.created_at,
        facts=reply.facts,
        tokens=reply.tokens,
    )


def _failure(error: RolloutError | asyncio.CancelledError, duration_s: float) -> CallFailure:
    kind, endpoint = "client_left", None
    message = f"the client left, or the proxy was stopped, after {duration_s:.1f} s"
    if isinstance(error, RolloutError):
        kind, message, endpoint = str(error.kind), error.message, error.endpoint
    status = error.upstream_status if isinstance(error, ModelRejected) else None
    return CallFailure(kind=kind, message=message, status=status, endpoint=endpoint, duration_s=duration_s)


def _attempt(header: str | None) -> int:
    if header is None:
        return 1
    if not (header.isdecimal() and 1 <= int(header[:9]) < 10**6):
        raise Invalid(
            "invalid_attempt",
            f"the header x-farm-attempt is {header[:40]!r}, expected a number from 1",
            {"field": "x-farm-attempt"},
        )
    return int(header)
