"""Environments of the package verifiers, single-turn, multi-turn and with tools: theirs is the loop, ours the model.

    environments:
      wordle: {adapter: verifiers, id: wordle, python: /opt/verifiers/bin/python, args: {use_think: false}}

verifiers runs in a process and a Python of its own (`gym.environments.adapters.verifiers_bridge`), since its pins clash
with the farm's. Its messages become observations, the policy's answers whole are the actions; its rubric makes the
reward, and each of its functions is a component. A reward function that raises fails the rollout as `verifier_error`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field

from gym.environments.base import Row, Step, SteppedEnvironment
from gym.environments.codecs import Act, TextCodec
from gym.errors import EnvironmentFailed, VerifierFailed
from gym.jsontypes import JsonObject
from gym.limits import Seconds
from gym.plain import exact_json
from gym.processes.child import ChildConversation, JsonLinesChild
from gym.reward import Reward
from gym.trajectory import Trajectory, message_text
from gym.wire.responses.items import to_chat_messages

BRIDGE = Path(__file__).with_name("verifiers_bridge.py")
FARM_FIELDS = frozenset({"responses_create_params", "environment", "agent_ref", "task_id", "num_samples", "agent"})
_NUMBERS = itertools.count()


class VerifiersOptions(BaseModel):
    """Options of an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="as `verifiers.load_environment` takes it")
    args: dict[str, Any] = Field(default_factory=dict, description="for the environment's `load_environment`")
    python: str = Field(description="of the virtual environment that has verifiers and the environment's package")
    path: tuple[str, ...] = Field(default=(), description="folders to import from besides")
    start_s: Seconds = 120.0


class VerifiersRow(Row):
    """Row of the environment's dataset, without `prompt`, which is the task's input."""

    example_id: int = 0


class WholeAnswers(TextCodec):
    """Codec that takes answers whole, calls included, and shows verifiers' next messages unchanged."""

    def __init__(self, tools: Sequence[JsonObject]) -> None:
        self.tools = tuple(tools)

    def acts(self, items: Sequence[JsonObject]) -> list[Act]:
        """Return one action, the answer as a chat message."""
        return [Act(action=answer_message(items))]

    def show(self, observation: Any, act: Act | None) -> list[JsonObject]:  # noqa: ARG002  the protocol's
        """Return messages as input items."""
        return [_item(message) for message in observation or ()]


