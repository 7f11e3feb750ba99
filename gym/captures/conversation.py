"""Contribution of one captured call to its rollout: new messages, the answer, tokens as a delta. Pure functions.

A conversation is identified by a chain of digests, one for each of its prefixes. So a request is compared with the
whole conversation before it without reading that again. Details that a dialect loses on the way (reasoning, ids of
items, white space in JSON arguments) are not part of the digest.

The tokens before a turn are identified by their number and digest (`Tokens`). A turn whose prompt starts with them adds
the rest of its prompt, any other turn its whole prompt.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.trajectory import CallFacts, ModelCall, Segment, ToolCall, Trajectory, TurnTokens, Usage
from gym.wire.chat.completion import calls_of, choice_of, finish_of, reasoning_of, refusals_of, text_of
from gym.wire.history import answered_calls
from gym.wire.passthrough.reply import RESPONSE
from gym.wire.responses.items import ITEM_ROLE
from gym.wire.responses.reply import output_items

DIGEST_BYTES = 16
_PART_NAMES = {"text": "input_text", "image_url": "input_image"}


@dataclass(frozen=True, slots=True)
class Tokens:
    """All tokens up to a position in a conversation, by number and digest."""

    length: int
    digest: bytes

    @classmethod
    def of(cls, ids: array[int]) -> Tokens:
        """Return number and digest of token ids; the digest is of 4 bytes for each id."""
        return cls(len(ids), _digest(memoryview(ids)))

    def begin(self, ids: array[int]) -> bool:
        """Return whether a prompt starts with them."""
        return len(ids) >= self.length and _digest(memoryview(ids)[: self.length]) == self.digest


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a recorded call: the position of its record, and the tokens up to there, if the server returned any.

    `prompt` tells how that call's prompt was written (`gym.captures.continuation`). It is empty if the tokens are those
    of an earlier call.
    """

    place: int
    tokens: Tokens | None
    prompt: str = ""

    def pack(self) -> str:
        """Return the stored form; `$` is replaced by the position once the record is appended."""
        known = ":" if self.tokens is None else f"{self.tokens.length}:{self.tokens.digest.hex()}"
        return f"h:$:{known}:{self.prompt}"

    @classmethod
    def unpack(cls, text: str) -> Head | None:
        """Return the end of a call, None for a prefix that no call ended at."""
        kind, _, rest = text.partition(":")
        if kind != "h":
            return None
        place, length, digest, prompt = [*rest.split(":"), "", "", ""][:4]
        return cls(int(place), Tokens(int(length), bytes.fromhex(digest)) if length else None, prompt)


def chain(messages: Sequence[JsonObject], before: bytes = b"") -> list[bytes]:
    """Return a digest for each prefix of the conversation, shortest first."""
    digests = []
    for message in messages:
        before = _digest(before + _canonical(message))
        digests.append(before)
    return digests


def body_digest(*parts: JsonObject | str) -> bytes:
    """Return a digest of JSON values that does not depend on the order of keys."""
    return _digest(exact_json.dumps(parts, sort_keys=True))


def _digest(data: bytes | memoryview) -> bytes:
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def _canonical(message: JsonObject) -> bytes:
    content = message.get("content")
    if message.get("role") == "assistant":
        calls = [[call.call_id, call.name, _arguments(call.arguments)] for call in calls_of(message, id_prefix="")]
        said: Any = ["assistant", text_of(message) + "".join(refusals_of(message)), calls]
    else:
        if isinstance(content, list) and len(content) == 1 and content[0].get("type") == "text":
            content = content[0].get("text")
        said = [message.get("role"), content or "", message.get("tool_call_id")]
    return exact_json.dumps(said, sort_keys=True)


def _arguments(text: str) -> str:
    try:
        return json.dumps(json.loads(text), sort_keys=True) if text.strip() else "{}"
    except (ValueError, RecursionError):
        return text


def pack_tokens(tokens: TurnTokens | None, before: Tokens | None) -> tuple[JsonObject | None, Tokens | None]:
    """Return a turn's tokens as they are stored, and all tokens up to its end."""
    if tokens is None:
        return None, before
    prompt = array("i", tokens.prompt_ids)
    base = before.length if before is not None and before.begin(prompt) else 0
    generated = array("i", tokens.token_ids)
    packed = {
        "base": base,
        "prompt": prompt[base:].tobytes(),
        "ids": generated.tobytes(),
        "logprobs": array("f", tokens.logprobs).tobytes(),
        "source": tokens.source,
        "ended": tokens.ended,
    }
    return packed, Tokens.of(prompt + generated)


def input_items(messages: Sequence[JsonObject], *, id_prefix: str) -> list[JsonObject]:
    """Return chat messages as the items of a Responses request."""
    items: list[JsonObject] = []
    for number, message in enumerate(messages):
        content = _content(message.get("content"))
        match message.get("role"):
            case "assistant":
                items += output_items(message, id_prefix=f"{id_prefix}-in{number}")
            case "tool":
                call_id = message.get("tool_call_id")
                items.append({"type": "function_call_output", "call_id": call_id, "output": content})
            case role if role == ITEM_ROLE:
                items.append(exact_json.loads(message["content"]))
            case role:
                items.append({"role": role, "content": content})
    return items


