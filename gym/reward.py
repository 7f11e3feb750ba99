"""The reward for training, one float, and its components."""

from dataclasses import dataclass, field

from gym.plain.values import NotPlain, number, text

PASS_REWARD = 1.0  # minimum reward of a passed rollout


@dataclass(frozen=True, slots=True)
class Reward:
    """A finite reward and its named components; components are for people, training reads `value`.

    Numbers and booleans of any library become floats. Raises NotPlain for anything but a finite number.
    """

    value: float
    components: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", number(self.value, "the reward"))
        if not self.components:
            return
        if not isinstance(self.components, dict):
            raise NotPlain(f"reward_components is of type {type(self.components).__name__}; expected a dict")
        components = {
            text(name, "a name in reward_components"): number(value, f"reward_components.{name}")
            for name, value in self.components.items()
        }
        object.__setattr__(self, "components", components)

    @staticmethod
    def of(result: "Reward | float | bool") -> "Reward":
        """Return the reward for a verifier's return value: itself, a number, or a bool as 1.0 and 0.0."""
        return result if isinstance(result, Reward) else Reward(result)
