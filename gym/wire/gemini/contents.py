"""Gemini's contents as chat messages.

Contents of the model that follow each other are one turn: its client keeps each piece of a streamed answer as a content
of its own. Calls and their results may come without ids; they are paired by name and order.
"""

from __future__ import annotations

import json

from gym.jsontypes import JsonObject
from gym.wire.checks import as_list, as_name, as_object, as_text, only, words
from gym.wire.errors import WireError
from gym.wire.gemini.schemas import fields_of
from gym.wire.history import arguments_of, in_order, with_call_ids

# Signatures prove to Google's servers that they wrote a part; the rest describes media or is the client's own.
_NO_EFFECT = words("thoughtSignature partMetadata mediaResolution videoMetadata")
_AUDIO = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mp3": "mp3", "audio/mpeg": "mp3"}


def to_chat_messages(contents: object, system: object) -> list[JsonObject]:
    """Return the messages of `contents` after the system instruction. Raises WireError."""
    messages: list[JsonObject] = []
    if system is not None and (text := _system(system)):
        messages.append({"role": "system", "content": text})
    given = [contents] if isinstance(contents, dict) else as_list(contents, "contents")
    turn: JsonObject | None = None
    for number, value in enumerate(given):
        field = f"contents.{number}"
        content = fields_of(value, field)
        only(content, ("role", "parts"), field)
        parts = [
            (fields_of(part, f"{field}.parts.{n}"), f"{field}.parts.{n}")
            for n, part in enumerate(as_list(content.get("parts", []), f"{field}.parts"))
        ]
        match content.get("role", "user"):
            case "model":
                if turn is None:
                    turn = {"role": "assistant", "content": ""}
                    messages.append(turn)
                _add_said(turn, parts)
            case "user" | "function" | "tool":
                turn = None
                messages += _user(parts)
            case other:
                raise WireError(f"{field}.role", f"{other!r} is not one of user, model")
    if not given:
        raise WireError("contents", "is empty")
    for message in messages:
        if message.get("tool_calls") and not message["content"]:
            message["content"] = None
    return in_order(with_call_ids(messages))


def _system(value: object) -> str:
    if isinstance(value, str):
        return value
    content = fields_of(value, "systemInstruction")
    only(content, ("role", "parts"), "systemInstruction")
    texts = []
    for number, given in enumerate(as_list(content.get("parts", []), "systemInstruction.parts")):
        field = f"systemInstruction.parts.{number}"
        part = fields_of(given, field)
        only(part, _NO_EFFECT | {"text"}, field)
        texts.append(as_text(part.get("text"), f"{field}.text"))
    return "\n\n".join(texts)


def _add_said(turn: JsonObject, parts: list[tuple[JsonObject, str]]) -> None:
    """Add parts that the model wrote to its turn."""
    for part, field in parts:
        if "functionCall" in part:
            only(part, _NO_EFFECT | {"functionCall", "thought"}, field)
            turn.setdefault("tool_calls", []).append(_call(part["functionCall"], f"{field}.functionCall"))
        elif "text" in part or part.keys() <= _NO_EFFECT | {"thought"}:
            only(part, _NO_EFFECT | {"text", "thought"}, field)
            text = as_text(part.get("text", ""), f"{field}.text")
            if part.get("thought"):
                turn["reasoning"] = turn["reasoning_content"] = turn.get("reasoning", "") + text
            else:
                turn["content"] += text
        else:
            _refuse(part, field)


def _call(value: object, field: str) -> JsonObject:
    call = fields_of(value, field)
    only(call, ("id", "name", "args"), field)
    made: JsonObject = {"type": "function"}
    if call.get("id"):
        made["id"] = as_text(call["id"], f"{field}.id")
    arguments = arguments_of(as_object(call.get("args", {}), f"{field}.args"))
    return {**made, "function": {"name": as_name(call.get("name"), f"{field}.name"), "arguments": arguments}}


