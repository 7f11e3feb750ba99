"""Classification of HTTP answers: completion, context overflow, retryable failure or refusal."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from gym.errors import ModelRejected
from gym.jsontypes import JsonObject
from gym.model_client.http.hosts import EVERY_HOST, HostRules
from gym.model_client.http.refusal import MESSAGE_CHARS, Refusal, is_context_overflow, read_refusal
from gym.model_client.retry import AttemptFailure, retry_after_s
from gym.model_client.routing.endpoint import Endpoint, Outcome
from gym.model_client.routing.served_model import ServedModel
from gym.model_client.tokens.capture import Capture, Level
from gym.model_client.tokens.prompt_text import MARK, cut_prompt
from gym.model_client.tokens.response_tokens import ResponseCapture
from gym.plain import exact_json
from gym.trajectory import TurnTokens
from gym.wire.chat.completion import choice_of, finish_of, told_of_cut
from gym.wire.errors import BadCompletion
from gym.wire.history import arguments_as_objects
from gym.wire.passthrough.reply import to_completion

Dialect = Literal["chat", "responses"]
HIDDEN = "(its text is shown only for hosts that policies or policy_hosts name)"
BAD_GATEWAY = 502  # no usable answer
LOOP = 508  # the call came back to a proxy that had sent it
_NO_SUCH_PATH = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """Finished completion. `policy` is the model record it was sent under, `asked` the requested level of token data.

    `body` is the request with the policy's settings; `prefixed`: the farm added a required prefix to it. An answer in
    Responses is also a chat completion, which contains the response (`gym.wire.passthrough.reply`).
    """

    completion: JsonObject
    body: JsonObject
    policy: ServedModel
    endpoint: Endpoint
    asked: Level
    prefixed: bool
    attempts: int
    dialect: Dialect = "chat"

    @property
    def capture(self) -> Capture | ResponseCapture:
        """Token capability of the endpoint for this dialect."""
        return capture_of(self.endpoint, self.dialect)


@dataclass(frozen=True, slots=True)
class ContextOverflow:
    """Refusal of a conversation that no longer fits the model's context; nothing was generated."""

    message: str
    policy: ServedModel
    endpoint: Endpoint
    attempts: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """Call on its way to one endpoint; `number` counts from 1. With a `path` its answer may be any JSON object.

    A user who registers a host must not read through it what only the farm can reach. So `said` hides answers of other
    hosts. Unless `whole`, the prompt ids in the completion are PromptIds; `earlier` is the previous turn.
    """

    body: JsonObject
    request_id: str
    policy: ServedModel
    endpoint: Endpoint
    asked: Level
    prefixed: bool
    number: int
    path: str | None = None
    dialect: Dialect = "chat"
    whole: bool = True
    earlier: TurnTokens | None = None
    hops: str = ""
    hosts: HostRules = EVERY_HOST

    def said(self, text: str) -> str:
        """Return the server's text for an error message, if the settings name its host."""
        return self.clean(text) if self.hosts.names(self.endpoint.url.chat.raw_host or "") else HIDDEN

    def clean(self, text: str) -> str:
        """Shorten a text for an error message and mask the API key, which some servers repeat."""
        key = self.policy.spec.api_key
        return (text.replace(key, "********") if key else text)[:MESSAGE_CHARS]

    def failure(self, text: str, **options: Any) -> AttemptFailure:
        """Return a failure that names the endpoint."""
        return AttemptFailure(f"{self.endpoint.url.shown} {self.clean(text)}", **options)


def capture_of(endpoint: Endpoint, dialect: Dialect) -> Capture | ResponseCapture:
    """Return the token capability of an endpoint for a dialect."""
    return endpoint.response_capture if dialect == "responses" else endpoint.capture


