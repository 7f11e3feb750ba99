"""Responses of `/v1/responses` in vLLM 0.32's shapes, whole and streamed, made from those of Chat Completions.

As in vLLM, log-probabilities of all generated tokens are on the answer's text, and missing in an answer without one. A
stream has those of visible tokens, and always ends with `response.completed`, whatever the status. Source: vLLM 0.32,
`entrypoints/openai/responses`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gym.jsontypes import JsonObject
from gym.testing.model_server.generation import Generation

Event = JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseAnswer:
    """Inputs of a response. `with_tokens` is whether this server can return tokens and was asked to."""

    id: str
    created: int
    model: str
    request: JsonObject
    with_tokens: bool
    context_left: int

    def whole(self, generation: Generation, completion: JsonObject) -> JsonObject:
        """Return the whole response."""
        [choice] = completion["choices"]
        message = choice["message"]
        output: list[JsonObject] = []
        if reasoning := message.get("reasoning") or message.get("reasoning_content"):
            output.append(_reasoning(f"rs_{self.id}", reasoning, status=None))
        if message.get("content"):
            logprobs = choice["logprobs"]["content"] if choice["logprobs"] is not None else None
            output.append(_message(f"msg_{self.id}", _text(message["content"], logprobs)))
        for place, call in enumerate(message.get("tool_calls") or ()):
            output.append(_call(f"fc_{self.id}_{place}", call["id"], call["function"]["name"]))
            output[-1]["arguments"] = call["function"]["arguments"]
        return self._ended(generation, completion["usage"], output)

    def pieces(self, generation: Generation, chunks: Iterator[JsonObject], usage: JsonObject) -> Iterator[list[Event]]:
        """Return the events of a stream, those of each chunk together."""
        number = 0

        def numbered(events: list[Event]) -> list[Event]:
            nonlocal number
            for event in events:
                event["sequence_number"] = number
                number += 1
            return events

        begun = self._response("in_progress", [], None)
        yield numbered([_event("response.created", response=begun), _event("response.in_progress", response=begun)])
        items = _Items(self.id)
        for chunk in chunks:
            if not chunk["choices"]:
                continue
            [choice] = chunk["choices"]
            if events := items.feed(choice["delta"], choice.get("logprobs")):
                yield numbered(events)
        events = items.close()
        whole = self._ended(generation, usage, items.done)
        yield numbered([*events, _event("response.completed", response=whole)])

    def _ended(self, generation: Generation, usage: JsonObject, output: list[JsonObject]) -> JsonObject:
        status = "incomplete" if generation.finish == "length" else "completed"
        response = self._response(status, output, usage)
        if self.with_tokens:
            prompt, ids = generation.prompt_ids, generation.token_ids
            response["input_messages"] = [{"message": "", "tokens": prompt, "type": "raw_message_tokens"}]
            response["output_messages"] = [{"message": generation.text, "tokens": ids, "type": "raw_message_tokens"}]
        return response

    def _response(self, status: str, output: list[JsonObject], usage: JsonObject | None) -> JsonObject:
        asked = self.request
        tools = asked.get("tools") or []
        return {
            "id": f"resp_{self.id}",
            "created_at": self.created,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.get("instructions"),
            "metadata": asked.get("metadata"),
            "model": self.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
            "temperature": 1.0 if asked.get("temperature") is None else asked["temperature"],
            "tool_choice": asked.get("tool_choice") or ("auto" if tools else "none"),
            "tools": tools,
            "top_p": 1.0 if asked.get("top_p") is None else asked["top_p"],
            "background": False,
            "max_output_tokens": asked.get("max_output_tokens") or self.context_left,
            "max_tool_calls": asked.get("max_tool_calls"),
            "previous_response_id": None,
            "prompt": None,
            "reasoning": asked.get("reasoning"),
            "service_tier": "auto",
            "status": status,
            "text": asked.get("text"),
            "top_logprobs": asked.get("top_logprobs"),
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            "user": asked.get("user"),
            "input_messages": None,
            "output_messages": None,
        }


@dataclass(slots=True)
class _Items:
    """Items of a stream: the open one, and those that are done."""

    id: str
    done: list[JsonObject] = field(default_factory=list)
    _kind: str | None = None
    _call: int | None = None
    _item: JsonObject = field(default_factory=dict)
    _said: list[str] = field(default_factory=list)
    _logprobs: list[JsonObject] = field(default_factory=list)

    def feed(self, delta: JsonObject, logprobs: JsonObject | None) -> list[Event]:
        """Add a chunk."""
        events: list[Event] = []
        reasoning = delta.get("reasoning") or delta.get("reasoning_content")
        if reasoning:
            events += self._opened("reasoning", None)
            events += self._grow("response.reasoning_text.delta", reasoning)
        if delta.get("content"):
            events += self._opened("message", None)
            entries = logprobs["content"] if logprobs is not None else []
            self._logprobs += entries
            shown = [{"token": e["token"], "logprob": e["logprob"], "top_logprobs": e["top_logprobs"]} for e in entries]
            events += self._grow("response.output_text.delta", delta["content"], logprobs=shown)
        for call in delta.get("tool_calls") or ():
            events += self._opened("function_call", call)
            if arguments := call["function"].get("arguments"):
                events += self._grow("response.function_call_arguments.delta", arguments)
        return events

    def close(self) -> list[Event]:
        """End the open item."""
        if self._kind is None:
            return []
        kind, item, said = self._kind, self._item, "".join(self._said)
        place = self._place()
        if kind == "function_call":
            item = {**item, "arguments": said, "status": "completed"}
            events = [_event("response.function_call_arguments.done", **place, name=item["name"], arguments=said)]
        elif kind == "reasoning":
            item = _reasoning(item["id"], said, status="completed")
            events = [_event("response.reasoning_text.done", **place, text=said)]
            events.append(_event("response.content_part.done", **place, part=item["content"][0]))
        else:
            item = _message(item["id"], _text(said, self._logprobs or None))
            events = [_event("response.output_text.done", **place, text=said, logprobs=[])]
            events.append(_event("response.content_part.done", **place, part=item["content"][0]))
        events.append(_event("response.output_item.done", output_index=len(self.done), item=item))
        self.done.append(item)
        self._kind = self._call = None
        return events

    def _opened(self, kind: str, call: JsonObject | None) -> list[Event]:
        index = None if call is None else call["index"]
        if (kind, index) == (self._kind, self._call):
            return []
        events = self.close()
        self._kind, self._call, self._said, self._logprobs = kind, index, [], []
        number = len(self.done)
        if call is not None:
            self._item = _call(f"fc_{self.id}_{index}", call["id"], call["function"]["name"])
            return [*events, _event("response.output_item.added", output_index=number, item={**self._item})]
        part: JsonObject = {"text": "", "type": "reasoning_text"}
        if kind == "reasoning":
            self._item = {**_reasoning(f"rs_{self.id}_{number}", "", status="in_progress"), "content": None}
        else:
            part = _text("", [])
            self._item = {**_message(f"msg_{self.id}_{number}", {}), "content": [], "status": "in_progress"}
        events.append(_event("response.output_item.added", output_index=number, item={**self._item}))
        return [*events, _event("response.content_part.added", **self._place(), part=part)]

    def _grow(self, name: str, piece: str, **more: Any) -> list[Event]:
        self._said.append(piece)
        return [_event(name, **self._place(), delta=piece, **more)]

    def _place(self) -> JsonObject:
        place: JsonObject = {"item_id": self._item["id"], "output_index": len(self.done)}
        return place if self._kind == "function_call" else {**place, "content_index": 0}


def _event(name: str, /, **fields: Any) -> Event:
    return {**fields, "sequence_number": -1, "type": name}


def _reasoning(item_id: str, text: str, *, status: str | None) -> JsonObject:
    parts = [{"text": text, "type": "reasoning_text"}]
    return {"id": item_id, "summary": [], "type": "reasoning", "content": parts, "status": status}


def _message(item_id: str, part: JsonObject) -> JsonObject:
    return {"id": item_id, "content": [part], "role": "assistant", "status": "completed", "type": "message"}


def _text(text: str, logprobs: list[JsonObject] | None) -> JsonObject:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}


def _call(item_id: str, call_id: str, name: str) -> JsonObject:
    return {
        "arguments": "",
        "call_id": call_id,
        "name": name,
        "type": "function_call",
        "id": item_id,
        "namespace": None,
        "status": "completed",
    }


def _usage(usage: JsonObject) -> JsonObject:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"]},
        "total_tokens": usage["total_tokens"],
    }
