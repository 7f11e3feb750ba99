"""One chat completion sent to a policy: the endpoint, the deadline, the retries.

Retried are connect failures, disconnects, broken answers, 429 and 5xx, at most `max_retries` times, with full jitter
and on another endpoint where there is one; `Retry-After` is waited for where there is not. A call that ran into
`call_timeout_s` is tried again on another endpoint only. Any other 4xx and every redirect is final.

Invariants. Nothing goes on beyond the call's deadline. A call that is cancelled or cut closes its connection, at which
a server stops generating. A call counts as in flight at the gate only while it is sent, so a pause holds retries too.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
import orjson
from yarl import URL

from gym.config import ModelSettings
from gym.errors import ModelRejected
from gym.jsontypes import JsonObject
from gym.proxy.capture import Level, with_asks
from gym.proxy.endpoints import Endpoint, EndpointPool, Outcome
from gym.proxy.gate import Gate
from gym.proxy.overflow import MESSAGE_CHARS, is_context_overflow, read_refusal
from gym.proxy.policies import PolicyRecord
from gym.proxy.retry import Failure, Progress, retry_after_s
from gym.proxy.sampling import pinned
from gym.proxy.streaming import OnChunks, chunks_of, read_stream, streamed
from gym.proxy.token_in import Answered, NotAnswered, Prompt, TokenCall, complete
from gym.trajectory import TurnTokens
from gym.wire.completion import choice_of, finish_of
from gym.wire.errors import BadCompletion

LARGE_BODY_BYTES = 2**20  # aiohttp wants larger ones in pieces
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """A chat completion to be made. `body` is the request as the caller wants it; the policy has the last word.

    `on_held` is called now and then while a pause holds the call or no endpoint is healthy. With `on_chunks` the answer
    is streamed: it gets the chunks as they come, and once it has been called the call is not sent again. `prefix` are
    the tokens of the turn whose answer is the last assistant message of `body`, for a policy with `api: tokens`, whose
    answer comes as one.
    """

    policy: PolicyRecord
    body: JsonObject
    sticky_key: str
    deadline: float  # loop.time()
    request_id: str
    on_held: Callable[[], None] | None = None
    on_chunks: OnChunks | None = None
    prefix: TurnTokens | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished completion. `policy` is the record that it was sent under, `asked` what it was asked about tokens.

    `body` is the request as the policy wanted it.
    """

    completion: JsonObject
    body: JsonObject
    policy: PolicyRecord
    endpoint: Endpoint
    asked: Level
    attempts: int


