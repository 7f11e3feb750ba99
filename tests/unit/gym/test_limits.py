from typing import Literal

import pytest

from gym.limits import stop_after_turn
from gym.rollout import StopReason

Finish = Literal["stop", "max_tokens", "content_filter", "context_overflow"]


@pytest.mark.parametrize(
    ("finish", "tool_calls", "turns", "reason"),
    [
        ("context_overflow", 2, 4, StopReason.CONTEXT_OVERFLOW),
        ("content_filter", 2, 4, StopReason.CONTENT_FILTER),
        ("max_tokens", 2, 4, StopReason.MAX_TOKENS),
        ("stop", 0, 4, StopReason.COMPLETED),
        ("stop", 2, 4, StopReason.MAX_TURNS),
        ("stop", 2, 3, None),
    ],
)
def test_limits_are_looked_at_in_the_documented_order(
    finish: Finish, tool_calls: int, turns: int, reason: StopReason | None
) -> None:
    assert stop_after_turn(finish=finish, tool_calls=tool_calls, turns=turns, max_turns=4) is reason
