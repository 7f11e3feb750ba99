"""Gymnasium's spaces as text and back: what a model reads of an observation, and the action that its answer names.

Pure functions of a space, but for `picture`, which asks the environment for its `ansi` rendering. Actions are given as
JSON; of a Discrete space also by name, where its actions have names, in any case and with a full stop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from gymnasium import Env, spaces

from gym.environments.codecs import TextCodec, ToolCodec, as_text
from gym.jsontypes import JsonObject
from gym.plain.values import NotPlain, shown, utf8

Space = spaces.Space[Any]

ACTION_NAMES: Mapping[str, tuple[str, ...]] = {
    "Blackjack": ("stick", "hit"),
    "CartPole": ("left", "right"),
    "CliffWalking": ("up", "right", "down", "left"),
    "FrozenLake": ("left", "down", "right", "up"),
    "MountainCar": ("left", "stay", "right"),
    "Taxi": ("south", "north", "east", "west", "pickup", "dropoff"),
}
_COLOUR_END = "\x1b[0m"
_COLOURED = re.compile(r"\x1b\[[\d;]*m(.*?)\x1b\[0m", re.DOTALL)
REPR_CHARS = 1000


def family(env_id: str) -> str:
    """An id without namespace and version: `FrozenLake` of `FrozenLake-v1`."""
    return re.sub(r"-v\d+$", "", env_id.rpartition("/")[2].rpartition(":")[2])


def read_action(space: Space, names: Sequence[str], given: object) -> Any:
    """The action that JSON or a text stands for. ValueError says what would have been one."""
    value = given
    if isinstance(given, str) and not isinstance(space, spaces.Text):
        value = _named(space, names, given)
        if value is None:
            try:
                value = orjson.loads(given)
            except orjson.JSONDecodeError:
                raise ValueError(f"{given[:80]!r} is none; {actions_said(space, names)}") from None
    try:
        action = _from_json(space, value)
        fits = action is not None and space.contains(action)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
        fits = False
    if not fits:
        raise ValueError(f"{str(given)[:80]!r} is none; {actions_said(space, names)}")
    return action


def actions_said(space: Space, names: Sequence[str]) -> str:
    """What an action looks like, for whoever must give one."""
    if names:
        return f"an action is one of {', '.join(names)}"
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return f"an action is a whole number from {first} to {first + int(space.n) - 1}"
    if isinstance(space, spaces.Text):
        return f"an action is a text of {space.min_length} to {space.max_length} characters"
    return f"an action is JSON for {space}"


def as_json(space: Space, observation: Any) -> Any:
    """An observation as JSON can hold it."""
    if isinstance(space, spaces.Tuple):
        return [as_json(inner, each) for inner, each in zip(space.spaces, observation, strict=True)]
    if isinstance(space, spaces.Dict):
        return {str(name): as_json(inner, observation[name]) for name, inner in space.spaces.items()}
    return shown(observation, "the observation")


def told(info: Any) -> Any:
    """What an environment says beside an observation; values that JSON cannot hold are their `repr`, cut short."""
    try:
        return shown(info, "info")
    except NotPlain:
        pass
    if not isinstance(info, dict):
        return {"info": repr(info)[:REPR_CHARS]}
    found: JsonObject = {}
    for name, value in info.items():
        try:
            found[utf8(str(name))] = shown(value, "info")
        except NotPlain:
            found[utf8(str(name))] = utf8(repr(value)[:REPR_CHARS])
    return found


def picture(env: Env[Any, Any]) -> str:
    """The `ansi` rendering without colours: what they mark stands in brackets."""
    drawn = str(env.render())
    # behind the last end of a colour, each beginning would be searched to the end of the text
    coloured, end, rest = drawn.rpartition(_COLOUR_END)
    return (_COLOURED.sub(r"[\1]", coloured + end) + rest).strip("\n")


def blackjack(env: Env[Any, Any], observation: Any) -> str:  # noqa: ARG001  one of DESCRIBED
    """The hand in words."""
    total, dealer, ace = (int(each) for each in observation)
    return f"Your cards sum up to {total}, {'with a' if ace else 'without a'} usable ace. The dealer shows {dealer}."


def taxi(env: Env[Any, Any], observation: Any) -> str:
    """Taxi, passenger and destination in words, below the map."""
    inner: Any = env.unwrapped
    row, column, passenger, destination = inner.decode(int(observation))
    names = "RGYB"
    where = "in the taxi" if passenger == len(names) else f"at {names[passenger]}"
    at = f"The taxi is in row {row}, column {column}, counted from 0 at the top left."
    return f"{at} The passenger is {where} and wants to go to {names[destination]}."


DESCRIBED: Mapping[str, Callable[[Env[Any, Any], Any], str]] = {"Blackjack": blackjack, "Taxi": taxi}


class GymnasiumText(TextCodec):
    """Observations by their text; actions by what the model says."""

    def __init__(self, space: Space, names: Sequence[str]) -> None:
        self._space, self._names = space, names

    def text_of(self, observation: Any) -> str:
        """The text that the environment put beside the observation."""
        return as_text(observation["text"])

    def action_of(self, text: str) -> Any:
        """A JSON form of the action. ValueError where it is none."""
        return as_json(self._space, read_action(self._space, self._names, text))


class GymnasiumTool(ToolCodec):
    """Observations by their text; actions by calls of the function `act`."""

    def __init__(self, space: Space, names: Sequence[str]) -> None:
        action: JsonObject = {"description": actions_said(space, names)}
        if names:
            action |= {"type": "string", "enum": list(names)}
        elif isinstance(space, spaces.Discrete):
            action["type"] = "integer"
        schema = {
            "type": "object",
            "properties": {"action": action},
            "required": ["action"],
            "additionalProperties": False,
        }
        described = "Act in the environment; the output is what you see then."
        tool = {"type": "function", "name": "act", "description": described, "parameters": schema}
        super().__init__(tool, argument="action")

    def text_of(self, observation: Any) -> str:
        """The text that the environment put beside the observation, or that of a refusal."""
        return as_text(observation["text"])


def _named(space: Space, names: Sequence[str], given: str) -> int | None:
    if not isinstance(space, spaces.Discrete):
        return None
    wanted = given.strip().strip(".!`'\"*").casefold()
    found = [number for number, name in enumerate(names) if name.casefold() == wanted]
    return int(space.start) + found[0] if found else None


def _from_json(space: Space, value: Any) -> Any:
    if isinstance(space, spaces.Discrete):
        return int(value) if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(space, spaces.Text):
        return value if isinstance(value, str) else None
    if isinstance(space, spaces.Tuple):
        return tuple(_from_json(inner, each) for inner, each in zip(space.spaces, _list(value), strict=True))
    if isinstance(space, spaces.Dict):
        if not isinstance(value, dict) or value.keys() != space.spaces.keys():
            raise ValueError("an action of a Dict space has each of its keys and no other")
        return {name: _from_json(inner, value[name]) for name, inner in space.spaces.items()}
    if isinstance(space, spaces.OneOf):
        place, inner_value = _list(value)
        if not _holds(np.dtype(np.int64), place) or not 0 <= place < len(space.spaces):
            raise ValueError("the first item is the number of a space")
        return np.int64(place), _from_json(space.spaces[int(place)], inner_value)
    if isinstance(space, spaces.Sequence):
        each = [_from_json(space.feature_space, one) for one in _list(value)]
        return space.from_jsonable([value])[0] if space.stack else tuple(each)
    if space.dtype is not None:
        _check_numbers(np.dtype(space.dtype), value, booleans=isinstance(space, spaces.MultiBinary))
    return space.from_jsonable([value])[0]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("a list was expected")
    return value


def _check_numbers(dtype: np.dtype[Any], value: Any, *, booleans: bool) -> None:
    """Raise ValueError for a number that the type would round, wrap or make infinite."""
    if isinstance(value, list):
        for each in value:
            _check_numbers(dtype, each, booleans=booleans)
    elif not (_holds(dtype, value) or (booleans and isinstance(value, bool))):
        raise ValueError(f"{str(value)[:80]} is no {dtype}")


def _holds(dtype: np.dtype[Any], value: Any) -> bool:
    if dtype.kind == "b":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if dtype.kind in "iu":
        whole = isinstance(value, int) or value.is_integer()
        return whole and int(np.iinfo(dtype).min) <= value <= int(np.iinfo(dtype).max)
    return dtype.kind == "f" and abs(value) <= float(np.finfo(dtype).max)