class Verifiers(SteppedEnvironment[VerifiersRow]):
    """An environment of verifiers."""

    name = "verifiers"
    apart = True
    row_model = VerifiersRow
    options_model = VerifiersOptions
    options: ClassVar[Any]  # VerifiersOptions
    child: ClassVar[JsonLinesChild]
    example: ClassVar[JsonObject]

    @classmethod
    def configured(cls, name: str, options: JsonObject) -> type[Self]:
        """Start the process, to read the tools and a row; it stays for the rollouts."""
        made = super().configured(name, options)
        given: VerifiersOptions = made.options
        command = [
            given.python,
            str(BRIDGE),
            given.id,
            *(orjson.dumps(each).decode() for each in (given.args, given.path)),
        ]
        made.child = JsonLinesChild(command, what=f"verifiers {given.id}")
        ready = made.child.start(within_s=given.start_s)
        made.codec = WholeAnswers([_tool(tool) for tool in ready["tools"]])
        made.example = row_of(ready["rows"][0], name) if ready["rows"] else {}
        made.__doc__ = f"{given.id} of verifiers, {ready['size']} rows."
        return made

    async def setup(self) -> None:
        """Begin the rollout in the process."""
        self.talk: ChildConversation | None = None
        self.result: JsonObject | None = None
        self.unscored: str | None = None
        self.taken = 0
        await asyncio.to_thread(self.child.start, within_s=self.options.start_s)
        self.talk = ChildConversation(self.child, f"r{next(_NUMBERS)}")
        row = self.row.model_dump()
        prompt = to_chat_messages(row["responses_create_params"]["input"])
        given = {field: value for field, value in row.items() if field not in FARM_FIELDS}
        self.first = await self.talk.ask(do="open", input={**given, "prompt": prompt})
        self._note(self.first)
        self.known = len(prompt)

    async def reset(self) -> Any:
        """Return verifiers' first messages beyond the task's input."""
        if self.first.get("tools"):
            self.codec = WholeAnswers([_tool(tool) for tool in self.first["tools"]])
        return (self.first.get("ask") or [])[self.known :] or None

    async def step(self, action: Any) -> Step:
        """Pass on an answer, a text or a chat message; the observation is verifiers' reply."""
        if self.talk is None or self.result is not None:
            raise ValueError("the episode is over")
        self.taken += 1
        answer = await self.talk.ask(do="act", message=_assistant_message(action))
        self._note(answer)
        if self.unscored is not None:
            return Step(observation=None, done=True)
        if (result := answer.get("done")) is None:
            return Step(observation=answer["ask"])
        reward, truncated = result["reward"], result["truncated"]
        return Step(observation=answer.get("shown"), reward=reward, done=True, truncated=truncated)

    async def verify(self, trajectory: Trajectory) -> Reward:
        """Return the rubric's reward; if a limit of the farm ended the episode, for the part so far."""
        if self.result is None and self.unscored is None and self.talk is not None:
            try:
                if len(trajectory.calls) > self.taken and trajectory.calls[-1].reply_items:
                    cut = answer_message(trajectory.items[-trajectory.calls[-1].reply_items :])
                    self._note(await self.talk.ask(do="act", message=cut, cut=True))
                if self.result is None and self.unscored is None:
                    self._note(await self.talk.ask(do="end"))
            except EnvironmentFailed as error:
                raise VerifierFailed(error.message) from error
        if self.unscored is not None:
            raise VerifierFailed(f"a reward function raised {self.unscored}")
        if self.result is None:
            raise VerifierFailed("verifiers goes on after the end of the rollout")
        return Reward(self.result["reward"], dict(self.result["metrics"]))

    def close(self) -> None:
        """End the rollout in the process, which stays."""
        if (talk := getattr(self, "talk", None)) is not None:
            talk.close()

    @classmethod
    def example_row(cls) -> JsonObject:
        """Return the first row of the dataset."""
        return orjson.loads(orjson.dumps(cls.example))  # type: ignore[no-any-return]

    def _note(self, answer: JsonObject) -> None:
        self.result, self.unscored = answer.get("done"), answer.get("unscored")


def row_of(given: JsonObject, environment: str) -> JsonObject:
    """Convert a row of verifiers to a row of the farm."""
    prompt = given["prompt"]
    items = prompt if isinstance(prompt, str) else [_item(message) for message in prompt]
    rest = {name: value for name, value in given.items() if name != "prompt" and name not in FARM_FIELDS}
    return {"responses_create_params": {"input": items}, "environment": environment, **rest}


def answer_message(items: Sequence[JsonObject]) -> JsonObject:
    """Return the items of an answer as one chat message."""
    message: JsonObject = {"role": "assistant"}
    message["content"] = "".join(message_text(item) for item in items if item.get("type") == "message")
    calls = [item for item in items if item.get("type") == "function_call"]
    if calls:
        message["tool_calls"] = [
            {"id": call["call_id"], "name": call["name"], "arguments": call["arguments"]} for call in calls
        ]
    return message


def _assistant_message(action: Any) -> JsonObject:
    if isinstance(action, str):
        return {"role": "assistant", "content": action}
    if isinstance(action, dict):
        return action
    raise ValueError("an action is a text or an assistant message")


def _item(message: JsonObject) -> JsonObject:
    content = message.get("content")
    if message.get("role") == "tool":
        text = content if isinstance(content, str) else exact_json.dumps(content).decode()
        return {"type": "function_call_output", "call_id": message["tool_call_id"], "output": text}
    if isinstance(content, list):
        content = [
            {"type": "input_text", "text": part["text"]} if part.get("type") == "text" else part for part in content
        ]
    return {"role": message["role"], "content": content}


def _tool(tool: JsonObject) -> JsonObject:
    return {
        "type": "function",
        "name": tool["name"],
        "description": tool.get("description") or "",
        "parameters": tool.get("parameters") or {"type": "object", "properties": {}},
        "strict": bool(tool.get("strict")),
    }
