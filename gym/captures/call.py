"""Values of a captured call, from its request to its record. `gym.captures.recording` keeps them in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gym.captures.conversation import Head, chain, count_items, pack_tokens
from gym.jsontypes import JsonObject
from gym.plain import exact_json, exact_msgpack
from gym.state.redis.capture_keys import CaptureKeys
from gym.trajectory import CallFacts, TurnTokens, Usage

MAX_TURNS = "max_turns"  # kind of a call that was refused because the rollout had used up its turns
MOST_BEGINNINGS = 1000
"""Of a conversation, its longest ones, as one script call looks for them or keeps them."""

# fields of a chat request that differ between the calls of a conversation
NO_SETTINGS = frozenset({"messages", "stream", "stream_options"})
_SAID = ("settings", "messages", "completion")
_AS_JSON = "said"  # these, as JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """A call as it is captured. `chat` is the translated request; `dialect` and `body` are the caller's.

    `policy` and `model` are its target. `request_items` is the number of input items that the caller sent, if its
    dialect has items.
    """

    rollout_id: str
    attempt: int
    dialect: str
    body: JsonObject
    chat: JsonObject
    policy: str
    model: str
    request_items: int | None

    @property
    def settings(self) -> JsonObject:
        """The request without its messages."""
        return {name: value for name, value in self.chat.items() if name not in NO_SETTINGS}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAnswer:
    """Answer to a call. `completion` holds no tokens, and is None for a context overflow, which has a message."""

    completion: JsonObject | None
    overflow: str | None
    created_at: float
    facts: CallFacts
    tokens: TurnTokens | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailure:
    """Cause of a failed call. `status` is the model server's, `endpoint` the last one that was called, if any.

    `kind` is an ErrorKind, `client_left` or `max_turns`.
    """

    kind: str
    message: str
    status: int | None
    endpoint: str | None
    duration_s: float


@dataclass(slots=True, kw_only=True)
class OpenCall:
    """A call that this process has begun.

    The rollout has seen its first `known` messages; the call `head` ended at its first `before` ones. `settings` are
    None where the rollout has seen them; `failed_before` is whether an equal call has failed.
    """

    request: CallRequest
    keys: CaptureKeys
    owner: str
    digest: bytes
    turn: int
    started_s: float
    digests: list[bytes]
    known: int
    before: int
    head: Head | None
    prompt: str
    settings: JsonObject | None
    settings_digest: bytes
    failed_before: bool

    @property
    def call_id(self) -> str:
        """Return the id of the call, in the client library's terms."""
        return f"{self.request.rollout_id}-{self.request.attempt}-{self.turn}"


def left_out(digests: Sequence[bytes]) -> int:
    """Return how many of the shortest prefixes of a conversation are neither looked up nor stored.

    This bounds the scripts. A call that continues one of these prefixes is recorded as a new conversation.
    """
    return max(0, len(digests) - MOST_BEGINNINGS)


def answered(call: OpenCall, answer: CallAnswer) -> tuple[bytes, list[str | bytes]]:
    """Return the record of a call, and the prefixes of the conversation that are known now, by digest."""
    request = call.request
    facts = answer.facts
    tokens, after = pack_tokens(answer.tokens, call.head.tokens if call.head is not None else None)
    record = _begun(call) | {
        "parent": -1 if call.head is None else call.head.place,
        "created_at": answer.created_at,
        "duration_s": facts.duration_s,
        "endpoint": facts.endpoint,
        "attempts": facts.attempts,
        "finish": facts.finish,
        "usage": _counts(facts.usage),
        "version_before": facts.version_before,
        "version_after": facts.version_after,
        "settings": call.settings,
        "messages": request.chat["messages"][call.known :],
        "completion": answer.completion,
        "overflow": answer.overflow,
        "tokens": tokens,
    }
    pairs: list[str | bytes] = []
    for digest in call.digests[max(call.known, left_out(call.digests)) :]:
        pairs += [digest, "i"]
    if answer.completion is not None:
        reply = answer.completion["choices"][0]["message"]
        end = Head(0, after, call.prompt if tokens is not None else "")
        pairs += [chain([reply], call.digests[-1])[0], end.pack()]
    return pack(record), pairs


def failed(call: OpenCall, failure: CallFailure) -> bytes:
    """Return the record of a failed call; of equal calls only the first record has the request."""
    asked: JsonObject = {"settings": None, "messages": []}
    if not call.failed_before:
        asked = {"settings": call.request.settings, "messages": call.request.chat["messages"][call.known :]}
    return pack(
        _begun(call)
        | asked
        | {
            "duration_s": failure.duration_s,
            "endpoint": failure.endpoint,
            "error": {"kind": failure.kind, "message": failure.message, "status": failure.status},
        }
    )


def _begun(call: OpenCall) -> JsonObject:
    request = call.request
    items = request.request_items
    return {
        "v": 1,
        "call_id": call.call_id,
        "turn": call.turn,
        "dialect": request.dialect,
        "policy": request.policy,
        "started_s": call.started_s,
        "after": call.digests[call.known - 1] if call.known else b"",
        "request_items": items if items is not None else count_items(request.chat["messages"]),
        "settings_digest": call.settings_digest,
    }


def _counts(usage: Usage) -> Sequence[int]:
    return (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens)


def pack(record: JsonObject) -> bytes:
    """A record as it is stored; what msgpack cannot nest is JSON in it."""
    try:
        return exact_msgpack.packb(record)
    except ValueError:
        said = {name: record[name] for name in _SAID if name in record}
        return exact_msgpack.packb({**record, **dict.fromkeys(said), _AS_JSON: exact_json.dumps(said)})


def unpack(packed: bytes) -> JsonObject:
    """Return a record that `pack` packed."""
    record: JsonObject = exact_msgpack.unpackb(packed)
    return record | exact_json.loads(record.pop(_AS_JSON)) if _AS_JSON in record else record
