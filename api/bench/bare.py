"""Baseline: a bare asyncio and aiohttp loop that makes the same model calls and does nothing else.

It runs as a separate program, so that its costs are not mixed with those of the measurement. Each rollout is two chat
completions with a tool call between them, as in the environment `weather`. Prints JSON: CPU and wall seconds of the
loop, without the imports.
"""

from __future__ import annotations

import asyncio
import sys
import time

import aiohttp
import orjson

from gym.environments.builtin.weather import Weather
from gym.jsontypes import JsonObject

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Look up the weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


async def _rollout(session: aiohttp.ClientSession, url: str, messages: list[JsonObject]) -> None:
    while True:
        body = {"model": "mock", "messages": messages, "tools": _TOOLS, "logprobs": True, "return_token_ids": True}
        async with session.post(url, data=orjson.dumps(body), headers={"Content-Type": "application/json"}) as response:
            message = orjson.loads(await response.read())["choices"][0]["message"]
        if not message.get("tool_calls"):
            return
        messages.append(message)
        for call in message["tool_calls"]:
            city = orjson.loads(call["function"]["arguments"])["city"]
            report = {"city": city, "weather_description": f"The weather in {city} is cold."}
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": orjson.dumps(report).decode()})


async def _main(url: str, rollouts: int, concurrency: int) -> None:
    rows = [row["responses_create_params"]["input"] for row in Weather.demo_rows(rollouts, seed=0)]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        pending = iter(rows)

        async def work() -> None:
            for messages in pending:
                await _rollout(session, url, list(messages))

        cpu, wall = time.process_time(), time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        used = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    sys.stdout.write(orjson.dumps(used).decode())


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
