"""Model calls: a Responses request in, items, tokens and versions out.

Agents in a worker call `PolicyClient.respond`. `complete` is the layer below translation, for callers that send Chat
Completions or translate another dialect. The policy determines the sampling, not the caller: `model` is the policy's,
and its `sampling_overrides` take precedence.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson

from gym.errors import BadRow, ModelRejected, Stage
from gym.jsontypes import JsonObject
from gym.model_client.forward import ChatCall, ContextOverflow, Forwarder, ModelAnswer
from gym.model_client.http.connection_pool import Connections, HttpError
from gym.model_client.http.hosts import EVERY_HOST, HostRules
from gym.model_client.routing.endpoint import request_headers
from gym.model_client.routing.endpoint_pool import EndpointPool
from gym.model_client.routing.health import HealthChecks, Served
from gym.model_client.routing.pause_gate import Gate
from gym.model_client.routing.served_model import ModelSource, ServedModel, newest
from gym.model_client.settings import ModelSettings
from gym.model_client.tokens.capture import Capture, read_tokenized, tokenize_request
from gym.model_client.versions import reported_versions
from gym.trajectory import CallFacts, CallFinish, TurnTokens, Usage
from gym.wire.chat.completion import choice_of, finish_of, usage_of
from gym.wire.errors import WireError
from gym.wire.passthrough.reply import RESPONSE, shown_response
from gym.wire.passthrough.request import to_server_request
from gym.wire.responses.reply import output_items
from gym.wire.responses.request import to_chat_request

KEEP_ALIVE_S = 4.0  # vLLM closes idle connections after 5 s; a call sent at that moment is lost
MOST_POOLS = 1024
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """Model call of a rollout. `params` is the body of a Responses request: input items, tools, sampling.

    `sticky_key` is the group, whose rollouts share a prompt. `on_held` is called regularly while a pause holds the
    call, so that a held rollout does not count as stalled. `prefix` are the tokens of the turn whose answer is the last
    assistant message in `params`; None if tools or history have changed since.
    """

    policy: ServedModel
    params: JsonObject
    sticky_key: str
    deadline: float  # loop.time()
    rollout_id: str
    attempt: int
    turn: int
    on_held: Callable[[], None] | None = None
    prefix: TurnTokens | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """Answer to a ModelRequest. A context overflow has no items, no tokens and no usage.

    `facts.started_s` is set only if the reply is replayed from a record.
    """

    items: list[JsonObject]
    facts: CallFacts
    tokens: TurnTokens | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """Chat completion with the facts and the tokens of its call."""

    completion: JsonObject
    facts: CallFacts
    tokens: TurnTokens | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OverflowReply:
    """Refusal of a conversation that no longer fits the model's context; `message` is the server's."""

    message: str
    facts: CallFacts


class PolicyClient:
    """Model client of a process, as an async context manager; owns the connections."""

    def __init__(
        self,
        settings: ModelSettings,
        policies: ModelSource,
        *,
        jitter: Callable[[], float] = random.random,
        most_pools: int = MOST_POOLS,
        hosts: HostRules = EVERY_HOST,
    ) -> None:
        self._hosts = hosts
        self._settings = settings
        self._jitter = jitter
        self._most_pools = most_pools
        self._policies = policies
        self._gate = Gate(policies)
        self._pools: dict[str, Served] = {}
        self._connections: Connections | None = None
        self._forwarder: Forwarder | None = None
        self._health: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Create the connection pool and start the health checks."""
        self._connections = Connections(
            per_server=self._settings.connections_per_endpoint,
            connect_timeout_s=self._settings.connect_timeout_s,
            idle_s=KEEP_ALIVE_S,
            answer_bytes=self._settings.max_answer_bytes,
            allows=self._hosts.remembered(),
        )
        self._forwarder = Forwarder(
            self._connections, self._settings, self._gate, self._pool_of, jitter=self._jitter, hosts=self._hosts
        )
        if self._settings.health_check_s:
            checks = HealthChecks(
                self._settings, self._policies, self._pools.values, jitter=self._jitter, hosts=self._hosts
            )
            self._health = asyncio.create_task(checks.run(), name="health checks")
        return self

    def refuse_held(self) -> None:
        """Stop holding calls: those of paused policies raise Unavailable."""
        self._gate.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections; calls in progress fail."""
        if self._health is not None:
            self._health.cancel()
            await asyncio.wait({self._health})
        if self._connections is not None:
            self._connections.close()

    async def respond(self, request: ModelRequest) -> ModelReply:
        """Make one model call. Raises ModelUnreachable, ModelRejected, and BadRow for an untranslatable request."""
        passed = request.policy.spec.api == "responses"
        try:
            body = to_server_request(request.params) if passed else to_chat_request(request.params)
        except WireError as error:
            failure = BadRow(f"the request to {request.policy.title} cannot be sent: {error.message}")
            failure.stage = Stage.MODEL
            raise failure from error
        call_id = f"{request.rollout_id}-{request.attempt}-{request.turn}"
        reply = await self.complete(
            ChatCall(
                policy=request.policy,
                body=body,
                sticky_key=request.sticky_key,
                deadline=request.deadline,
                request_id=call_id,
                on_held=request.on_held,
                prefix=request.prefix,
                dialect="responses" if passed else "chat",
                whole=passed,
            )
        )
        if isinstance(reply, OverflowReply):
            return ModelReply(items=[], facts=reply.facts, tokens=None)
        if passed:
            items = shown_response(request.params, reply.completion[RESPONSE])["output"]
        else:
            status = "completed" if reply.facts.finish == "stop" else "incomplete"
            items = output_items(reply.completion["choices"][0]["message"], id_prefix=call_id, status=status)
        return ModelReply(items=items, facts=reply.facts, tokens=reply.tokens)

    async def complete(self, call: ChatCall) -> ChatReply | OverflowReply:
        """Make one call in Chat Completions or Responses. Raises ModelUnreachable, ModelRejected."""
        if self._forwarder is None:
            raise RuntimeError("PolicyClient is used outside `async with`")
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = await self._forwarder.send(call)
        # read before `_tokens` may wait for another call
        versions = (answer.policy.version, self._announced(answer.policy))
        if isinstance(answer, ContextOverflow):
            facts = _facts(answer, "context_overflow", Usage(), versions, loop.time() - began)
            return OverflowReply(message=answer.message, facts=facts)
        tokens, completion = await self._tokens(answer, call), answer.completion
        versions = reported_versions(completion) or versions
        finish = finish_of(choice_of(completion))
        facts = _facts(answer, finish, usage_of(completion), versions, loop.time() - began)
        return ChatReply(completion=completion, facts=facts, tokens=tokens)

    def reopen(self, policy: str) -> None:
        """End the back-off of a policy's ejected endpoints, since it may work again."""
        if policy in self._pools:
            self._pools[policy][1].reopen()

    def last_answer(self, policy: str) -> float:
        """Return the `loop.time()` of the last answer of a policy's endpoints, -inf if none; 5xx do not count."""
        endpoints = self._pools[policy][1].endpoints if policy in self._pools else []
        return max((endpoint.last_answer for endpoint in endpoints), default=-math.inf)

    async def post(self, call: ChatCall) -> JsonObject:
        """Call another path than Chat Completions. Raises ModelUnreachable, ModelRejected."""
        if self._forwarder is None:
            raise RuntimeError("PolicyClient is used outside `async with`")
        answer = await self._forwarder.send(call)
        if isinstance(answer, ContextOverflow):
            raise ModelRejected(f"{answer.policy.title}: {answer.endpoint.url.shown}: {answer.message}")
        return answer.completion

    def load(self) -> dict[str, JsonObject]:
        """Return by policy: calls in flight, held and queued, its endpoints, counts of how token prompts were made."""
        prompts = self._forwarder.prompts if self._forwarder is not None else {}
        return {
            name: {
                "in_flight": lane.in_flight,
                "held": lane.held,
                "waiting": len(self._pools[name][1].line) if name in self._pools else 0,
                "endpoints": self._pools[name][1].describe() if name in self._pools else [],
                **({"prompts": dict(prompts[name])} if name in prompts else {}),
            }
            for name, lane in self._gate.lanes.items()
        }

    def _announced(self, policy: ServedModel) -> int | None:
        current = newest(self._policies, policy) or policy
        return current.version

    def _pool_of(self, policy: ServedModel) -> EndpointPool:
        """Return the policy's endpoints, updated to its newest record."""
        known = self._pools.get(policy.name)
        spec = policy.spec
        if known is None:
            self._forget_idle()
            clock = asyncio.get_running_loop().time
            pool = EndpointPool(spec.base_urls, clock=clock, max_concurrency=spec.max_concurrency)
        elif known[0].revision == policy.revision:
            return known[1]
        else:
            pool = known[1]
            pool.replace(spec.base_urls, max_concurrency=spec.max_concurrency)
        self._pools[policy.name] = (policy, pool)
        return pool

    def _forget_idle(self) -> None:
        """Drop unused pools at the limit: every inline policy has a different name."""
        if len(self._pools) < self._most_pools:
            return
        for name, lane in list(self._gate.lanes.items()):
            waits = name in self._pools and self._pools[name][1].line
            if lane.in_flight == 0 and lane.held == 0 and not waits:
                del self._gate.lanes[name]
                self._pools.pop(name, None)
                if self._forwarder is not None:
                    self._forwarder.prompts.pop(name, None)

    async def _tokens(self, answer: ModelAnswer, call: ChatCall) -> TurnTokens | None:
        capture = answer.capture
        level = capture.level
        generated = capture.read(answer.completion, asked=answer.asked)
        if capture.level != level and capture.level == "none":
            _LOG.warning(
                "%s %s: %s gives no token ids; its rollouts carry none",
                answer.policy.kind,
                answer.policy.name,
                answer.endpoint.url.shown,
                extra={"action": "no_token_ids"},
            )
        if generated is None:
            return None
        tokens = generated.complete()
        if tokens is None and isinstance(capture, Capture) and capture.tokenizes:
            prompt_ids = read_tokenized(await self._tokenize(answer, call), answer.completion)
            tokens = None if prompt_ids is None else generated.with_prompt(prompt_ids)
        if tokens is not None and answer.prefixed and call.prefix is not None:
            answer.endpoint.prefix.learn(call.prefix, tokens.prompt_ids)
        return tokens

    async def _tokenize(self, answer: ModelAnswer, call: ChatCall) -> Any:
        """Return the answer of `/tokenize` for the call's prompt, or None. A failure costs only the tokens."""
        if self._connections is None:
            return None
        loop = asyncio.get_running_loop()
        endpoint = answer.endpoint
        body = orjson.dumps(tokenize_request(answer.body))
        headers = request_headers(answer.policy, endpoint)
        try:
            async with (
                asyncio.timeout_at(min(call.deadline, loop.time() + self._settings.call_timeout_s)),
                self._connections.post(endpoint.url.tokenize, body, headers) as response,
            ):
                if response.status in (403, 404, 405, 501):
                    endpoint.capture.tokenizes = False
                return orjson.loads(await response.read()) if response.status == 200 else None
        except (HttpError, TimeoutError, orjson.JSONDecodeError):
            return None


def _facts(
    answer: ModelAnswer | ContextOverflow,
    finish: CallFinish,
    usage: Usage,
    versions: tuple[int | None, int | None],
    duration_s: float,
) -> CallFacts:
    before, after = versions
    return CallFacts(
        endpoint=answer.endpoint.url.shown,
        finish=finish,
        usage=usage,
        version_before=before,
        version_after=after,
        duration_s=duration_s,
        attempts=answer.attempts,
    )
