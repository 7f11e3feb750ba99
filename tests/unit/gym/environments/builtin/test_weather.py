from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gym.environments.builtin.weather import Weather
from gym.environments.hosting.session import EnvironmentSession

pytestmark = pytest.mark.anyio

NEMO_GYM_ROW = {
    "responses_create_params": {
        "input": [
            {"role": "developer", "content": "You are a helpful personal assistant."},
            {"role": "user", "content": "what's it like in sf?"},
        ],
        "tools": [
            {
                "name": "get_weather",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string", "description": ""}},
                    "required": ["city"],
                    "additionalProperties": False,
                },
                "strict": True,
                "type": "function",
                "description": "",
            }
        ],
    }
}


async def test_a_row_of_nemo_gym_runs_as_it_is(open_session: Callable[..., EnvironmentSession]) -> None:
    session = open_session(Weather, NEMO_GYM_ROW)
    await session.setup()
    call = await session.call_tool("get_weather", '{"city": "San Francisco"}')
    assert json.loads(call.output) == {
        "city": "San Francisco",
        "weather_description": "The weather in San Francisco is cold.",
    }


@pytest.mark.parametrize(
    ("calls", "text", "reward"),
    [
        (['{"city": "Lima"}'], "It is cold in Lima.", 1.0),
        (['{"city": "Lima"}'], "LIMA: Cold!", 1.0),
        (['{"city": "Oslo"}', '{"city": "Lima"}'], "Oslo is cold.", 1.0),
        (['{"city": "Lima"}'], "It is cold there.", 0.0),
        (['{"city": "Lima"}'], "It is warm in Lima.", 0.0),
        (['{"city": "Lima"}'], "In Lima it is colder than usual.", 0.0),
        (['{"town": "Lima"}'], "It is cold in Lima.", 0.0),
        (['{"city": " "}'], "It is cold.", 0.0),
        ([], "It is cold in Lima.", 0.0),
        (['{"city": "Lima"}'], "", 0.0),
    ],
)
async def test_the_tool_must_be_called_and_the_answer_name_the_city_and_the_cold(
    open_session: Callable[..., EnvironmentSession],
    episode: Callable[..., Any],
    calls: list[str],
    text: str,
    reward: float,
) -> None:
    session = open_session(Weather)
    await session.setup()
    made = [await session.call_tool("get_weather", arguments) for arguments in calls]
    assert (await session.verify(episode(text, *made))).value == reward
