"""Essays scored by their similarity to a reference text: the judge is an embedding model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, StringConstraints

from gym.environments.base import Environment, Row
from gym.jsontypes import JsonObject
from gym.judges.base import Ask, Question, Verdict
from gym.reward import Reward
from gym.trajectory import Trajectory

JUDGE = "similarity"
TOPICS = (
    (
        "Describe how rain forms.",
        "Water evaporates, rises, cools and condenses into clouds until drops grow and fall.",
    ),
    ("Explain why the sky is blue.", "Air scatters short wavelengths of sunlight more than long ones, so we see blue."),
    ("Say what tides are.", "The pull of the moon and the sun raises and lowers the sea about twice a day."),
    ("Say how bread rises.", "Yeast ferments sugar in the dough and gives off carbon dioxide, whose bubbles lift it."),
)


class EssayRow(Row):
    """The reference text; a similarity below `floor` counts as nothing."""

    reference: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    floor: Annotated[float, Field(ge=-1, lt=1)] = 0.0


class EssaySimilarity(Environment[EssayRow]):
    """Write a short text; the closer its meaning comes to the reference, the higher the reward.

    Reward is the cosine of the two texts' embeddings, as the judge `similarity` gives it, and 0.0 at or below `floor`.
    """

    name = "essay_similarity"
    row_model = EssayRow
    agent = "single_turn"
    judges = (JUDGE,)

    def verify(self, trajectory: Trajectory) -> Reward | Ask:
        """Score an empty text as 0; else ask the judge."""
        text = trajectory.final_text.strip()
        if not text:
            return Reward(0.0, {"written": 0.0})
        return Ask((Question(judge=JUDGE, answer=text, reference=self.row.reference),), {"floor": self.row.floor})

    @classmethod
    def judged(cls, ask: Ask, verdicts: Sequence[Verdict]) -> Reward:
        """Return the cosine if it is above the floor, else 0."""
        cosine = verdicts[0].score
        return Reward(cosine if cosine > float(ask.facts["floor"]) else 0.0, {"cosine": cosine})

    @classmethod
    def example_row(cls) -> JsonObject:
        """Return a row about rain."""
        return cls._row(*TOPICS[0])

    @classmethod
    def demo_rows(cls, count: int, seed: int) -> list[JsonObject]:
        """Return the topics in turn."""
        rng = random.Random(seed)
        return [cls._row(*rng.choice(TOPICS)) for _ in range(count)]

    @classmethod
    def _row(cls, prompt: str, reference: str) -> JsonObject:
        return {
            "responses_create_params": {"input": [{"role": "user", "content": f"{prompt} Two or three sentences."}]},
            "environment": cls.name,
            "reference": reference,
        }
