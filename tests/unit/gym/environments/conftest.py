"""What the tests of environments share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gym.environments.base import Environment
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import EnvironmentType, environment_type
from gym.trajectory import ToolCall, Trajectory


@pytest.fixture(scope="session")
def executor() -> Iterator[EnvironmentThreads]:
    with EnvironmentThreads(4) as pool:
        yield pool


@pytest.fixture
def open_session(executor: EnvironmentThreads) -> Callable[..., EnvironmentSession]:
    """Makes a session, by default of the environment's example row."""

    def make(
        environment: type[Environment[Any]] | EnvironmentType, row: dict[str, Any] | None = None, **options: Any
    ) -> EnvironmentSession:
        kind = environment if isinstance(environment, EnvironmentType) else environment_type(environment)
        options = {"seed": 0, "executor": executor, **options}
        return EnvironmentSession(kind, row if row is not None else kind.example_row or {}, **options)

    return make


@pytest.fixture
def episode() -> Callable[..., Trajectory]:
    """Makes a trajectory that ends with a text."""

    def make(text: str = "", *calls: ToolCall) -> Trajectory:
        message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
        return Trajectory(params={}, items=[message], tool_calls=list(calls))

    return make