def _content(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    parts = []
    for part in value:
        name = part.get("type")
        inner = part.get(name)
        if name == "image_url" and isinstance(inner, dict):
            parts.append({"type": "input_image", "image_url": inner.get("url"), "detail": inner.get("detail", "auto")})
        else:
            parts.append({**part, "type": _PART_NAMES.get(name, name)})
    return parts


def count_items(messages: Sequence[JsonObject]) -> int:
    """Return the number of items that these messages have in a Responses request."""
    count = 0
    for message in messages:
        said = 1
        if message.get("role") == "assistant":
            calls = len(message.get("tool_calls") or ())
            text = bool(text_of(message) or refusals_of(message))
            said = max(1, calls + text + bool(reasoning_of(message)))
        count += said
    return count


def reply_items(record: JsonObject) -> list[JsonObject]:
    """Return the items of a recorded answer, as `PolicyClient.respond` makes them."""
    if record["completion"] is None:
        return []
    if RESPONSE in record["completion"]:
        items: list[JsonObject] = record["completion"][RESPONSE]["output"]
        return items
    choice = choice_of(record["completion"])
    status = "completed" if finish_of(choice) == "stop" else "incomplete"
    return output_items(choice["message"], id_prefix=record["call_id"], status=status)


def rebuild(records: Sequence[JsonObject]) -> Trajectory:
    """Return the trajectory of these calls, in the order in which they were recorded.

    A conversation in which each call continues the last gives the trajectory that an `Episode` would have recorded. If
    several run in parallel, or one branches, each continues its own earlier call, in separate segments.
    """
    first = records[0]
    opening = input_items(first["messages"], id_prefix=first["call_id"])
    trajectory = Trajectory(params={**first["settings"], "input": opening})
    grown = _Grown(trajectory)
    for turn, record in enumerate(records):
        if turn:
            trajectory.items += input_items(record["messages"], id_prefix=record["call_id"])
        replied = reply_items(record)
        trajectory.items += replied
        facts = CallFacts(
            endpoint=record["endpoint"],
            finish=record["finish"],
            usage=Usage(*record["usage"]),
            version_before=record["version_before"],
            version_after=record["version_after"],
            duration_s=record["duration_s"],
            attempts=record["attempts"],
            started_s=record["started_s"],
        )
        trajectory.usage += facts.usage
        trajectory.calls.append(
            ModelCall(
                turn=turn,
                facts=facts,
                request_items=record["request_items"],
                reply_items=len(replied),
                has_tokens=record["tokens"] is not None,
            )
        )
        if facts.finish != "context_overflow":
            grown.add(turn, record)
    trajectory.tool_calls = _tool_calls(trajectory.items)
    return trajectory


class _Grown:
    """The segments so far, and the length to which each call has extended one."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._trajectory = trajectory
        self._ends: dict[int, tuple[Segment, int]] = {}

    def add(self, place: int, record: JsonObject) -> None:
        before = self._ends.get(record["parent"])
        packed = record["tokens"]
        if packed is None:
            self._trajectory.tokens_complete = False
            if before is not None:
                self._ends[place] = before
            return
        base = packed["base"]
        if before is not None and len(before[0].token_ids) == base:
            segment = before[0]
        else:
            segment = Segment()
            self._trajectory.segments.segments.append(segment)
            if base and before is not None:
                segment.extend(before[0].token_ids[:base], mask=0, logprobs=None)
        segment.extend(unpack_numbers("i", packed["prompt"]), mask=0, logprobs=None)
        ids = unpack_numbers("i", packed["ids"])
        start = len(segment.token_ids)
        segment.extend(ids, mask=1, logprobs=unpack_numbers("f", packed["logprobs"]))
        if ids:
            segment.policy_versions.append((start, len(segment.token_ids), record["version_after"]))
        self._ends[place] = segment, len(segment.token_ids)


def unpack_numbers(code: str, raw: bytes) -> array[Any]:
    """Return an array of numbers from a record."""
    values: array[Any] = array(code)
    values.frombytes(raw)
    return values


def _tool_calls(items: Sequence[JsonObject]) -> list[ToolCall]:
    """Return the tool calls that were answered. Whether a tool failed cannot be known here."""
    calls = []
    for call, answer in answered_calls(items):
        if answer is None:
            continue
        try:
            arguments = exact_json.loads(call["arguments"])
        except ValueError:
            arguments = None
        output = answer["output"] if isinstance(answer["output"], str) else json.dumps(answer["output"])
        calls.append(ToolCall(call["name"], arguments if isinstance(arguments, dict) else None, output, failed=False))
    return calls
