"""The bounds of an episode, and the order in which they are checked.

The order is a specification, since several bounds can be reached by one turn. After each model call the first that
holds ends the episode:

1. `context_overflow`  the server refused the prompt as too long; nothing was generated
2. `content_filter`    the server withheld the rest of the answer
3. `max_tokens`        the answer was cut at its token limit; a tool call in it may be half and is not run
4. `completed`         the model asked for no tool
5. `max_turns`         the calls of this turn are run, their results recorded, and no further model call is made

The clocks (rollout timeout, stall timeout, batch deadline) and cancellation interrupt at any point and come first.

A rollout that fails is tried again by the class of its error, each class with a budget of its own:

- the infrastructure's (`worker_lost`, `model_unreachable`, `judge_error`, `environment_error` where the environment
  raised EnvironmentUnavailable, `agent_error` where an agent cannot be reached): up to `max_attempts` in all, after 1,
  2, 4 … 30 s. A failure while its policy or environment is parked uses no attempt: the rollout is handed back. So are
  the failures that led to parking.
- the data's (`agent_error`, `environment_error`, `tool_error`, `verifier_error`, `bad_row`): `retry_data_errors` more
  times, at once
- `timeout`, `stalled`, `model_rejected` and `internal` are final; `requeue` runs any of them again by hand
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gym.fields.bounded import IsNumber
from gym.rollout import StopReason

Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600, allow_inf_nan=False)]
RequestSeconds = Annotated[Seconds, IsNumber]


class Limits(BaseModel):
    """The bounds of every rollout in a batch; seconds count from the rollout's start, never from submission."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rollout_timeout_s: RequestSeconds = 600.0
    stall_timeout_s: RequestSeconds = 120.0
    judge_timeout_s: Annotated[
        RequestSeconds,
        Field(
            description="for judging, from the first time a judge is asked or is parked; the wait before is not counted"
        ),
    ] = 600.0
    max_turns: Annotated[int, Field(ge=1, le=10_000), IsNumber] = 16
    max_attempts: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="times that a rollout is run where the infrastructure fails it: a worker is lost, the model "
            "server or a judge is unreachable, an environment says that what it needs is away",
        ),
        IsNumber,
    ] = 3
    retry_data_errors: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="times more that a rollout is run where its data fails it: agent_error, environment_error, "
            "tool_error, verifier_error, bad_row",
        ),
        IsNumber,
    ] = 0
    deadline_s: Annotated[RequestSeconds | None, Field(description="for the whole batch, from its creation")] = None


def stop_after_turn(
    *,
    finish: Literal["stop", "max_tokens", "content_filter", "context_overflow"],
    tool_calls: int,
    turns: int,
    max_turns: int,
) -> StopReason | None:
    """Return why the episode ends after this model call, or `None` to continue; `turns` counts this one."""
    if finish == "context_overflow":
        return StopReason.CONTEXT_OVERFLOW
    if finish == "content_filter":
        return StopReason.CONTENT_FILTER
    if finish == "max_tokens":
        return StopReason.MAX_TOKENS
    if tool_calls == 0:
        return StopReason.COMPLETED
    if turns >= max_turns:
        return StopReason.MAX_TURNS
    return None
