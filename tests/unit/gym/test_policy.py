"""The record of a policy: the names it may hold."""

from __future__ import annotations

from gym import policy
from gym.wire import parsers


def test_a_policy_may_name_exactly_the_parsers_that_there_are() -> None:
    assert policy.TOOL_PARSERS == parsers.TOOL_PARSERS
    assert policy.REASONING_PARSERS == parsers.REASONING_PARSERS
