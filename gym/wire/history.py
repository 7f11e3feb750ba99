"""Rules that hold between the messages of a conversation, for all dialects.

Translators turn one block or item after another into chat messages. This module decides the order that Chat Completions
demands, the pairs of calls and outputs, and the arguments that a server can read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from gym.jsontypes import JsonObject
from gym.plain import exact_json

INVALID_JSON = "INVALID_JSON"
"""The key under which arguments that are no JSON object are kept as text; Anthropic's own advice for such calls."""

MOST_DEPTH = 200
"""Levels of an object of arguments; many JSON writers stop at about 250."""


def input_of(arguments: str) -> JsonObject:
    """Return a call's arguments as an object; those that are no JSON object are kept as text under `INVALID_JSON`.

    So are those that an object cannot keep: NaN, Infinity, numbers that overflow, half surrogates, and more than
    `MOST_DEPTH` levels. `arguments_of` turns them back.
    """
    if not arguments.strip():
        return {}
    try:
        value: Any = exact_json.loads(arguments)
    except ValueError:
        value = None
    kept = isinstance(value, dict) and not exact_json.is_deeper(value, MOST_DEPTH)
    return value if kept else {INVALID_JSON: arguments}


def arguments_of(given: JsonObject) -> str:
    """Return the text that an object of arguments was made from; see `input_of`."""
    if given.keys() == {INVALID_JSON} and isinstance(given[INVALID_JSON], str):
        text: str = given[INVALID_JSON]
        return text
    return json.dumps(given, ensure_ascii=False)


def with_call_ids(messages: Sequence[JsonObject]) -> list[JsonObject]:
    """Return the messages with an id on each call and each tool message, for dialects whose clients leave ids out.

    A tool message without an id, or with one that no call has, answers the first unanswered call of its name, in the
    latest turn that has one. One that answers no call keeps an id of its own. Made ids depend on the place alone, so
    the same history has the same ids in each request.
    """
    known = {call["id"] for message in messages for call in message.get("tool_calls") or () if call.get("id")}
    open_calls: list[list[JsonObject]] = []  # turn by turn: calls without an answer
    done: list[JsonObject] = []
    for number, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = [
                {**call, "id": call.get("id") or f"call_{number}_{place}"}
                for place, call in enumerate(message["tool_calls"])
            ]
            open_calls.append(list(calls))
            done.append({**message, "tool_calls": calls})
        elif message.get("role") == "tool":
            call_id = message.get("tool_call_id")
            found = _open_call(open_calls, message, call_id if call_id in known else None)
            done.append({**message, "tool_call_id": found or call_id or f"call_{number}"})
        else:
            done.append(message)
    return done


def _open_call(open_calls: list[list[JsonObject]], message: JsonObject, call_id: object) -> str | None:
    """Take the call that a tool message answers off the open ones, and return its id."""
    for turn in reversed(open_calls):
        for place, call in enumerate(turn):
            if call["id"] == call_id if call_id else call["function"]["name"] == message.get("name"):
                found: str = turn.pop(place)["id"]
                return found
    return None


def in_order(messages: Sequence[JsonObject]) -> list[JsonObject]:
    """Return the messages with each tool message directly after the assistant message whose call it answers.

    Chat Completions demands this order, and chat templates rely on it. Messages between them, such as a user's remark,
    follow the tool messages. An id that several turns use belongs to the latest turn with an unanswered call of that
    id. A tool message that answers no call stays in its place.
    """
    if not any(message.get("role") == "tool" for message in messages):
        return list(messages)
    ordered: list[JsonObject] = []
    answers: dict[int, list[JsonObject]] = {}  # by the assistant message's place in `ordered`
    unanswered: dict[object, list[int]] = {}  # by call id: places of the messages that ask
    for message in messages:
        if message.get("role") == "tool" and (places := unanswered.get(message.get("tool_call_id"))):
            answers.setdefault(places.pop(), []).append(message)
            continue
        for call in message.get("tool_calls") or ():
            unanswered.setdefault(call.get("id"), []).append(len(ordered))
        ordered.append(message)
    return [each for place, message in enumerate(ordered) for each in (message, *answers.get(place, ()))]


def answered_calls(items: Iterable[JsonObject]) -> list[tuple[JsonObject, JsonObject | None]]:
    """Return each `function_call` item with its `function_call_output`, or None, in the order of the calls.

    An output belongs to the latest turn with an unanswered call of its id; within a turn, outputs of one id belong to
    its calls in order.
    """
    calls: list[tuple[JsonObject, JsonObject | None]] = []
    waiting: dict[object, list[list[int]]] = {}  # by call id: places in `calls`, turn by turn
    turn_of: dict[object, int] = {}  # by call id: the turn of its latest call
    turn, calling = 0, False
    for item in items:
        call_id = item.get("call_id")
        if item.get("type") == "function_call":
            turn += not calling
            calling = True
            if turn_of.get(call_id) != turn:
                waiting.setdefault(call_id, []).append([])
                turn_of[call_id] = turn
            waiting[call_id][-1].append(len(calls))
            calls.append((item, None))
        elif item.get("type") == "function_call_output":
            calling = False
            turns = waiting.get(call_id, [])
            while turns and not turns[-1]:
                turns.pop()
            if turns:
                place = turns[-1].pop(0)
                calls[place] = (calls[place][0], item)
        elif item.get("role") not in (None, "assistant"):
            calling = False
    return calls


def arguments_as_objects(body: JsonObject) -> JsonObject | None:
    """Return a chat or Responses request whose earlier calls all have a JSON object as arguments.

    Arguments that a model wrote otherwise are kept as text under `INVALID_JSON`. Return None if all
    arguments are objects, so that the request can be sent as it is.
    """
    name = "messages" if "messages" in body else "input"
    given = body.get(name)
    if not isinstance(given, list):
        return None
    sent = [_with_objects(each) if isinstance(each, dict) else each for each in given]
    changed = any(new is not old for new, old in zip(sent, given, strict=True))
    return {**body, name: sent} if changed else None


def _with_objects(message: JsonObject) -> JsonObject:
    """A message or an item; the same object where its arguments can be read."""
    if message.get("type") == "function_call":
        arguments = _object_text(message.get("arguments"))
        return message if arguments is None else {**message, "arguments": arguments}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    changed = [_call_with_object(call) if isinstance(call, dict) else call for call in calls]
    if all(new is old for new, old in zip(changed, calls, strict=True)):
        return message
    return {**message, "tool_calls": changed}


def _call_with_object(call: JsonObject) -> JsonObject:
    function = call.get("function")
    if not isinstance(function, dict) or (arguments := _object_text(function.get("arguments"))) is None:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _object_text(arguments: object) -> str | None:
    """The arguments wrapped, or None where they are an object already."""
    if not isinstance(arguments, str):
        return None
    try:
        if isinstance(json.loads(arguments), dict):
            return None
    except (ValueError, RecursionError):
        pass
    return json.dumps({INVALID_JSON: arguments}, ensure_ascii=False) if arguments.strip() else "{}"
