"""Codecs of stepped environments: observations to items for the model, answers to actions. No I/O.

A codec belongs to an environment's class and keeps no state. Three ways to act:

    TextCodec   by the model's text: the last <action> tags of its answer, else the answer's last line
    ToolCodec   by calling one function; each call is a step, and its output is the step's observation
    any other   anything that `Codec` can express, such as answers that are taken whole
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.plain.enclosed import enclosed
from gym.plain.values import utf8
from gym.trajectory import message_text

MOST_ARGUMENT_CHARS = 2**20
_OPENING, _CLOSING = (re.compile(mark, re.IGNORECASE) for mark in ("<action>", "</action>"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """An action in an answer; with `fault` it could not be read, and the fault is shown to the model.

    `call_id` is that of the function call by which the model acts.
    """

    action: Any = None
    call_id: str | None = None
    fault: str | None = None


class Codec(Protocol):
    """Translation between an environment and a model."""

    @property
    def tools(self) -> Sequence[JsonObject]:
        """Return the Responses function tools by which a model acts; none if it acts by text."""

    def acts(self, items: Sequence[JsonObject]) -> list[Act]:
        """Return the actions of an answer, in order; the items exclude calls of the environment's own tools.

        An empty list ends the episode. Unreadable input becomes an `Act` with a fault, never an exception.
        """

    def show(self, observation: Any, act: Act | None) -> list[JsonObject]:
        """Return the Responses input items for an action's result or, without one, for the first observation."""

    def refuse(self, fault: str, act: Act) -> list[JsonObject]:
        """Return items that explain why an action was refused."""


class TextCodec:
    """Codec for actions in the message's text.

    Observations are user messages. Subclasses override `text_of` and `action_of`.
    """

    tools: Sequence[JsonObject] = ()

    def text_of(self, observation: Any) -> str:
        """Return an observation as the model reads it: a text unchanged, anything else as JSON."""
        return as_text(observation)

    def action_of(self, text: str) -> Any:
        """Parse the action in a text. Raises ValueError if it has none."""
        return text

    def acts(self, items: Sequence[JsonObject]) -> list[Act]:
        """Return one action: that of the last <action> tags, else of the last line."""
        said = "\n".join(message_text(item) for item in items if item.get("type") == "message")
        try:
            return [Act(action=self.action_of(_chosen(said)))]
        except ValueError as error:
            return [Act(fault=str(error))]

    def show(self, observation: Any, act: Act | None) -> list[JsonObject]:  # noqa: ARG002  the protocol's
        """Return a user message, or nothing without an observation."""
        return [] if observation is None else [{"role": "user", "content": self.text_of(observation)}]

    def refuse(self, fault: str, act: Act) -> list[JsonObject]:  # noqa: ARG002  the protocol's
        """Return a user message."""
        return [{"role": "user", "content": f"That was no valid action: {fault}"}]


class ToolCodec(TextCodec):
    """Codec for actions by function calls: the arguments are the action, or hold it under `argument` if that is set."""

    def __init__(self, tool: JsonObject, *, argument: str | None = None) -> None:
        self.tools = (tool,)
        self._argument = argument

    def acts(self, items: Sequence[JsonObject]) -> list[Act]:
        """Return one action for each call of the function, in order."""
        return [self._act(item) for item in items if item.get("type") == "function_call"]

    def show(self, observation: Any, act: Act | None) -> list[JsonObject]:
        """Return the call's output; the first observation is a user message."""
        if act is None:
            return super().show(observation, act)
        return [_output(act, self.text_of(observation))]

    def refuse(self, fault: str, act: Act) -> list[JsonObject]:
        """Return the call's output, an object with `error`."""
        return [_output(act, as_text({"error": fault}))]

    def _act(self, call: JsonObject) -> Act:
        call_id = str(call.get("call_id"))
        text = call.get("arguments") or "{}"
        if len(text) > MOST_ARGUMENT_CHARS:
            return Act(call_id=call_id, fault=f"the arguments are longer than {MOST_ARGUMENT_CHARS} characters")
        try:
            arguments = exact_json.loads(text)
        except ValueError as error:
            return Act(call_id=call_id, fault=f"the arguments are not valid JSON: {error}")
        if not isinstance(arguments, dict):
            return Act(call_id=call_id, fault="the arguments must be a JSON object")
        if self._argument is None:
            return Act(action=arguments, call_id=call_id)
        if self._argument not in arguments:
            return Act(call_id=call_id, fault=f"the argument `{self._argument}` is missing")
        return Act(action=arguments[self._argument], call_id=call_id)


def as_text(observation: Any) -> str:
    """Return a text unchanged, anything else as JSON; lone surrogates, which cannot be sent, are replaced."""
    return utf8(observation) if isinstance(observation, str) else exact_json.dumps(observation).decode()


def _chosen(said: str) -> str:
    tagged = enclosed(said, _OPENING, _CLOSING)
    if tagged:
        return tagged[-1].strip()
    lines = said.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _output(act: Act, text: str) -> JsonObject:
    return {"type": "function_call_output", "call_id": act.call_id, "output": text}
