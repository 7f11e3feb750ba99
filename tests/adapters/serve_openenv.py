"""Serve an environment that repeats what it is told, with the installed openenv-core: PORT, most sessions."""

import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Say(Action):
    """What to say."""

    message: str


class Heard(Observation):
    """What came back."""

    echoed_message: str = ""


class Echo(Environment):
    """Repeats; over after three messages, or told `stop`."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state = State()

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Heard:
        """Begin."""
        self._state = State(episode_id=episode_id or f"seed-{seed}", step_count=0)
        return Heard(echoed_message=f"seed {seed}")

    def step(self, action: Say, timeout_s: float | None = None, **_: Any) -> Heard:
        """Repeat."""
        if action.message == "break":
            raise RuntimeError("the echo broke")
        self._state.step_count += 1
        done = action.message == "stop" or self._state.step_count == 3
        return Heard(echoed_message=action.message, reward=len(action.message) / 10, done=done)

    @property
    def state(self) -> State:
        """Where it stands."""
        return self._state


if __name__ == "__main__":
    app = create_fastapi_app(Echo, Say, Heard, max_concurrent_envs=int(sys.argv[2]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
