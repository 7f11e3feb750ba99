"""The items of a Responses `input` as chat messages.

One model answer is several items there (reasoning, message, function calls) and one assistant message here, so items
are gathered into a turn until something that the model did not write comes, or a new answer visibly begins: a second
message, or reasoning after a message. Items between an answer's calls and their outputs belong to that answer. Calls
that were answered one by one become one assistant message each.
"""

from __future__ import annotations

from typing import Any

from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.wire.checks import as_list, as_name, as_object, as_text, only, words
from gym.wire.errors import WireError
from gym.wire.history import in_order

ITEM_ROLE = "item"  # of a message that holds an item as it is, as JSON

# Bookkeeping of items and parts that says nothing to a model: ids, status, citations of earlier answers, cache hints,
# and the token fields that NeMo Gym puts on items (tokens are captured at the proxy instead).
_NO_EFFECT = words("""
    id status phase annotations logprobs prompt_cache_breakpoint
    prompt_token_ids generation_token_ids generation_log_probs routed_experts
""")
_MESSAGE = _NO_EFFECT | {"type", "role", "content"}
_ASSISTANT = _MESSAGE | {"refusal", "reasoning", "reasoning_content", "tool_calls"}
_REASONING = _NO_EFFECT | {"type", "summary", "content", "encrypted_content"}
_CALL = _NO_EFFECT | {"type", "call_id", "name", "arguments", "caller"}
_OUTPUT = _NO_EFFECT | {"type", "call_id", "name", "output", "caller"}
_TEXT_TYPES = frozenset({"input_text", "output_text", "text"})


