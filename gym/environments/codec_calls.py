"""Checked calls of a codec, which is the environment's code: its exceptions and results are validated here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gym.environments.codecs import Act, Codec
from gym.errors import EnvironmentFailed, RolloutError, Stage, text_of
from gym.jsontypes import JsonObject
from gym.plain.values import NotPlain, shown


class CodecCalls:
    """A codec whose faults become failures of the environment, and whose items JSON can hold."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.tools = codec.tools

    def acts(self, items: Sequence[JsonObject]) -> list[Act]:
        """Return the actions of an answer. Raises EnvironmentFailed."""
        found: list[Act] = self._called("acts", lambda: list(self._codec.acts(items)))
        return found

    def show(self, observation: Any, act: Act | None) -> list[JsonObject]:
        """Return items for an observation. Raises EnvironmentFailed."""
        return self._items("show", lambda: self._codec.show(observation, act))

    def refuse(self, fault: str, act: Act) -> list[JsonObject]:
        """Return items that explain why an action was refused. Raises EnvironmentFailed."""
        return self._items("refuse", lambda: self._codec.refuse(fault, act))

    def _items(self, what: str, call: Callable[[], Any]) -> list[JsonObject]:
        items = self._called(what, call)
        try:
            found: list[JsonObject] = shown(items, "its items")
        except NotPlain as error:
            raise _failed(f"{type(self._codec).__name__}.{what}: {error}") from error
        return found

    def _called(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RolloutError:
            raise
        except (Exception, SystemExit) as error:
            text = f"{type(self._codec).__name__}.{what}: {text_of(error)}"
            raise _failed(text) from error


def _failed(message: str) -> EnvironmentFailed:
    failed = EnvironmentFailed(f"its codec failed, {message}")
    failed.stage = Stage.TOOL
    return failed
