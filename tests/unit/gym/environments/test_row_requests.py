"""Which requests of rows are refused when they are submitted."""

from __future__ import annotations

from typing import Any

import pytest

from gym.environments.row_requests import check_request
from gym.errors import Invalid

HOSTED: list[Any] = [{"type": "web_search"}]


def row(**params: Any) -> dict[str, Any]:
    return {"responses_create_params": {"input": "hi", **params}}


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"n": 4}, "n"),
        ({"tools": HOSTED}, "tools.0.type"),
        ({"input": [{"role": "robot", "content": "hi"}]}, "input.0.role"),
        ({"input": []}, "input"),
    ],
)
def test_the_field_is_named(params: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_request(row(**params), agent="tool_loop", row=3, line=4)
    assert refused.value.details == {"row": 3, "line": 4, "field": f"responses_create_params.{field}"}


def test_the_batchs_sampling_counts_unless_the_row_says_otherwise() -> None:
    with pytest.raises(Invalid):
        check_request(row(), agent="tool_loop", sampling={"n": 4}, row=0)
    check_request(row(tools=[]), agent="tool_loop", sampling={"tools": HOSTED, "temperature": 1.0}, row=0)


@pytest.mark.parametrize("params", [{"n": 4}, {"tools": HOSTED}, {"input": []}])
def test_agents_outside_write_their_own_requests(params: dict[str, Any]) -> None:
    check_request(row(**params), agent="my_service", row=0)


def test_a_stepped_environment_makes_the_first_message() -> None:
    check_request(row(input=[]), agent="stepped", row=0)
    with pytest.raises(Invalid):
        check_request(row(input=[], n=2), agent="stepped", row=0)


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "name": "of_the_environment"}])
def test_a_tool_choice_may_mean_the_environments_tools(choice: Any) -> None:
    check_request(row(tool_choice=choice, parallel_tool_calls=False), agent="tool_loop", row=0)
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    check_request(row(tools=[tool], tool_choice=choice), agent="tool_loop", row=0)
