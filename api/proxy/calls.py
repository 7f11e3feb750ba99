"""Model calls of outside agents: choice of policy, deadline, whole or streamed answer."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
import zlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from api.proxy.dialects import DIALECTS, PASSED_RESPONSES, Dialect
from api.proxy.errors import CannotCount, ContextTooLong, Problem
from api.proxy.exchange import AsgiExchange
from api.proxy.own_name import OwnName
from gym.config import Settings
from gym.errors import Invalid, ModelRejected, ModelUnreachable, NotFound, Unavailable
from gym.jsontypes import JsonObject
from gym.model_client.client import ChatReply, OverflowReply, PolicyClient
from gym.model_client.forward import TOKENIZE, ChatCall
from gym.model_client.http import hops as hops_of
from gym.model_client.http.streaming import chunks_of
from gym.model_client.routing.served_model import ServedModel
from gym.model_client.tokens.capture import tokenize_request
from gym.plain import exact_json
from gym.state.policies import PolicyCache
from gym.trajectory import TurnTokens
from gym.wire.chat.request import to_completion
from gym.wire.chat.stream import Event, StreamTranslator, encode
from gym.wire.gemini.stream import ArrayFrames
from gym.wire.passthrough.reply import RESPONSE, shown_response
from gym.wire.passthrough.request import to_server_request
from gym.wire.passthrough.stream import events_of

MAX_TIMEOUT_S = 24 * 3600.0


@dataclass(slots=True, kw_only=True)
class ProxyCall:
    """Request that has been read. Ids in the answer are derived from `call_id`.

    `passed` is the request for a server with its own Responses API; `chat` is then only recorded.
    """

    exchange: AsgiExchange
    dialect: Dialect
    body: JsonObject
    chat: JsonObject
    policy: ServedModel
    deadline: float  # loop.time()
    call_id: str = ""
    created_at: float = field(default_factory=time.time)
    passed: JsonObject | None = None
    hops: str = ""
    translator: StreamTranslator | None = None
    array: ArrayFrames | None = None  # the pieces as one JSON array, not as events

    @property
    def streamed(self) -> bool:
        """Whether the caller asked for a stream."""
        return bool(self.chat.get("stream"))

    async def on_chunks(self, chunks: list[JsonObject]) -> None:
        """Send chunks of the answer as events of the caller's dialect."""
        events = []
        if self.translator is None:
            self.translator = self.dialect.stream(self.body, call_id=self.call_id, created_at=self.created_at)
            events += self.translator.start()
        for chunk in chunks:
            events += self.translator.feed(chunk)
        await self.exchange.stream(self._encoded(events), more=True)

    async def finish(self, completion: JsonObject) -> None:
        """Send the end of the stream, or the whole answer."""
        if self.translator is not None:
            await self.exchange.stream(self._last(self.translator.finish(), self.translator.tail), more=False)
            return
        answer = self.dialect.reply(self.body, completion, call_id=self.call_id, created_at=self.created_at)
        await self.exchange.answer(200, answer)

    async def replay(self, completion: JsonObject) -> None:
        """Send a recorded answer."""
        if self.dialect.name == "responses":  # the policy may have changed since
            self.dialect = PASSED_RESPONSES if RESPONSE in completion else DIALECTS["/v1/responses"]
        if self.streamed:
            known = RESPONSE in completion
            await self.on_chunks(events_of(completion[RESPONSE]) if known else chunks_of(completion))
        await self.finish(completion)

    async def fail(self, problem: Problem) -> None:
        """Send an error; if a stream has begun, as its end."""
        if not self.exchange.started:
            await self.exchange.answer(problem.status, problem.body(self.dialect.shape), problem.headers)
        elif self.translator is not None:
            events = self.translator.fail(problem.message)
            await self.exchange.stream(self._last(events, self.translator.tail), more=False)

    def _encoded(self, events: list[Event]) -> bytes:
        return encode(events) if self.array is None else self.array.encode(events)

    def _last(self, events: list[Event], tail: bytes) -> bytes:
        return self._encoded(events) + (tail if self.array is None else self.array.end(tail))