def _user(parts: list[tuple[JsonObject, str]]) -> list[JsonObject]:
    """Messages of a user's content; each result of a function becomes a message of its own, in order."""
    messages: list[JsonObject] = []
    said: list[JsonObject] = []
    for part, field in parts:
        if "functionResponse" in part:
            only(part, _NO_EFFECT | {"functionResponse"}, field)
            if said:
                messages.append({"role": "user", "content": _content(said)})
                said = []
            messages.append(_result(part["functionResponse"], f"{field}.functionResponse"))
        else:
            said.append(_part(part, field))
    if said or not messages:
        messages.append({"role": "user", "content": _content(said)})
    return messages


def _result(value: object, field: str) -> JsonObject:
    """The result of a function: a lone `output` or `result` as it is, a lone `error` marked as one, else the object."""
    result = fields_of(value, field)
    only(result, ("id", "name", "response", "parts", "willContinue", "scheduling"), field)
    if result.get("willContinue"):
        raise WireError(f"{field}.willContinue", "a result comes as a whole")
    message: JsonObject = {"role": "tool", "name": as_name(result.get("name"), f"{field}.name")}
    if result.get("id"):
        message["tool_call_id"] = as_text(result["id"], f"{field}.id")
    response = as_object(result.get("response", {}), f"{field}.response")
    text = json.dumps(response, ensure_ascii=False)
    if len(response) == 1:
        (name, inner), *_ = response.items()
        if name in ("output", "result", "error"):
            text = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
            text = f"Error: {text}" if name == "error" else text
    parts = [{"type": "text", "text": text}] if text else []
    for number, part in enumerate(as_list(result.get("parts", []), f"{field}.parts")):
        parts.append(_part(fields_of(part, f"{field}.parts.{number}"), f"{field}.parts.{number}"))
    message["content"] = _content(parts)
    return message


def _content(parts: list[JsonObject]) -> str | list[JsonObject]:
    if all(part["type"] == "text" for part in parts) and len(parts) < 2:
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: JsonObject, field: str) -> JsonObject:
    if "text" in part:
        only(part, _NO_EFFECT | {"text", "thought"}, field)
        return {"type": "text", "text": as_text(part["text"], f"{field}.text")}
    if "inlineData" in part:
        only(part, _NO_EFFECT | {"inlineData"}, field)
        return _inline(part["inlineData"], f"{field}.inlineData")
    if "fileData" in part:
        only(part, _NO_EFFECT | {"fileData"}, field)
        file = fields_of(part["fileData"], f"{field}.fileData")
        uri = as_name(file.get("fileUri"), f"{field}.fileData.fileUri")
        if uri.startswith(("http://", "https://")) and str(file.get("mimeType")).startswith("image/"):
            return {"type": "image_url", "image_url": {"url": uri}}
        raise WireError(f"{field}.fileData", "there is no file store: only images at http addresses, or inlineData")
    _refuse(part, field)
    raise WireError(field, "a part has a text, inlineData, fileData, functionCall or functionResponse")


def _inline(value: object, field: str) -> JsonObject:
    blob = fields_of(value, field)
    only(blob, ("data", "mimeType", "displayName"), field)
    media_type = as_name(blob.get("mimeType"), f"{field}.mimeType")
    # Google's clients write the URL-safe alphabet
    data = as_name(blob.get("data"), f"{field}.data").replace("-", "+").replace("_", "/")
    if media_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}
    if media_type in _AUDIO:
        return {"type": "input_audio", "input_audio": {"data": data, "format": _AUDIO[media_type]}}
    raise WireError(f"{field}.mimeType", f"{media_type!r} cannot be translated: only images, wav and mp3")


def _refuse(part: JsonObject, field: str) -> None:
    for name in part:
        if name not in _NO_EFFECT:
            raise WireError(f"{field}.{name}", "cannot be translated to Chat Completions in this place")
