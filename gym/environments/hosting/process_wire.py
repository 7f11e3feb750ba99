"""The protocol between a worker and a process of environments: frames of a length and a body.

Pickle goes to the process, which trusts the worker. JSON comes back, so that an environment's code cannot run code in
the worker. Errors come by the name of their class, of the classes known here.
"""

from __future__ import annotations

import pickle
from typing import Any

import orjson

from gym import errors
from gym.environments.base import Step
from gym.environments.tools import BadArguments
from gym.errors import EnvironmentFailed, RolloutError, Stage, text_of
from gym.jsontypes import JsonObject
from gym.judges.base import Ask
from gym.plain import exact_json
from gym.reward import Reward
from gym.trajectory import ToolCall

HEAD_BYTES = 4
MOST_BYTES = 64 * 2**20  # of an answer

_KINDS: dict[str, type[RolloutError]] = {
    name: each for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, RolloutError)
}


def frame(body: bytes) -> bytes:
    """Return a body with its length before it. Raises ValueError if it is too long."""
    if len(body) > MOST_BYTES:
        raise ValueError(f"{len(body)} bytes are more than the {MOST_BYTES} that go between a worker and its process")
    return len(body).to_bytes(HEAD_BYTES, "big") + body


def pack_call(number: int, what: str, args: tuple[Any, ...]) -> bytes:
    """Return a frame to the process."""
    return frame(pickle.dumps((number, what, args), protocol=5))


def pack_result(number: int, value: object) -> bytes:
    """Return a frame from the process for a result that its session has made plain.

    Raises ValueError if it is too long.
    """
    body: JsonObject
    match value:
        case ToolCall():
            body = {"tool": [value.name, value.arguments, value.output, value.failed]}
        case Step():
            body = {"step": [value.observation, value.reward, value.done, value.truncated, value.info]}
        case Reward():
            body = {"reward": [value.value, value.components]}
        case Ask():
            body = {"ask": value.pack().decode()}
        case _:
            body = {"value": value}
    return frame(exact_json.dumps({"id": number, **body}))


def pack_error(number: int, error: BaseException) -> bytes:
    """Return a frame from the process for an error of a call."""
    name = "BadArguments" if isinstance(error, BadArguments) else type(error).__name__
    if name not in _KINDS and name != "BadArguments":
        name, text = EnvironmentFailed.__name__, text_of(error)
    else:
        text = error.message if isinstance(error, RolloutError) else str(error)
    text = EnvironmentFailed(text).message  # cut, and in UTF-8
    stage = error.stage.value if isinstance(error, RolloutError) else None
    return frame(orjson.dumps({"id": number, "error": [name, text, stage]}))


def read_answer(answer: JsonObject) -> object:
    """Return the result of a call. Raises the call's error, and EnvironmentFailed for a malformed answer."""
    if "error" in answer:
        name, text, stage = answer["error"]
        if name == "BadArguments":
            raise BadArguments(str(text))
        failed = _KINDS.get(str(name), EnvironmentFailed)(str(text))
        failed.stage = Stage(stage) if stage is not None else failed.stage
        raise failed
    try:
        return _value(answer)
    except (TypeError, ValueError, KeyError) as error:
        raise EnvironmentFailed(f"its process gave an answer that cannot be read: {error}") from error


def _value(answer: JsonObject) -> object:
    if "tool" in answer:
        name, arguments, output, failed = answer["tool"]
        return ToolCall(str(name), arguments, str(output), failed=bool(failed))
    if "step" in answer:
        seen, reward, done, truncated, info = answer["step"]
        return Step(observation=seen, reward=float(reward), done=bool(done), truncated=bool(truncated), info=dict(info))
    if "reward" in answer:
        value, components = answer["reward"]
        return Reward(value, dict(components))
    if "ask" in answer:
        return Ask.unpack(str(answer["ask"]).encode())
    return answer["value"]