@dataclass(frozen=True, slots=True)
class ContextOverflow:
    """The conversation no longer fits the model's context; nothing was generated."""

    message: str
    policy: PolicyRecord
    endpoint: Endpoint
    attempts: int


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A call on its way to one endpoint; `number` counts from 1."""

    body: JsonObject
    request_id: str
    policy: PolicyRecord
    endpoint: Endpoint
    asked: Level
    number: int

    def clean(self, text: str) -> str:
        """A text for an error message: short, and without the key, which some servers repeat."""
        key = self.policy.spec.api_key
        return (text.replace(key, "********") if key else text)[:MESSAGE_CHARS]

    def failure(self, text: str, **options: Any) -> Failure:
        """A failure that names the endpoint."""
        return Failure(f"{self.endpoint.url.shown} {self.clean(text)}", **options)


class Forwarder:
    """Sends the calls of one process."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        settings: ModelSettings,
        gate: Gate,
        pool_of: Callable[[PolicyRecord], EndpointPool],
        *,
        jitter: Callable[[], float],
    ) -> None:
        self._session = session
        self._settings = settings
        self._gate = gate
        self._pool_of = pool_of
        self._jitter = jitter
        self._loop = asyncio.get_running_loop()
        self.prompts: dict[str, Counter[Prompt]] = {}  # by policy with `api: tokens`

    async def send(self, call: ChatCall) -> Answer | ContextOverflow:
        """Raises ModelUnreachable or ModelRejected."""
        policy, now = call.policy, self._loop.time
        progress = Progress(
            policy.name,
            now(),
            call.deadline,
            self._settings.max_retries,
            unhealthy_wait_s=self._settings.unhealthy_wait_s,
        )
        while True:
            policy = await self._gate.enter(policy, deadline=call.deadline, on_held=call.on_held)
            try:
                if call.deadline <= now():
                    raise progress.given_up("its deadline has passed", now=now(), late=True)
                pool = self._pool_of(policy)
                endpoint = pool.acquire(call.sticky_key, avoid=progress.avoid)
                if endpoint is not None:
                    if endpoint.ejected_until is None:  # a probe's turn does not begin the wait anew
                        progress.waiting_since = None
                    result = await self._attempt(call, policy, pool, endpoint, progress)
            finally:
                self._gate.leave(policy.name)
            if endpoint is None:
                delay_s = progress.look_again_in_s(pool, now=now())
                if call.on_held is not None:
                    call.on_held()
            elif isinstance(result, Failure) and progress.delivered:
                progress.failures[result.text] += 1
                raise progress.given_up("a part of the answer had been handed on", now=now())
            elif isinstance(result, Failure):
                delay_s = progress.retry_in_s(result, endpoint, pool, now=now(), jitter=self._jitter())
            else:
                return result
            await asyncio.sleep(delay_s)

    async def _attempt(
        self, call: ChatCall, policy: PolicyRecord, pool: EndpointPool, endpoint: Endpoint, progress: Progress
    ) -> Answer | ContextOverflow | Failure:
        """Send once; the endpoint is released with what the outcome says about it."""
        progress.attempts += 1
        asked = endpoint.capture.level if policy.spec.token_ids else "none"
        # a server may still know the request that it did not answer, so a retry has an id of its own
        request_id = call.request_id if progress.attempts == 1 else f"{call.request_id}-r{progress.attempts - 1}"
        body = pinned(call.body, policy.spec)
        if call.on_chunks is not None:
            body = streamed(body, call.body.get("stream_options"))
        attempt = _Attempt(body, request_id, policy, endpoint, asked, progress.attempts)
        began = self._loop.time()
        cut = min(call.deadline, began + self._settings.call_timeout_s)
        outcome: Outcome = "neutral"
        error = ""
        try:
            async with asyncio.timeout_at(cut):
                status, header, raw = await self._exchange(attempt, progress, call)
        except BadCompletion as problem:
            outcome, error = "erred", problem.message
            return attempt.failure(f"broke off or gave no completion: {error}")
        except aiohttp.ClientError as problem:
            outcome, error = "failed", str(problem) or type(problem).__name__
            return attempt.failure(f"failed: {error}")
        except TimeoutError:
            # silence towards everybody is the endpoint's fault; one answer that does not come may only be long
            if endpoint.last_answer < began and not progress.delivered:
                outcome = "failed"
            error = f"gave no answer within {self._loop.time() - began:.1f} s"
            failure = attempt.failure(error, elsewhere_only=True)
            if cut < call.deadline:
                return failure
            progress.failures[failure.text] += 1
            raise progress.given_up("its deadline came", now=self._loop.time(), late=True) from None
        else:
            outcome = "answered"
            result = _meaning(attempt, status, header, raw)
            if isinstance(result, Failure):
                outcome, error = _blame(status, result), result.text
            return result
        finally:
            progress.answered = progress.answered or outcome != "failed"
            if pool.release(endpoint, outcome, began=began, error=attempt.clean(error)):
                _LOG.warning(
                    "policy %s: %s ejected for %g s: %s",
                    policy.name,
                    endpoint.url.shown,
                    endpoint.back_off_s,
                    endpoint.last_error,
                    extra={"action": "endpoint_ejected"},
                )

    async def _exchange(
        self, attempt: _Attempt, progress: Progress, call: ChatCall
    ) -> tuple[int, str | None, bytes | JsonObject]:
        """Status, `Retry-After` and body; of a stream the whole completion. Raises BadCompletion where it breaks."""

        async def deliver(chunks: list[JsonObject]) -> None:
            progress.delivered = True
            if call.on_chunks is not None:
                await call.on_chunks(chunks)

        body = with_asks(attempt.body, attempt.asked)
        if attempt.policy.spec.api == "tokens":
            answered = await self._from_tokens(attempt, body, call)
            if call.on_chunks is not None and isinstance(answered[2], dict):
                await deliver(chunks_of(answered[2]))
            return answered
        async with self._post(attempt, attempt.endpoint.url.chat, body) as response:
            if call.on_chunks is not None and response.status == 200:
                return 200, None, await read_stream(response, deliver)
            return response.status, response.headers.get("Retry-After"), await response.read()

    async def _from_tokens(
        self, attempt: _Attempt, body: JsonObject, call: ChatCall
    ) -> tuple[int, str | None, bytes | JsonObject]:
        """The exchanges of a call with `api: tokens`, as one: a completion, or the first refusal."""

        async def post(url: URL, body: JsonObject) -> Answered:
            async with self._post(attempt, url, body) as response:
                return response.status, response.headers.get("Retry-After"), await response.read()

        token_call = TokenCall(
            spec=attempt.policy.spec,
            url=attempt.endpoint.url,
            body=body,
            earlier=call.prefix,
            reply_id=call.request_id,
        )
        try:
            completion, prompt = await complete(post, token_call)
        except NotAnswered as refused:
            return refused.answered
        self.prompts.setdefault(attempt.policy.name, Counter())[prompt] += 1
        if prompt == "broken":
            _LOG.info(
                "policy %s: a new segment begins, the tokens of the turn before could not be continued",
                attempt.policy.name,
                extra={"action": "segment_broken"},
            )
        return 200, None, completion

    def _post(
        self, attempt: _Attempt, url: URL, body: JsonObject
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        data = orjson.dumps(body)
        headers = request_headers(attempt.policy, attempt.endpoint)
        headers["x-request-id"] = attempt.request_id
        return self._session.post(
            url,
            data=data if len(data) < LARGE_BODY_BYTES else io.BytesIO(data),
            headers=headers,
            allow_redirects=False,  # a redirect would lead past the check of hosts, with the key
        )


def request_headers(policy: PolicyRecord, endpoint: Endpoint) -> dict[str, str]:
    """The headers of a JSON request, with the policy's API key or else what the endpoint's URL itself carries."""
    headers = {"Content-Type": "application/json"}
    if policy.spec.api_key is not None:
        headers["Authorization"] = f"Bearer {policy.spec.api_key}"
    elif endpoint.url.basic is not None:
        headers["Authorization"] = endpoint.url.basic
    return headers


def _meaning(
    attempt: _Attempt, status: int, header: str | None, body: bytes | JsonObject
) -> Answer | ContextOverflow | Failure:
    """What an HTTP answer means. Raises ModelRejected."""
    if status == 200 or isinstance(body, dict):
        return _completion(attempt, body)
    refusal = read_refusal(body)
    if is_context_overflow(status, refusal, max_tokens=_max_tokens(attempt.body)):
        return ContextOverflow(attempt.clean(refusal.message), attempt.policy, attempt.endpoint, attempt.number)
    if status in (400, 422) and attempt.endpoint.capture.refused(refusal, asked=attempt.asked):
        return attempt.failure(f"cannot be asked for token ids: {refusal.message}", free=True)
    if status == 429 or status >= 500:
        wait_s = retry_after_s(header, now=datetime.now(UTC))
        return attempt.failure(f"answered {status}: {refusal.message}", retry_after_s=wait_s)
    hint = "; redirects are not followed, give the address that it leads to" if status < 400 else ""
    raise ModelRejected(
        f"policy {attempt.policy.name!r}: {attempt.endpoint.url.shown} refused the call with {status}: "
        f"{attempt.clean(refusal.message)}{hint}"
    )


def _completion(attempt: _Attempt, body: bytes | JsonObject) -> Answer | Failure:
    try:
        completion = body if isinstance(body, dict) else orjson.loads(body)
        finish_of(choice_of(completion))
    except BadCompletion as error:
        return attempt.failure(f"broke off or gave no completion: {error.message}")
    except (orjson.JSONDecodeError, AttributeError):
        return attempt.failure("answered 200 with something that is no JSON object")
    return Answer(completion, attempt.body, attempt.policy, attempt.endpoint, attempt.asked, attempt.number)


def _blame(status: int, failure: Failure) -> Outcome:
    """What a failure that came as an HTTP answer says about the endpoint."""
    if failure.free or status == 429:
        return "answered"
    return "failed" if status > 500 else "erred"


def _max_tokens(body: JsonObject) -> int | None:
    value = body.get("max_completion_tokens", body.get("max_tokens"))
    return value if isinstance(value, int) else None
