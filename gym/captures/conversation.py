"""What one captured call adds to its rollout: new messages, the answer, tokens as a delta. Pure functions.

A conversation is known by a chain of digests, one for each of its beginnings, so a request is compared with all that
was said before it without that being read again. Whatever a client's dialect loses on the way (reasoning, ids of items,
white space in JSON arguments) is no part of the digest.

The tokens before a turn are known by their number and digest (`Tokens`): a turn whose prompt begins with them adds the
rest of its prompt, any other one its whole prompt.
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
from gym.trajectory import ModelCall, Segment, ToolCall, Trajectory, TurnTokens, Usage
from gym.wire.chat.completion import calls_of, choice_of, finish_of, reasoning_of, refusals_of, text_of
from gym.wire.history import answered_calls
from gym.wire.passthrough.reply import RESPONSE
from gym.wire.responses.items import ITEM_ROLE
from gym.wire.responses.reply import output_items

DIGEST_BYTES = 16
_PART_NAMES = {"text": "input_text", "image_url": "input_image"}


@dataclass(frozen=True, slots=True)
class Tokens:
    """All tokens up to a place in a conversation, by number and digest."""

    length: int
    digest: bytes

    @classmethod
    def of(cls, ids: array[int]) -> Tokens:
        """The digest is of the ids as 4 bytes each."""
        return cls(len(ids), _digest(memoryview(ids)))

    def begin(self, ids: array[int]) -> bool:
        """Whether a prompt begins with them."""
        return len(ids) >= self.length and _digest(memoryview(ids)[: self.length]) == self.digest


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a recorded call: where its record lies, and the tokens up to there, where the server gave any.

    `prompt` tells how that call's prompt was written (`gym.captures.continuation`); it is empty where the tokens are
    only those of an earlier call.
    """

    place: int
    tokens: Tokens | None
    prompt: str = ""

    def pack(self) -> str:
        """`$` stands for the place, which is known when the record is appended."""
        known = ":" if self.tokens is None else f"{self.tokens.length}:{self.tokens.digest.hex()}"
        return f"h:$:{known}:{self.prompt}"

    @classmethod
    def unpack(cls, text: str) -> Head | None:
        """None for a beginning that no call ended at."""
        kind, _, rest = text.partition(":")
        if kind != "h":
            return None
        place, length, digest, prompt = [*rest.split(":"), "", "", ""][:4]
        return cls(int(place), Tokens(int(length), bytes.fromhex(digest)) if length else None, prompt)


def chain(messages: Sequence[JsonObject], before: bytes = b"") -> list[bytes]:
    """A digest for each beginning of the conversation, shortest first."""
    digests = []
    for message in messages:
        before = _digest(before + _canonical(message))
        digests.append(before)
    return digests


def body_digest(*parts: JsonObject | str) -> bytes:
    """A digest of JSON values, whatever the order of their keys."""
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
    """A turn's tokens as they are stored, and all tokens up to its end."""
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
    """Chat messages as the items of a Responses request."""
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
    """How many items of a Responses request these messages are."""
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
    """The items of a recorded answer, as `PolicyClient.respond` makes them."""
    if record["completion"] is None:
        return []
    if RESPONSE in record["completion"]:
        items: list[JsonObject] = record["completion"][RESPONSE]["output"]
        return items
    choice = choice_of(record["completion"])
    status = "completed" if finish_of(choice) == "stop" else "incomplete"
    return output_items(choice["message"], id_prefix=record["call_id"], status=status)


def rebuild(records: Sequence[JsonObject]) -> Trajectory:
    """The trajectory that these calls make, in the order in which they were recorded.

    Of a conversation that goes on from call to call it is what an `Episode` would have recorded. Where several run side
    by side, or one goes back, each goes on from its own earlier call, in segments of its own.
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
        usage = Usage(*record["usage"])
        trajectory.usage += usage
        trajectory.calls.append(
            ModelCall(
                turn=turn,
                endpoint=record["endpoint"],
                started_s=record["started_s"],
                duration_s=record["duration_s"],
                finish=record["finish"],
                usage=usage,
                version_before=record["version_before"],
                version_after=record["version_after"],
                request_items=record["request_items"],
                reply_items=len(replied),
                has_tokens=record["tokens"] is not None,
            )
        )
        if record["finish"] != "context_overflow":
            grown.add(turn, record)
    trajectory.tool_calls = _tool_calls(trajectory.items)
    return trajectory


class _Grown:
    """The segments so far, and which of them each call has grown to which length."""

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
    """Numbers out of a record."""
    values: array[Any] = array(code)
    values.frombytes(raw)
    return values


def _tool_calls(items: Sequence[JsonObject]) -> list[ToolCall]:
    """The calls that were answered. Whether a tool failed is not seen from here."""
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
