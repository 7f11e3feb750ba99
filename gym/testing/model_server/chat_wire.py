"""Responses in vLLM 0.32's shapes: whole and streamed chat completions, plain completions.

Field positions: in a chat response, prompt ids are at the top level and in the first chunk, generated ids in the
choice; in a plain completion both are in the choice. `auto` and `required` calls finish with `tool_calls`, a named one
with `stop`. Fields that vLLM gives as null are null here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from gym.jsontypes import JsonObject
from gym.testing.model_server.chat_request import ChatRequest
from gym.testing.model_server.generation import Generation, token_logprob
from gym.testing.scripted_policy.tokenizer import token_text


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedAnswer:
    """Inputs of a response. `token_ids` is whether this server returns token ids at all."""

    id: str
    created: int
    model: str
    seed: int
    token_ids: bool
    reasoning_field: Literal["reasoning", "reasoning_content"]

    def chat(self, request: ChatRequest, generation: Generation) -> JsonObject:
        """Return a whole chat completion."""
        read = generation.message()
        message: JsonObject = {
            "role": "assistant",
            "content": read["content"],
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            self.reasoning_field: read["reasoning"],
        }
        if request.tool_choice in ("required", "named") or not read["calls"]:
            message["content"] = read["content"] or ""
        if read["calls"]:
            message["tool_calls"] = [
                {
                    "id": generation.call_id(place),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for place, call in enumerate(read["calls"])
            ]
        finish: str = generation.finish
        called = request.tool_choice == "auto" and bool(read["calls"])
        if called or (request.tool_choice == "required" and finish == "stop"):
            finish = "tool_calls"
        with_ids = request.return_token_ids and self.token_ids
        choice = {
            "index": 0,
            "message": message,
            "logprobs": {"content": self._logprobs(generation, request)} if request.logprobs else None,
            "finish_reason": finish,
            "stop_reason": generation.stop_reason,
            "token_ids": generation.token_ids if with_ids else None,
        }
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": None,
            "usage": usage(generation),
            "prompt_logprobs": None,
            "prompt_token_ids": generation.prompt_ids if with_ids else None,
            "kv_transfer_params": None,
        }

    def chat_chunks(self, request: ChatRequest, generation: Generation) -> Iterator[JsonObject]:
        """Return a chat completion as chunks: the role, one for each visible token, the usage if wanted."""
        with_ids = request.return_token_ids and self.token_ids
        first = self._chunk({"role": "assistant", "content": ""}, None)
        first["prompt_token_ids"] = generation.prompt_ids if with_ids else None
        if request.continuous_usage:
            first["usage"] = usage(generation, completed=0)
        yield first
        logprobs = self._logprobs(generation, request) if request.logprobs else None
        last = len(generation.token_ids) - 1
        for place, delta in enumerate(self._deltas(generation)):
            if delta is None and place != last and logprobs is None and not with_ids:
                continue
            chunk = self._chunk(delta or {}, self._finish_streamed(request, generation) if place == last else None)
            choice = chunk["choices"][0]
            choice["logprobs"] = None if logprobs is None else {"content": [logprobs[place]]}
            choice["token_ids"] = [generation.token_ids[place]] if with_ids else None
            if place == last:
                choice["stop_reason"] = generation.stop_reason
            if request.continuous_usage:
                chunk["usage"] = usage(generation, completed=place + 1)
            yield chunk
        if request.include_usage:
            yield {**self._chunk({}, None), "choices": [], "usage": usage(generation)}

    def completion(self, generation: Generation, *, logprobs: int | None, return_token_ids: bool) -> JsonObject:
        """Return a plain completion."""
        with_ids = return_token_ids and self.token_ids
        choice = {
            "index": 0,
            "text": generation.text,
            "logprobs": None if logprobs is None else self._plain_logprobs(generation),
            "finish_reason": generation.finish,
            "stop_reason": generation.stop_reason,
            "token_ids": generation.token_ids if with_ids else None,
            "prompt_logprobs": None,
            "prompt_token_ids": generation.prompt_ids if with_ids else None,
        }
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "usage": usage(generation),
        }

    def _chunk(self, delta: JsonObject, finish: str | None) -> JsonObject:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        }

    def _finish_streamed(self, request: ChatRequest, generation: Generation) -> str:
        called = bool(generation.reply.tool_calls) and request.tool_choice != "named"
        return "tool_calls" if called and generation.finish == "stop" else generation.finish

    def _deltas(self, generation: Generation) -> Iterator[JsonObject | None]:
        """Return the addition of each token to the message; None if it adds nothing visible."""
        regions = generation.regions
        shown = len(generation.text)
        at = 0
        start = 0
        for token_id in generation.token_ids:
            end = min(start + len(token_text(token_id)), shown)
            delta: JsonObject | None = None
            while at < len(regions) and regions[at].start < end:
                region = regions[at]
                piece = generation.text[max(start, region.start) : min(end, region.end)]
                delta = self._add(delta, generation, region.kind, region.call, piece, region.end <= end)
                if region.end > end:
                    break
                at += 1
            start = end
            yield delta

    def _add(
        self, delta: JsonObject | None, generation: Generation, kind: str, call: int, piece: str, ended: bool
    ) -> JsonObject | None:
        if kind in ("reasoning", "content"):
            return {self.reasoning_field if kind == "reasoning" else "content": piece} if piece else delta
        if kind == "name" and ended:
            name = generation.reply.tool_calls[call].name
            function = {"name": name, "arguments": ""}
            return {
                "tool_calls": [
                    {"index": call, "id": generation.call_id(call), "type": "function", "function": function}
                ]
            }
        if kind == "arguments" and piece:
            if delta is not None:
                delta["tool_calls"][0]["function"]["arguments"] = piece
                return delta
            return {"tool_calls": [{"index": call, "function": {"arguments": piece}}]}
        return delta

    def _logprobs(self, generation: Generation, request: ChatRequest) -> list[JsonObject]:
        shown = [_shown(token_id, request.tokens_as_ids) for token_id in generation.token_ids]
        top = request.top_logprobs
        entries = []
        for place, (token_id, (token, data)) in enumerate(zip(generation.token_ids, shown, strict=True)):
            logprob = token_logprob(token_id, place, self.seed)
            alternatives = self._alternatives(token_id, logprob, top, as_ids=request.tokens_as_ids) if top else []
            entries.append({"token": token, "logprob": logprob, "bytes": data, "top_logprobs": alternatives})
        return entries

    def _alternatives(self, token_id: int, logprob: float, count: int, *, as_ids: bool) -> list[JsonObject]:
        """Return the token itself, then single letters, less likely one by one."""
        others = [letter for letter in range(ord("a"), ord("z") + 1) if letter != token_id]
        found = []
        for rank, other in enumerate([token_id, *others[: count - 1]]):
            token, _ = _shown(other, as_ids)  # the bytes of an alternative are those of its text
            found.append({"token": token, "logprob": logprob - rank, "bytes": list(token.encode())})
        return found

    def _plain_logprobs(self, generation: Generation) -> JsonObject:
        tokens = [token_text(token_id) for token_id in generation.token_ids]
        values = [token_logprob(token_id, place, self.seed) for place, token_id in enumerate(generation.token_ids)]
        offsets = [0]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token))
        return {
            "text_offset": offsets[: len(tokens)],
            "token_logprobs": values,
            "tokens": tokens,
            "top_logprobs": [{token: value} for token, value in zip(tokens, values, strict=True)],
        }


@lru_cache(maxsize=65_536)
def _shown(token_id: int, as_id: bool) -> tuple[str, list[int]]:
    text = token_text(token_id)
    return f"token_id:{token_id}" if as_id else text, list(text.encode())


def usage(generation: Generation, *, completed: int | None = None) -> dict[str, Any]:
    """Return the usage of a generation, or of its first `completed` tokens."""
    prompt = len(generation.prompt_ids)
    count = len(generation.token_ids) if completed is None else completed
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + count,
        "completion_tokens": count,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": min(count, generation.reasoning_tokens)},
    }
