"""Sending of one call to a served model: endpoint, deadline, retries.

Connect failures, disconnects, broken answers, 429 and 5xx are retried at most `max_retries` times, with full jitter and
on another endpoint if possible; otherwise after `Retry-After`. A call that reached `call_timeout_s`, or whose endpoint
hangs, is retried on another endpoint only. Any other 4xx, a redirect, and an answer that is too large or compressed are
final. While every endpoint is full, calls wait in a FIFO queue.

Invariants. Nothing outlives the call's deadline. A cancelled or timed-out call closes its connection, at which a server
stops generating. A call counts as in flight at the gate only while it is sent. So a pause also holds retries and queued
calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from yarl import URL

from gym.jsontypes import JsonObject
from gym.model_client.answers import (
    Attempt,
    ContextOverflow,
    Dialect,
    ModelAnswer,
    blame,
    capture_of,
    meaning,
    unusable,
)
from gym.model_client.http import hops
from gym.model_client.http.connection_pool import (
    AddressRefused,
    Connections,
    Exchange,
    HttpError,
    UnsendableHeader,
    UnusableAnswer,
)
from gym.model_client.http.hosts import EVERY_HOST, HostRules
from gym.model_client.http.streaming import OnChunks, read_events, read_response, read_stream, streamed
from gym.model_client.retry import AttemptFailure, CallProgress
from gym.model_client.routing.endpoint import Endpoint, Outcome, request_headers
from gym.model_client.routing.endpoint_pool import EndpointPool
from gym.model_client.routing.pause_gate import Gate
from gym.model_client.routing.served_model import ServedModel
from gym.model_client.routing.waiting import QueueTicket
from gym.model_client.sampling import pinned, pinned_response
from gym.model_client.settings import ModelSettings
from gym.model_client.tokens import response_tokens
from gym.model_client.tokens.capture import with_asks
from gym.model_client.tokens.token_in import Prompt, RefusedExchange, TokenCall, complete
from gym.model_client.tokens.token_stream import Answered, StreamSink
from gym.plain import exact_json
from gym.trajectory import TurnTokens
from gym.wire.errors import BadCompletion
from gym.wire.history import arguments_as_objects

__all__ = ["ChatCall", "ContextOverflow", "Forwarder", "ModelAnswer", "request_headers"]

TOKENIZE = "/tokenize"
"""The `path` of a call that counts tokens; it is not below the base URL but beside it."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """Call to a served model. `body` is the caller's request; the policy's settings take precedence.

    `on_held` is called regularly while a pause holds the call, it is queued, or no endpoint is healthy. With
    `on_chunks` the answer is streamed: it receives the chunks, and after its first call the request is not retried.
    `prefix` are the tokens of the turn whose answer is the last assistant message of `body`.
    In the dialect `responses` body and chunks are those of the Responses API, for a server that has it.
    Unless `whole`, the prompt ids of the completion may be PromptIds, for callers that read only those.
    With `path` that path below the base URL is called, and its answer may be any JSON object.
    `hops` are the farms whose proxies the call has passed (`gym.model_client.http.hops`).
    """

    policy: ServedModel
    body: JsonObject
    sticky_key: str
    deadline: float  # loop.time()
    request_id: str
    on_held: Callable[[], None] | None = None
    on_chunks: OnChunks | None = None
    prefix: TurnTokens | None = None
    path: str | None = None
    dialect: Dialect = "chat"
    whole: bool = True
    hops: str = ""


class Forwarder:
    """Sender of the calls of one process."""

    def __init__(
        self,
        connections: Connections,
        settings: ModelSettings,
        gate: Gate,
        pool_of: Callable[[ServedModel], EndpointPool],
        *,
        jitter: Callable[[], float],
        hosts: HostRules = EVERY_HOST,
    ) -> None:
        self._hosts = hosts
        self._connections = connections
        self._settings = settings
        self._gate = gate
        self._pool_of = pool_of
        self._jitter = jitter
        self._loop = asyncio.get_running_loop()
        self.prompts: dict[str, Counter[Prompt]] = {}  # by policy with `api: tokens`

    async def send(self, call: ChatCall) -> ModelAnswer | ContextOverflow:
        """Send a call, with retries. Raises ModelUnreachable or ModelRejected."""
        policy, now = call.policy, self._loop.time
        progress = CallProgress(
            policy.title,
            now(),
            call.deadline,
            self._settings.max_retries,
            unhealthy_wait_s=self._settings.unhealthy_wait_s,
        )
        waiting = QueueTicket()
        try:
            while True:
                policy = await self._gate.enter(policy, deadline=call.deadline, on_held=call.on_held)
                try:
                    if call.deadline <= now():
                        raise progress.given_up("its deadline has passed" + waiting.told(), now=now(), late=True)
                    pool = self._pool_of(policy)
                    endpoint = pool.acquire(call.sticky_key, avoid=progress.avoid, place=waiting.place)
                    if endpoint is not None:
                        waiting.leave()
                        if endpoint.ejected_until is None:  # a probe does not restart the wait
                            progress.waiting_since = None
                        result = await self._attempt(call, policy, pool, endpoint, progress)
                finally:
                    self._gate.leave(policy.name)
                if endpoint is None:
                    if pool.has_line():
                        await waiting.turn(pool, deadline=call.deadline, on_held=call.on_held)
                        continue
                    delay_s = progress.look_again_in_s(pool, now=now())
                    if call.on_held is not None:
                        call.on_held()
                elif not isinstance(result, AttemptFailure):
                    return result
                elif progress.delivered:
                    progress.failures[result.text] += 1
                    raise progress.given_up("a part of the answer had been passed on", now=now())
                else:
                    delay_s = progress.retry_in_s(result, endpoint, pool, now=now(), jitter=self._jitter())
                await asyncio.sleep(delay_s)
        finally:
            waiting.leave()

    async def _attempt(
        self, call: ChatCall, policy: ServedModel, pool: EndpointPool, endpoint: Endpoint, progress: CallProgress
    ) -> ModelAnswer | ContextOverflow | AttemptFailure:
        """Send once; release the endpoint with the outcome."""
        progress.attempts += 1
        progress.endpoint = endpoint
        attempt = self._prepared(call, policy, endpoint, progress.attempts)
        began = self._loop.time()
        cut = min(call.deadline, began + self._settings.call_timeout_s)
        outcome: Outcome = "neutral"
        error = ""
        moved = False

        def move() -> None:
            nonlocal moved
            if not progress.delivered and progress.retries < progress.max_retries:
                moved = True
                limit.reschedule(self._loop.time())

        try:
            async with asyncio.timeout_at(cut) as limit:
                endpoint.moves.add(move)
                status, header, raw = await self._exchange(attempt, progress, call)
        except BadCompletion as problem:
            outcome, error = "erred", attempt.said(problem.message)
            return attempt.failure(f"broke off or gave no completion: {error}")
        except (UnsendableHeader, AddressRefused) as problem:
            raise unusable(attempt, str(problem)) from problem
        except UnusableAnswer as problem:
            outcome = "answered"
            raise unusable(attempt, str(problem)) from problem
        except HttpError as problem:
            outcome, error = "failed", str(problem) or type(problem).__name__
            return attempt.failure(f"failed: {error}")
        except TimeoutError:
            error = f"gave no answer within {self._loop.time() - began:.1f} s"
            failure = attempt.failure(error + (" and hangs" if moved else ""), elsewhere_only=True)
            if moved:
                return failure
            # an endpoint that answers no call is at fault; a single missing answer may just be long
            if endpoint.last_answer < began and not progress.delivered:
                outcome = "failed"
            if cut < call.deadline:
                return failure
            progress.failures[failure.text] += 1
            raise progress.given_up("its deadline came", now=self._loop.time(), late=True) from None
        else:
            outcome = "answered"
            result = meaning(attempt, status, header, raw)
            if isinstance(result, AttemptFailure):
                outcome, error = blame(status, result), result.text
            return result
        finally:
            endpoint.moves.discard(move)
            progress.answered = progress.answered or outcome in ("answered", "erred")
            if pool.release(endpoint, outcome, began=began, error=attempt.clean(error)):
                _LOG.warning(
                    "%s %s: %s ejected for %g s: %s",
                    policy.kind,
                    policy.name,
                    endpoint.url.shown,
                    endpoint.back_off_s,
                    endpoint.last_error,
                    extra={"action": "endpoint_ejected"},
                )

    def _prepared(self, call: ChatCall, policy: ServedModel, endpoint: Endpoint, number: int) -> Attempt:
        """Return the call as sent to this endpoint."""
        asked = capture_of(endpoint, call.dialect).level if policy.spec.token_ids and call.path is None else "none"
        # a server may still be processing the request that it did not answer, so a retry has a new id
        request_id = call.request_id if number == 1 else f"{call.request_id}-r{number - 1}"
        given = call.body
        if endpoint.reads_objects_only:
            given = arguments_as_objects(given) or given
        if call.dialect == "responses":
            body = pinned_response(given, policy.spec, stream=call.on_chunks is not None)
            return Attempt(
                body,
                request_id,
                policy,
                endpoint,
                asked,
                False,
                number,
                dialect="responses",
                hops=call.hops,
                hosts=self._hosts,
            )
        body = pinned(given, policy.spec)
        if call.on_chunks is not None:
            body = streamed(body, call.body.get("stream_options"))
        extra = endpoint.prefix.asks(policy.spec, body, call.prefix)
        if extra:
            body |= extra
        return Attempt(
            body,
            request_id,
            policy,
            endpoint,
            asked,
            bool(extra),
            number,
            call.path,
            whole=call.whole,
            earlier=call.prefix,
            hops=call.hops,
            hosts=self._hosts,
        )

    async def _exchange(
        self, attempt: Attempt, progress: CallProgress, call: ChatCall
    ) -> tuple[int, str | None, bytes | JsonObject]:
        """Return status, `Retry-After` and body, or the completion of a stream. Raises BadCompletion if it breaks."""

        async def deliver(chunks: list[JsonObject]) -> None:
            progress.delivered = True
            attempt.endpoint.heard_at = self._loop.time()
            if call.on_chunks is not None:
                await call.on_chunks(chunks)

        if attempt.dialect == "responses":
            return await self._respond(attempt, None if call.on_chunks is None else deliver)
        body = with_asks(attempt.body, attempt.asked)
        if attempt.policy.spec.api == "tokens" and call.path is None:
            return await self._from_tokens(attempt, body, call, None if call.on_chunks is None else deliver)
        url = attempt.endpoint.url
        address = url.chat if call.path is None else url.tokenize if call.path == TOKENIZE else url.under(call.path)
        async with self._post(attempt, address, body) as response:
            if call.on_chunks is not None and response.status == 200:
                return 200, None, await read_stream(response, deliver)
            return response.status, response.header("retry-after"), await response.read()

    async def _respond(
        self, attempt: Attempt, on_events: OnChunks | None
    ) -> tuple[int, str | None, bytes | JsonObject]:
        """Make the exchange of a Responses call; return the whole response of a stream."""
        body = response_tokens.with_asks(attempt.body, attempt.asked)
        async with self._post(attempt, attempt.endpoint.url.responses, body) as response:
            if on_events is not None and response.status == 200:
                return 200, None, await read_response(response, on_events)
            return response.status, response.header("retry-after"), await response.read()

    async def _from_tokens(
        self, attempt: Attempt, body: JsonObject, call: ChatCall, on_chunks: OnChunks | None
    ) -> tuple[int, str | None, bytes | JsonObject]:
        """Make the exchanges of a call with `api: tokens`; return the completion or the first refusal."""

        async def post(url: URL, body: JsonObject) -> Answered:
            async with self._post(attempt, url, body) as response:
                return response.status, response.header("retry-after"), await response.read()

        async def stream(url: URL, body: JsonObject, on_events: OnChunks) -> Answered:
            async with self._post(attempt, url, body) as response:
                if response.status == 200:
                    await read_events(response, on_events)
                    return 200, None, b""
                return response.status, response.header("retry-after"), await response.read()

        token_call = TokenCall(
            spec=attempt.policy.spec,
            url=attempt.endpoint.url,
            body=body,
            earlier=call.prefix,
            reply_id=call.request_id,
        )
        try:
            completion, prompt = await complete(
                post, token_call, None if on_chunks is None else StreamSink(stream, on_chunks)
            )
        except RefusedExchange as refused:
            return refused.answered
        self.prompts.setdefault(attempt.policy.name, Counter())[prompt] += 1
        if prompt == "broken":
            _LOG.info(
                "policy %s: a new segment begins, the tokens of the turn before could not be continued",
                attempt.policy.name,
                extra={"action": "segment_broken"},
            )
        return 200, None, completion

    def _post(self, attempt: Attempt, url: URL, body: JsonObject) -> Exchange:
        headers = request_headers(attempt.policy, attempt.endpoint)
        headers["x-request-id"] = attempt.request_id
        if attempt.hops:
            headers[hops.HEADER] = attempt.hops
        return self._connections.post(url, exact_json.dumps(body), headers)
