"""The one float for training, and what it was made of."""

import math
from dataclasses import dataclass, field

PASS_REWARD = 1.0  # from which a rollout counts as passed


@dataclass(frozen=True, slots=True)
class Reward:
    """A finite reward and its named components; components are for people, training reads `value`.

    Raises ValueError where a number is not finite.
    """

    value: float
    components: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, number in (("reward", self.value), *self.components.items()):
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise ValueError(f"{name} is {number!r}; a reward is a finite number")

    @staticmethod
    def of(result: "Reward | float | bool") -> "Reward":
        """The reward that a verifier's return value stands for: itself, a number, or a bool as 1.0 and 0.0."""
        if isinstance(result, Reward):
            return result
        if isinstance(result, bool):
            return Reward(1.0 if result else 0.0)
        return Reward(float(result) if isinstance(result, int) else result)
