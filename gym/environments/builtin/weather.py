"""The smallest environment with a tool: the weather in a city.

The rows of NeMo Gym's `example_single_tool_call` run as they are; a row needs no field beside the prompt.
"""

from __future__ import annotations

import random
import re
from typing import Annotated, TypedDict

from pydantic import Field

from gym.environments.base import Environment, Row, tool
from gym.jsontypes import JsonObject
from gym.reward import Reward
from gym.trajectory import Trajectory

CITIES = (
    *("San Francisco", "Zürich", "Nairobi", "Osaka", "Lima", "Reykjavik", "Cairo", "Toronto", "Hanoi", "Bergen"),
    *("Dakar", "Oslo", "Quito", "Perth", "Riga", "Seoul", "Accra", "Boston", "Turin", "Tbilisi"),
)
QUESTIONS = (
    "What is the weather like in {city}?",
    "I am going out in {city} tonight. Do I need a coat?",
    "Is it warm in {city} right now?",
    "Pack my bag for {city}: what is it like there today?",
)
_COLD = re.compile(r"\bcold\b", re.IGNORECASE)


class Report(TypedDict):
    """Output of the tool."""

    city: str
    weather_description: str


class Weather(Environment[Row]):
    """Ask a tool for the weather in a city and say what it answered.

    Reward 1.0 when the tool was called and the last message names a city that it was asked for and says that it is
    cold, else 0.0.
    """

    name = "weather"

    @tool
    def get_weather(self, city: Annotated[str, Field(description="The city to look up.")]) -> Report:
        """Get the weather in a city."""
        return {"city": city, "weather_description": f"The weather in {city} is cold."}

    def verify(self, trajectory: Trajectory) -> Reward:
        """Check for a requested city, and for the word cold."""
        asked = [
            str(call.arguments["city"]).strip().casefold()
            for call in trajectory.tool_calls
            if call.name == "get_weather" and not call.failed and call.arguments
        ]
        text = trajectory.final_text.casefold()
        named = any(city and city in text for city in asked)
        cold = _COLD.search(text) is not None
        return Reward(
            1.0 if named and cold else 0.0,
            {"called": float(bool(asked)), "named_city": float(named), "said_cold": float(cold)},
        )

    @classmethod
    def example_row(cls) -> JsonObject:
        """Return one question about one city."""
        return cls._row(QUESTIONS[0], CITIES[0])

    @classmethod
    def demo_rows(cls, count: int, seed: int) -> list[JsonObject]:
        """Return questions about cities of the world."""
        rng = random.Random(seed)
        return [cls._row(rng.choice(QUESTIONS), rng.choice(CITIES)) for _ in range(count)]

    @classmethod
    def _row(cls, question: str, city: str) -> JsonObject:
        prompt = [
            {"role": "developer", "content": "You are a helpful assistant. Use the tools that you have."},
            {"role": "user", "content": question.format(city=city)},
        ]
        return {"responses_create_params": {"input": prompt}, "environment": cls.name}