def to_chat_messages(items: str | list[JsonObject]) -> list[JsonObject]:
    """Chat messages for an `input`: a text is one user message. Raises WireError."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    turns = _Turns()
    for number, item in enumerate(as_list(items, "input")):
        turns.add(item, f"input.{number}")
    turns.end()
    return in_order(turns.messages)


def recorded_messages(items: str | list[JsonObject]) -> list[JsonObject]:
    """Return an `input` as it is recorded if the server reads it itself: chat messages, and other items as they are.

    Reasoning that only its maker can read is left out; its answer contains it. Raises WireError.
    """
    if isinstance(items, str):
        return to_chat_messages(items)
    turns = _Turns()
    for number, given in enumerate(as_list(items, "input")):
        field = f"input.{number}"
        item = as_object(given, field)
        if _translates(item):
            turns.add(item, field)
        elif item.get("type") != "reasoning":
            turns.keep(item)
    turns.end()
    return in_order(turns.messages)


def _translates(item: JsonObject) -> bool:
    try:
        to_chat_messages([item])
    except WireError:
        return False
    return True


class _Turns:
    """Gathers items into messages; `_open` is the assistant message that still grows."""

    def __init__(self) -> None:
        self.messages: list[JsonObject] = []
        self._open: JsonObject | None = None

    def add(self, item: object, field: str) -> None:
        item = as_object(item, field)
        match item.get("type"):
            case "message":
                self._message(item, field)
            case None if item.get("role") is not None:
                self._message(item, field)
            case "function_call":
                self._call(item, field)
            case "function_call_output":
                self._output(item, field)
            case "reasoning":
                self._reasoning(item, field)
            case "item_reference":
                raise WireError(f"{field}.type", "nothing is stored to refer to: send the item itself")
            case None:
                raise WireError(f"{field}.type", "an item has a `type`, or a `role` if it is a message")
            case other:
                raise WireError(f"{field}.type", f"items of type {other!r} cannot be translated to Chat Completions")

    def keep(self, item: JsonObject) -> None:
        """An item as it is."""
        self.end()
        self.messages.append({"role": ITEM_ROLE, "content": exact_json.dumps(item).decode()})

    def end(self) -> None:
        """Close the assistant message that still grows."""
        if self._open is not None:
            if "content" not in self._open:
                self._open["content"] = None if "tool_calls" in self._open else ""
            self._open = None

    def _turn(self) -> JsonObject:
        if self._open is None:
            self._open = {"role": "assistant"}
            self.messages.append(self._open)
        return self._open

    def _message(self, item: JsonObject, field: str) -> None:
        role = item.get("role")
        if role == "assistant":
            only(item, _ASSISTANT, field)
            self._assistant(item, field)
        elif role in ("user", "system", "developer"):
            only(item, _MESSAGE, field)
            self.end()
            self.messages.append({"role": role, "content": content(item.get("content"), f"{field}.content")})
        elif role == "tool":
            only(item, _MESSAGE | {"tool_call_id", "name"}, field)
            self._answer(item, item.get("tool_call_id"), f"{field}.tool_call_id", item.get("content"), field)
        else:
            raise WireError(f"{field}.role", f"{role!r} is not one of user, assistant, system, developer, tool")

    def _assistant(self, item: JsonObject, field: str) -> None:
        calls = as_list(item.get("tool_calls") or [], f"{field}.tool_calls")
        reasoning = item.get("reasoning") if item.get("reasoning") is not None else item.get("reasoning_content")
        goes_on = self._open is not None and "tool_calls" in self._open and not calls  # its outputs are still to come
        if self._open is not None and not goes_on and ("content" in self._open or reasoning is not None or calls):
            self.end()
        turn = self._turn()
        if reasoning is not None:
            _reason(turn, as_text(reasoning, f"{field}.reasoning"))
        said = item.get("content")
        if said is not None or item.get("refusal") is not None or not calls:
            content_now = assistant_content(said, item.get("refusal"), f"{field}.content")
            turn["content"] = _joined(turn.get("content"), content_now)
        for number, call in enumerate(calls):
            turn.setdefault("tool_calls", []).append(_chat_call(call, f"{field}.tool_calls.{number}"))

    def _call(self, item: JsonObject, field: str) -> None:
        only(item, _CALL, field)
        _direct(item, field)
        call = {
            "id": as_name(item.get("call_id"), f"{field}.call_id"),
            "type": "function",
            "function": {
                "name": as_name(item.get("name"), f"{field}.name"),
                "arguments": as_text(item.get("arguments"), f"{field}.arguments"),
            },
        }
        self._turn().setdefault("tool_calls", []).append(call)

    def _output(self, item: JsonObject, field: str) -> None:
        only(item, _OUTPUT, field)
        _direct(item, field)
        self._answer(item, item.get("call_id"), f"{field}.call_id", item.get("output"), field)

    def _answer(self, item: JsonObject, call_id: object, id_field: str, said: object, field: str) -> None:
        self.end()
        message: JsonObject = {"role": "tool", "tool_call_id": as_name(call_id, id_field)}
        if item.get("name") is not None:
            message["name"] = as_text(item["name"], f"{field}.name")
        message["content"] = content(said, f"{field}.{'output' if 'output' in item else 'content'}")
        self.messages.append(message)

    def _reasoning(self, item: JsonObject, field: str) -> None:
        only(item, _REASONING, field)
        text = "".join(_texts(item.get("content"), f"{field}.content"))
        text = text or "\n\n".join(_texts(item.get("summary"), f"{field}.summary"))
        if not text:
            if item.get("encrypted_content"):
                raise WireError(f"{field}.encrypted_content", "only its maker can read it; send `content` or `summary`")
            return
        if self._open is not None and "content" in self._open and "tool_calls" not in self._open:
            self.end()
        _reason(self._turn(), text)


def _joined(before: str | list[JsonObject] | None, more: str | list[JsonObject]) -> str | list[JsonObject]:
    """Join the content of an assistant's two messages of one turn."""
    if not before:
        return more
    if isinstance(before, str) and isinstance(more, str):
        return before + more
    return [
        part
        for said in (before, more)
        for part in ([{"type": "text", "text": said}] if isinstance(said, str) else said)
        if part.get("text") != ""
    ]


def _reason(turn: JsonObject, text: str) -> None:
    """Put reasoning on an assistant message under both names: vLLM reads `reasoning` since 0.11, and
    other servers and older chat templates read `reasoning_content`.
    """
    before = turn.get("reasoning")
    turn["reasoning"] = turn["reasoning_content"] = text if before is None else f"{before}\n\n{text}"


