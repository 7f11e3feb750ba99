"""Ends of attempts that cannot be recorded as they are, on a real Redis: each is one failed result, or runs again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from gym.batch import BatchSpec
from gym.config import Settings
from gym.episode import EpisodeResult, RolloutTiming
from gym.errors import EnvironmentFailed
from gym.judges.base import Ask, Question
from gym.limits import Limits
from gym.results.blobs import BlobStore
from gym.reward import Reward
from gym.rollout import StopReason
from gym.state.ledger.batches import Batches
from gym.state.ledger.breakers import Breakers
from gym.state.ledger.judging import Judging
from gym.state.ledger.results import ResultLog, View
from gym.state.ledger.rollouts import Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import Store
from gym.task import RowHeader
from gym.trajectory import Trajectory
from workers.process import storing
from workers.process.committer import Committer
from workers.rollouts.breaker_reports import BreakerReports
from workers.rollouts.recording import Recorder
from workers.rollouts.runner import RunningRollout, start

pytestmark = pytest.mark.anyio


class Odd(float):
    """A number of a type that JSON does not know, like numpy's."""


class Recording:
    """A batch of one row, and the recorder of its rollouts."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self.store = store
        self.draining = False
        self.rollouts = Rollouts(store)
        self.committer = Committer(store)
        self.service = asyncio.get_running_loop().create_task(self.committer.run())
        self.running: list[RunningRollout] = []
        self.recorder = Recorder(
            worker="w",
            rollouts=self.rollouts,
            judging=Judging(store),
            committer=self.committer,
            breakers=BreakerReports(
                Breakers(store, Settings().breakers), self.rollouts, self.committer, on_release=lambda _: None
            ),
            blobs=blobs,
            running=lambda: self.running,
            draining=lambda: self.draining,
        )

    async def begin(self, samples: int = 1, *, max_attempts: int = 1) -> list[RunningRollout]:
        staging = Staging(self.store, "b")
        header = RowHeader(task_id=None, environment="e", num_samples=samples)
        await staging.add([StagedRow(header=header, raw=b"{}", digest="")])
        new = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p")
        await staging.publish(create=new, seal=True)
        taken = await self.rollouts.take("b", samples)
        claims = await self.rollouts.claim("b", "w", [(one.member, one.attempt) for one in taken])
        spec = BatchSpec(run="r", policy="p", limits=Limits(max_attempts=max_attempts))
        self.running = [start(claim, spec) for claim in claims]
        return self.running

    async def ledger(self) -> dict[str, int]:
        ledger = (await Batches(self.store).status("b")).ledger
        assert ledger.balanced
        return {state: number for state, number in ledger.as_dict().items() if number and state != "submitted"}

    async def results(self, view: View = View.LIGHT) -> list[dict[str, Any]]:
        page = await ResultLog(self.store, BlobStore(None, inline_bytes=0)).page("b", after=None, limit=10, view=view)
        return [orjson.loads(record) for record in page.records]


@pytest.fixture
async def recording(store: Store, tmp_path: Path) -> AsyncIterator[Recording]:
    (tmp_path / "blobs").write_text("a file, where a folder should be")
    recording = Recording(store, BlobStore(tmp_path / "blobs", inline_bytes=1000))
    yield recording
    recording.service.cancel()


def finished(
    *,
    reward: Reward | None = None,
    items: list[Any] | None = None,
    ask: Ask | None = None,
    error: Any = None,
) -> EpisodeResult:
    trajectory = Trajectory(params={"input": "Hello"})
    trajectory.items = items or []
    return EpisodeResult(
        stop_reason=StopReason.COMPLETED if error is None else StopReason.ERROR,
        reward=reward,
        error=error,
        ask=ask,
        trajectory=trajectory,
        timing=RolloutTiming(queued_s=0.0),
    )


def odd_reward(value: object, **components: object) -> Reward:
    reward = Reward(1.0)
    object.__setattr__(reward, "value", value)
    object.__setattr__(reward, "components", components)
    return reward


def odd_ask(*, answer: str = "a", facts: Any = None) -> Ask:
    """Return an ask with values that its constructor would refuse."""
    question = Question(judge="j", answer="a")
    object.__setattr__(question, "answer", answer)
    ask = Ask((question,))
    object.__setattr__(ask, "questions", (question,))
    object.__setattr__(ask, "facts", facts or {})
    return ask


def nested() -> list[Any]:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value


class Raises(dict[str, Any]):
    """A value that raises when it is looked at."""

    def __iter__(self) -> Any:
        raise MemoryError

    items = values = keys = __iter__


ODD_ENDS = {
    "a number of another library as the reward": (
        finished(reward=odd_reward(Odd(0.5))), "verifier_error", "reward is ", "Odd",
    ),
    "a number of numpy as the reward": (
        finished(reward=odd_reward(np.float64(0.5))), "verifier_error", "reward is ", "numpy.float64",
    ),
    "an object among the components": (
        finished(reward=odd_reward(1.0, length=object())), "verifier_error", "reward_components.length", "object",
    ),
    "an integer beyond 64 bits": (
        finished(reward=odd_reward(1.0, size=2**70)), "verifier_error", "reward_components.size", "64 bits",
    ),
    "an object among an ask's facts": (
        finished(ask=odd_ask(facts={"seen": {1, 2}})),
        "verifier_error", "ask.facts.seen", "set",
    ),
    "half a surrogate pair in an ask": (
        finished(ask=odd_ask(answer="\ud83c")),
        "verifier_error", "ask.questions[0].answer", "surrogate",
    ),
    "an object in the conversation": (
        finished(reward=Reward(1.0), items=[{"type": "message", "content": object()}]),
        "internal", "trajectory.items[0].content", "object",
    ),
    "half a surrogate pair in the conversation": (
        finished(reward=Reward(1.0), items=[{"type": "message", "content": "\ud83c"}]),
        "internal", "trajectory.items[0].content", "surrogate",
    ),
    "a conversation that is nested too deeply": (
        finished(reward=Reward(1.0), items=nested()), "internal", "trajectory.items", "too deeply",
    ),
    "a value that raises when it is looked at": (
        finished(reward=Reward(1.0), items=[Raises()]), "internal", "MemoryError", "could not be recorded",
    ),
    "a sum that is no number": (
        finished(reward=odd_reward(float("nan"))), "internal", "is no number", "could not be recorded",
    ),
    "an error whose text is not UTF-8": (
        finished(error=EnvironmentFailed("lone \ud83c")), "environment_error", "lone ?", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_ENDS)
async def test_an_end_that_cannot_be_stored_is_one_failed_result_that_names_the_value(
    recording: Recording, name: str
) -> None:
    odd, kind, path, what = ODD_ENDS[name]
    first, second = await recording.begin(2)
    async with asyncio.timeout(10):
        await asyncio.gather(
            recording.recorder.record(first, odd),
            recording.recorder.record(second, finished(reward=Reward(1.0))),
        )
    assert await recording.ledger() == {"failed": 1, "succeeded": 1}
    [result] = [result for result in await recording.results() if result["outcome"] == "failed"]
    assert result["rollout_id"] == str(first.rollout)
    assert (result["error"]["kind"], result["reward"]) == (kind, None)
    assert path in result["error"]["message"]
    assert what in result["error"]["message"]


async def test_a_disk_that_refuses_is_an_infrastructure_fault_until_no_attempt_is_left(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "BROKEN_S", 0.2)
    [running] = await recording.begin(max_attempts=2)
    large = finished(reward=Reward(1.0), items=[{"type": "message", "content": "x" * 5000}])
    await recording.recorder.record(running, large)
    assert await recording.ledger() == {"queued": 1}
    async with asyncio.timeout(10):
        while not (again := await recording.rollouts.take("b", 1)):  # noqa: ASYNC110  Redis has no event for it
            await asyncio.sleep(0.02)
    [taken] = again
    assert taken.attempt == 2
    [claim] = await recording.rollouts.claim("b", "w", [(taken.member, taken.attempt)])
    await recording.recorder.record(start(claim, running.spec), large)
    assert await recording.ledger() == {"failed": 1}
    [result] = await recording.results()
    assert (result["error"]["kind"], result["error"]["retryable"]) == ("internal", True)
    assert "could not be stored" in result["error"]["message"]
    assert [attempt["attempt"] for attempt in result["error"]["attempts"]] == [1, 2]


async def test_a_disk_that_works_again_in_time_costs_no_attempt(recording: Recording, tmp_path: Path) -> None:
    [running] = await recording.begin()
    large = finished(reward=Reward(1.0), items=[{"type": "message", "content": "x" * 5000}])
    recorded = asyncio.get_running_loop().create_task(recording.recorder.record(running, large))
    await asyncio.sleep(0.3)
    assert await recording.ledger() == {"running": 1}
    (tmp_path / "blobs").unlink()
    async with asyncio.timeout(5):
        await recorded
    assert await recording.ledger() == {"succeeded": 1}


async def test_a_drain_hands_back_what_waits_for_the_disk_and_uses_no_attempt_up(recording: Recording) -> None:
    [running] = await recording.begin()
    large = finished(reward=Reward(1.0), items=[{"type": "message", "content": "x" * 5000}])
    recorded = asyncio.get_running_loop().create_task(recording.recorder.record(running, large))
    await asyncio.sleep(0.3)
    recording.draining = True
    async with asyncio.timeout(3):
        await recorded
    [taken] = await recording.rollouts.take("b", 1)
    assert taken.attempt == 1