def meaning(
    attempt: Attempt, status: int, header: str | None, body: bytes | JsonObject
) -> ModelAnswer | ContextOverflow | AttemptFailure:
    """Classify an answer; `header` is its `Retry-After`. Raises ModelRejected."""
    if status == 200 or isinstance(body, dict):
        return _completion(attempt, body)
    refusal = read_refusal(body)
    if is_context_overflow(status, refusal, max_tokens=_max_tokens(attempt.body)):
        return ContextOverflow(attempt.said(refusal.message), attempt.policy, attempt.endpoint, attempt.number)
    if status in (400, 422) and (what := _refused_extra(attempt, refusal)) is not None:
        return attempt.failure(f"cannot be {what}: {attempt.said(refusal.message)}", free=True)
    if status in (400, 422, 500) and _may_have_refused_arguments(attempt):
        said = attempt.said(refusal.message)
        return attempt.failure(f"answered {status} to arguments that are no JSON object: {said}", free=True)
    if status == 429 or (status >= 500 and status != LOOP):
        wait_s = retry_after_s(header, now=datetime.now(UTC))
        return attempt.failure(f"answered {status}: {attempt.said(refusal.message)}", retry_after_s=wait_s)
    hint = "; redirects are not followed, give the address that it leads to" if status < 400 else ""
    if status == LOOP:
        hint = "; the policy leads back to the proxy of a farm that its calls have passed"
    if attempt.dialect == "responses" and status in _NO_SUCH_PATH:
        hint = "; with `api: responses` a policy needs a server that has /v1/responses, with `api: chat` it does not"
    raise ModelRejected(
        f"{attempt.policy.title}: {attempt.endpoint.url.shown} refused the call with {status}: "
        f"{attempt.said(refusal.message)}{hint}",
        upstream_status=status,
        endpoint=attempt.endpoint.url.shown,
    )


def unusable(attempt: Attempt, why: str) -> ModelRejected:
    """Return the error for a call that would fail at every retry."""
    return ModelRejected(
        f"{attempt.policy.title}: the call to {attempt.endpoint.url.shown} can never succeed: {attempt.clean(why)}",
        upstream_status=BAD_GATEWAY,
        endpoint=attempt.endpoint.url.shown,
    )


def blame(status: int, failure: AttemptFailure) -> Outcome:
    """Return the outcome for the endpoint of a failure that came as an HTTP answer."""
    if failure.free or status == 429:
        return "answered"
    return "failed" if status > 500 else "erred"


def _may_have_refused_arguments(attempt: Attempt) -> bool:
    """Return whether the request has model-written arguments that a server may be unable to decode.

    vLLM up to 0.25 decodes the arguments of earlier calls for its chat template, and answers 400. From now on this
    endpoint gets such arguments wrapped (`gym.wire.history`).
    """
    if attempt.endpoint.reads_objects_only or arguments_as_objects(attempt.body) is None:
        return False
    attempt.endpoint.reads_objects_only = True
    return True


def _refused_extra(attempt: Attempt, refusal: Refusal) -> str | None:
    """Return which of the farm's own additions to the request the server refused; stop sending it there."""
    if attempt.endpoint.prefix.learn_refusal(refusal, sent=attempt.prefixed):
        return "told the tokens that a prompt begins with"
    capture = capture_of(attempt.endpoint, attempt.dialect)
    return "asked for token ids" if capture.refused(refusal, asked=attempt.asked) else None


def _completion(attempt: Attempt, body: bytes | JsonObject) -> ModelAnswer | AttemptFailure:
    completion: Any
    try:
        if isinstance(body, dict):
            completion = body
        else:
            completion = exact_json.loads(body) if attempt.whole else _with_prompt_ids(body, attempt.earlier)
        if not isinstance(completion, dict):
            return attempt.failure("answered 200 with something that is no JSON object")
        if attempt.dialect == "responses":
            completion = to_completion(completion)
        elif attempt.path is None:
            if not isinstance(body, dict):
                completion = told_of_cut(completion, _max_tokens(attempt.body))
            finish_of(choice_of(completion))
    except BadCompletion as error:
        return attempt.failure(f"broke off or gave no completion: {attempt.said(error.message)}")
    except (orjson.JSONDecodeError, AttributeError):
        return attempt.failure("answered 200 with something that is no JSON object")
    except RecursionError:
        return attempt.failure("answered 200 with JSON that is nested too deeply")
    return ModelAnswer(
        completion,
        attempt.body,
        attempt.policy,
        attempt.endpoint,
        attempt.asked,
        attempt.prefixed,
        attempt.number,
        attempt.dialect,
    )


def _with_prompt_ids(body: bytes, earlier: TurnTokens | None) -> Any:
    """Parse a completion; its `prompt_token_ids` are PromptIds if they could be read separately."""
    rest, prompt = cut_prompt(body, earlier)
    completion = exact_json.loads(rest)
    if prompt is None:
        return completion
    if isinstance(completion, dict) and completion.get("prompt_token_ids") == MARK:
        return completion | {"prompt_token_ids": prompt}
    return exact_json.loads(body)


def _max_tokens(body: JsonObject) -> int | None:
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    value = next((body[name] for name in names if name in body), None)
    return value if isinstance(value, int) else None
