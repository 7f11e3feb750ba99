import random

from gym.environments.base import Environment, Row, tool


class CoinRow(Row):
    throws: int


class Coin(Environment[CoinRow]):
    """Throw a coin several times and report the number of heads."""

    name = "coin"
    row_model = CoinRow

    def setup(self):
        self.fell = []

    @tool
    def throw(self) -> str:
        """Throw the coin once and return the side."""
        self.fell.append(random.Random(self.seed + len(self.fell)).choice(["heads", "tails"]))
        return self.fell[-1]

    def verify(self, trajectory):
        return len(self.fell) == self.row.throws and str(self.fell.count("heads")) in trajectory.final_text

    @classmethod
    def example_row(cls):
        return {"responses_create_params": {"input": "Throw the coin 3 times. How many heads?"}, "throws": 3}