class Calls:
    """Reader and sender of model calls."""

    def __init__(self, settings: Settings, client: PolicyClient, policies: PolicyCache, own: OwnName) -> None:
        self._settings = settings
        self._own = own
        self._client = client
        self._policies = policies

    async def read(
        self,
        exchange: AsgiExchange,
        dialect: Dialect,
        *,
        name: str | None = None,
        policy: ServedModel | None = None,
        written: JsonObject | None = None,
        prepare: Callable[[JsonObject], JsonObject] | None = None,
    ) -> ProxyCall:
        """Read a call. The policy is the given or named one, else the one that the request asks for.

        `written` are fields from the URL; `prepare` converts a body that only asks for a token count.
        Raises RequestError, ClientLeft.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout_s(exchange.header(b"x-farm-timeout-s"))
        hops = self._own.sent_on(exchange.header(hops_of.HEADER.encode()))
        body = await exchange.json(self._settings.proxy.max_body_bytes)
        body |= written or {}
        if prepare is not None:
            body = prepare(body)
        if policy is None:
            policy = await self._policy(name or exchange.header(b"x-farm-policy"), body.get("model"))
        passed = None
        if policy.spec.api == "responses" and dialect.name == "responses":
            dialect, passed = PASSED_RESPONSES, to_server_request(body)
        chat = dialect.to_chat(passed or body)
        return ProxyCall(
            exchange=exchange,
            dialect=dialect,
            body=body,
            chat=chat,
            policy=policy,
            deadline=deadline,
            passed=passed,
            hops=hops,
        )

    async def run(self, call: ProxyCall) -> None:
        """Run a call outside any rollout. Raises RequestError, ModelUnreachable, ModelRejected."""
        call.call_id = secrets.token_hex(12)
        # requests with the same beginning share an endpoint, to use its prefix cache
        sticky_key = f"{zlib.crc32(exact_json.dumps(call.chat['messages'][:2])):08x}"
        reply = await self.send(call, sticky_key=sticky_key)
        if isinstance(reply, OverflowReply):
            raise ContextTooLong(reply.message)
        await call.finish(reply.completion)

    async def count(self, call: ProxyCall) -> int:
        """Count the tokens of a call's prompt. Raises CannotCount, ModelUnreachable, ModelRejected."""
        call.call_id = secrets.token_hex(12)
        try:
            answer = await self._client.post(
                ChatCall(
                    policy=call.policy,
                    body=tokenize_request({"model": call.policy.spec.model, **call.chat}),
                    sticky_key=call.call_id,
                    deadline=call.deadline,
                    request_id=call.call_id,
                    path=TOKENIZE,
                )
            )
        except ModelRejected as error:
            if error.upstream_status in (404, 405):
                raise CannotCount from error
            raise
        count = answer.get("count")
        if not isinstance(count, int):
            raise ModelUnreachable("the model server's /tokenize gave no count")
        return count

    def send(
        self, call: ProxyCall, *, sticky_key: str, prefix: TurnTokens | None = None
    ) -> Coroutine[Any, Any, ChatReply | OverflowReply]:
        """Send the call to the model server; `prefix` are the tokens of the turn that it continues."""
        return self._client.complete(
            ChatCall(
                policy=call.policy,
                body=call.chat if call.passed is None else call.passed,
                sticky_key=sticky_key,
                deadline=call.deadline,
                request_id=call.call_id,
                on_chunks=call.on_chunks if call.streamed else None,
                prefix=prefix,
                dialect="chat" if call.passed is None else "responses",
                hops=call.hops,
            )
        )

    async def _policy(self, header: str | None, model: Any) -> ServedModel:
        found = self._find(header, model)
        if found is None:
            await self._policies.refresh()  # it may have been registered a moment ago
            found = self._find(header, model)
        if found is None:
            name = header or self._settings.default_policy
            raise NotFound(
                "policy_not_found",
                f"there is no policy {name!r}; name one in the header x-farm-policy or as the model, "
                f"or register it with PUT /v1/policies/{name}",
            )
        return found

    def _find(self, header: str | None, model: Any) -> ServedModel | None:
        if header:
            return self._policies.get(header)
        named = self._policies.get(model) if isinstance(model, str) else None
        return named or self._policies.get(self._settings.default_policy)

    def _timeout_s(self, header: str | None) -> float:
        if header is None:
            return self._settings.model.call_timeout_s
        try:
            timeout_s = float(header)
        except ValueError:
            timeout_s = math.nan
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise Invalid(
                "invalid_timeout",
                f"the header x-farm-timeout-s is {header[:40]!r}, expected seconds from 0 to {MAX_TIMEOUT_S:g}",
                {"field": "x-farm-timeout-s"},
            )
        return timeout_s


def shown(call: ProxyCall, completion: JsonObject) -> JsonObject:
    """Return the fields of a completion that the caller asked for, as recorded for a repeat."""
    if RESPONSE in completion:
        return {**completion, RESPONSE: shown_response(call.body, completion[RESPONSE])}
    kept = to_completion(call.chat, completion)
    kept.pop("prompt_token_ids", None)  # tokens are recorded as deltas
    return kept


def still_waiting(seconds: float) -> Unavailable:
    """Return the error for a repeat whose first call did not end in time."""
    return Unavailable(
        "call_underway",
        f"the same call of this rollout is under way, and had no answer within {seconds:.1f} s; repeat it",
        retry_after_s=1.0,
    )
