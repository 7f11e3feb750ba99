"""Environments that a worker must be safe from: they crash, hang, or leave programs behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from gym.environments.base import Environment, Row, Step, SteppedEnvironment, tool
from gym.errors import EnvironmentUnavailable
from gym.jsontypes import JsonObject
from gym.judges.base import Ask, Question
from gym.trajectory import Trajectory


class RiskyRow(Row):
    """A row that names the behaviour of `verify`."""

    verdict: str = "score"


class Risky(Environment[RiskyRow]):
    """Plain methods on the event loop of wherever it runs."""

    name = "risky"
    row_model = RiskyRow

    @tool
    def where(self) -> str:
        """The process that this runs in."""
        return str(os.getpid())

    @tool
    def act(self, what: str) -> str:
        """Crash, hang, leave a program behind, or say that something is away."""
        match what:
            case "crash":
                os._exit(7)
            case "hang":
                time.sleep(3600)
            case "leave":
                return str(subprocess.Popen(["sleep", "86397"], start_new_session=True).pid)
            case "away":
                raise EnvironmentUnavailable("the database is away")
            case "descriptors":
                show = "import os; found = sorted(map(int, os.listdir('/proc/self/fd'))); print(found[:-1], flush=True)"
                return subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout
            case "print":
                sys.stdout.write("not a frame\n")
                sys.stdout.flush()
        return what + ":" + ",".join(name for name in os.environ if name.startswith("FARM_"))

    def verify(self, trajectory: Trajectory) -> float | Ask:
        if self.row.verdict == "crash":
            os._exit(7)
        if self.row.verdict == "ask":
            return Ask((Question(judge="strict", answer=trajectory.final_text),), {"seed": self.seed})
        return float(len(trajectory.tool_calls))

    @classmethod
    def example_row(cls) -> JsonObject:
        return {"responses_create_params": {"input": "Hello"}}


class RiskyJudged(Risky):
    """Its verifier may ask a judge."""

    name = "risky_judged"
    judges = ("strict",)


class RiskySteps(SteppedEnvironment[Row]):
    """Counts its steps."""

    name = "risky_steps"

    def reset(self) -> object:
        self.taken = 0
        return ["begin"]

    def step(self, action: object) -> Step:
        if action == "bad":
            raise ValueError("that is no move")
        self.taken += 1
        return Step(observation=os.getpid(), reward=0.5, done=self.taken == 2)

    @classmethod
    def example_row(cls) -> JsonObject:
        return {"responses_create_params": {"input": "Hello"}}
