"""An agent that the farm does not run calls the proxy of a whole farm, and is read as a rollout."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest
from openai import BadRequestError, OpenAI

from api.local.local_farm import LocalFarm

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_an_unmodified_client_is_captured_as_the_rollout_that_its_base_url_names(farm: LocalFarm) -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "Weather in Oslo?"}]
    with OpenAI(base_url=f"{farm.proxy_url}/rollouts/mine-1/v1", api_key="none", timeout=30) as client:
        asked = client.chat.completions.create(model="policy", messages=messages, tools=[TOOL])  # type: ignore[call-overload]  # plain dictionaries
        [call] = asked.choices[0].message.tool_calls
        messages += [
            asked.choices[0].message.model_dump(exclude_none=True),
            {
                "role": "tool",
                "tool_call_id": call.id,
                "content": '{"weather_description": "The weather in Oslo is cold."}',
            },
        ]
        told = client.chat.completions.create(model="policy", messages=messages, tools=[TOOL])  # type: ignore[call-overload]  # plain dictionaries
        with pytest.raises(BadRequestError, match="told to answer 400"):
            client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "[[status 400]]"}])
    assert "cold" in told.choices[0].message.content
    shown = httpx.get(f"{farm.url}/v1/rollouts/mine-1").raise_for_status().json()
    assert shown["state"] == "captured"
    assert [item["type"] for item in shown["response"]["output"]] == [
        "function_call",
        "function_call_output",
        "message",
    ]
    assert [call["reply_items"] for call in shown["calls"]] == [1, 1, 0]
    assert [call["request_ranges"] for call in shown["calls"]] == [[[0, 1]], [[0, 3]], []]
    assert shown["calls"][2]["request"] == [{"role": "user", "content": "[[status 400]]"}]
    [segment] = shown["segments"]
    assert 0 < sum(segment["loss_mask"]) < len(segment["token_ids"])
    assert httpx.get(f"{farm.url}/v1/rollouts/nobody-1").status_code == 404
    told_people = subprocess.run(
        [sys.executable, "-m", "api.cli.main", "show", "mine-1", "--url", farm.url],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert "call of turn 2: model_rejected, answered 400" in told_people