def _texts(parts: object, field: str) -> list[str]:
    if parts is None:
        return []
    return [
        as_text(as_object(part, f"{field}.{number}").get("text"), f"{field}.{number}.text")
        for number, part in enumerate(as_list(parts, field))
    ]


def _direct(item: JsonObject, field: str) -> None:
    if (caller := item.get("caller")) is not None and caller != {"type": "direct"}:
        raise WireError(f"{field}.caller", "calls made by programs cannot be translated to Chat Completions")


def _chat_call(value: object, field: str) -> JsonObject:
    call = as_object(value, field)
    only(call, ("id", "type", "function", "index"), field)
    if call.get("type", "function") != "function":
        raise WireError(f"{field}.type", "only calls of functions can be translated")
    function = as_object(call.get("function"), f"{field}.function")
    only(function, ("name", "arguments"), f"{field}.function")
    return {
        "id": as_name(call.get("id"), f"{field}.id"),
        "type": "function",
        "function": {
            "name": as_name(function.get("name"), f"{field}.function.name"),
            "arguments": as_text(function.get("arguments"), f"{field}.function.arguments"),
        },
    }


def assistant_content(value: object, refusal: object, field: str) -> str | list[JsonObject]:
    """Return an assistant's texts as one, or a list of parts if it also refused something."""
    parts: list[JsonObject] = []
    if isinstance(value, str):
        parts = [{"type": "text", "text": value}] if value else []
    elif value is not None or refusal is None:
        for number, part in enumerate(as_list(value, field)):
            converted = _part(part, f"{field}.{number}")
            if converted["type"] not in ("text", "refusal"):
                raise WireError(f"{field}.{number}.type", "an assistant's message has only text and refusals")
            parts.append(converted)
    if refusal is not None:
        parts.append({"type": "refusal", "refusal": as_text(refusal, field)})
    if any(part["type"] == "refusal" for part in parts):
        return parts
    return "".join(part["text"] for part in parts)


def content(value: object, field: str) -> str | list[JsonObject]:
    """Content that the model did not write: a lone text as it is, else a list of chat parts."""
    if isinstance(value, str):
        return value
    parts = [_part(part, f"{field}.{number}") for number, part in enumerate(as_list(value, field))]
    for number, part in enumerate(parts):
        if part["type"] == "refusal":
            raise WireError(f"{field}.{number}.type", "only an assistant refuses")
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts


def _part(value: object, field: str) -> JsonObject:
    part = as_object(value, field)
    name = as_text(part.get("type"), f"{field}.type")
    if name in _TEXT_TYPES:
        only(part, _NO_EFFECT | {"type", "text"}, field)
        return {"type": "text", "text": as_text(part.get("text"), f"{field}.text")}
    if name == "refusal":
        only(part, _NO_EFFECT | {"type", "refusal"}, field)
        return {"type": "refusal", "refusal": as_text(part.get("refusal"), f"{field}.refusal")}
    if name == "input_image":
        if part.get("file_id") is not None:
            raise WireError(f"{field}.file_id", "there is no file store: give `image_url`, a data: URL will do")
        only(part, _NO_EFFECT | {"type", "image_url", "detail", "file_id"}, field)
        image: JsonObject = {"url": as_name(part.get("image_url"), f"{field}.image_url")}
        if part.get("detail") is not None:
            image["detail"] = as_text(part["detail"], f"{field}.detail")
        return {"type": "image_url", "image_url": image}
    if name == "input_video":
        only(part, _NO_EFFECT | {"type", "video_url"}, field)
        return {"type": "video_url", "video_url": {"url": as_name(part.get("video_url"), f"{field}.video_url")}}
    if name in ("image_url", "input_audio", "video_url", "audio_url"):  # as Chat Completions writes them
        only(part, _NO_EFFECT | {"type", name}, field)
        inner: Any = as_object(part.get(name), f"{field}.{name}")
        return {"type": name, name: inner}
    raise WireError(f"{field}.type", f"parts of type {name!r} cannot be translated to Chat Completions")
