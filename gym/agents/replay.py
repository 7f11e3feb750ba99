"""Replay of the model calls that an attempt had completed when its worker handed it back.

The environment and its tools run again, which gives the same results for the same seed. A model call whose request
equals the recorded one gets the recorded sample: its tokens, its times, its policy version. At the first request that
differs, the record ends and calls go to the model.

Invariant: a rollout that is not handed back pays nothing for this. The record is made on demand, by `recorded`.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgpack

from gym.agents.base import Episode, Model
from gym.jsontypes import JsonObject
from gym.model_client.client import ModelReply, ModelRequest
from gym.plain import exact_json
from gym.results.record import pack_segment, unpack_segment
from gym.trajectory import CallFacts, ModelCall, Segment, TurnTokens, Usage

VERSION = 1
MOST_BYTES = 2**20
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    """Tokens of a turn within its segment: the prompt is everything before `start`."""

    segment: Segment
    start: int
    end: int
    ended: bool | None

    def tokens(self) -> TurnTokens:
        """Return the tokens as the server returned them."""
        segment, start, end = self.segment, self.start, self.end
        return TurnTokens(
            segment.token_ids[:start], segment.token_ids[start:end], segment.logprobs[start:end], ended=self.ended
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """A completed model call, with the digest of its request."""

    digest: bytes
    call: ModelCall
    items: list[JsonObject]
    sampled: SampledTokens | None

    def reply(self) -> ModelReply:
        """Return the recorded answer of the model."""
        tokens = self.sampled.tokens() if self.sampled is not None else None
        return ModelReply(items=self.items, facts=self.call.facts, tokens=tokens)


@dataclass(slots=True, kw_only=True)
class Replay:
    """A model for one episode: answers from the record while requests match, then asks the model behind it."""

    calls: Sequence[RecordedCall]
    elapsed_s: float  # of the rollout, when it was handed back
    model: Model
    used: int = field(default=0, init=False)

    async def respond(self, request: ModelRequest) -> ModelReply:
        """Answer from the record, or ask the model and raise its errors."""
        if self.used < len(self.calls):
            recorded = self.calls[self.used]
            if request_digest(request.params) == recorded.digest:
                self.used += 1
                return recorded.reply()
            left = len(self.calls) - self.used
            _LOG.info(
                "rollout %s asks otherwise than before: %d recorded calls are dropped",
                request.rollout_id,
                left,
                extra={"action": "replay_ended"},
            )
            self.calls = self.calls[: self.used]
        return await self.model.respond(request)


def request_digest(params: JsonObject) -> bytes:
    """Return a digest that is equal for equal requests."""
    head = exact_json.dumps({name: params[name] for name in params if name != "input"}, sort_keys=True)
    digest = hashlib.blake2b(head, digest_size=16)
    for item in params["input"]:
        digest.update(exact_json.dumps(item, sort_keys=True))
    return digest.digest()


def recorded(episode: Episode) -> list[RecordedCall]:
    """Return the completed calls of an episode and those that it had yet to replay."""
    trajectory = episode.trajectory
    sampled = [call.has_tokens and call.facts.finish != "context_overflow" for call in trajectory.calls]
    spans = [
        (segment, start, end) for segment in trajectory.segments.segments for start, end, _ in segment.policy_versions
    ]
    if sum(sampled) != len(spans) or len(episode.tools) != len(trajectory.calls):
        return []  # a turn without tokens has no position; an agent outside starts afresh
    places = iter(spans)
    calls = []
    for number, (call, tools, has_tokens) in enumerate(zip(trajectory.calls, episode.tools, sampled, strict=True)):
        before = call.request_items - len(episode.input_items)
        place = None
        if has_tokens:
            segment, start, end = next(places)
            last = episode.last_tokens if number == len(trajectory.calls) - 1 else None
            place = SampledTokens(segment=segment, start=start, end=end, ended=last.ended if last is not None else None)
        calls.append(
            RecordedCall(
                digest=request_digest(episode.request(trajectory.items[:before], tools)),
                call=call,
                items=trajectory.items[before : before + call.reply_items],
                sampled=place,
            )
        )
    if isinstance(episode.model, Replay):
        calls += episode.model.calls[episode.model.used :]
    return calls


def pack(calls: Sequence[RecordedCall], *, attempt: int, elapsed_s: float, most_bytes: int = MOST_BYTES) -> bytes:
    """Pack the first calls that fit; empty if there are none."""
    while calls:
        segments: dict[int, tuple[int, Segment]] = {}
        entries = []
        for each in calls:
            call, place = each.call, each.sampled
            tokens = None
            if place is not None:
                number, _ = segments.setdefault(id(place.segment), (len(segments), place.segment))
                tokens = (number, place.start, place.end, place.ended)
            facts = call.facts
            usage = facts.usage
            entries.append(
                {
                    "digest": each.digest,
                    "items": exact_json.dumps(each.items),
                    "tokens": tokens,
                    "endpoint": facts.endpoint,
                    "started_s": facts.started_s,
                    "duration_s": facts.duration_s,
                    "finish": facts.finish,
                    "usage": (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens),
                    "versions": (facts.version_before, facts.version_after),
                    "request_items": call.request_items,
                }
            )
        kept = {
            "v": VERSION,
            "attempt": attempt,
            "elapsed_s": elapsed_s,
            "calls": entries,
            "segments": [pack_segment(segment) for _, segment in segments.values()],
        }
        packed = zlib.compress(msgpack.packb(kept), 1)
        if len(packed) <= most_bytes:
            return packed
        calls = calls[: len(calls) // 2]
    return b""


def unpack(packed: bytes, *, attempt: int, model: Model) -> Replay | None:
    """Return a model that answers from packed calls; None if unreadable, or of another attempt or version."""
    try:
        kept = msgpack.unpackb(zlib.decompress(packed), strict_map_key=False)
        if kept["v"] != VERSION or kept["attempt"] != attempt:
            return None
        segments = [unpack_segment(segment) for segment in kept["segments"]]
        calls = [_call(turn, entry, segments) for turn, entry in enumerate(kept["calls"])]
        elapsed_s = float(kept["elapsed_s"])
    except (
        zlib.error,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        msgpack.UnpackException,
    ) as error:
        _LOG.warning("recorded calls cannot be read: %s", error, extra={"action": "replay_unreadable"})
        return None
    return Replay(calls=calls, elapsed_s=elapsed_s, model=model)


def _call(turn: int, entry: JsonObject, segments: Sequence[Segment]) -> RecordedCall:
    items = exact_json.loads(entry["items"])
    sampled = None
    if entry["tokens"] is not None:
        number, start, end, ended = entry["tokens"]
        sampled = SampledTokens(segment=segments[number], start=start, end=end, ended=ended)
    before, after = entry["versions"]
    facts = CallFacts(
        endpoint=entry["endpoint"],
        finish=entry["finish"],
        usage=Usage(*entry["usage"]),
        version_before=before,
        version_after=after,
        duration_s=entry["duration_s"],
        attempts=1,
        started_s=entry["started_s"],
    )
    call = ModelCall(
        turn=turn,
        facts=facts,
        request_items=entry["request_items"],
        reply_items=len(items),
        has_tokens=sampled is not None,
    )
    return RecordedCall(digest=entry["digest"], call=call, items=items, sampled=sampled)
