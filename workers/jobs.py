"""The jobs that Celery carries: thin, over `workers.rollouts.runtime`."""

from __future__ import annotations

from celery import Celery

from gym.state.ledger.breakers import BreakerKey
from workers.judging.runtime import JudgingRuntime
from workers.process.app import JUDGE_JOB, RUN_JOB
from workers.process.loop import LoopThread
from workers.rollouts.runtime import Runtime


def register_jobs(app: Celery, loop: LoopThread, runtime: Runtime) -> None:
    """Bind the jobs to this process's loop."""

    @app.task(name=RUN_JOB, ignore_result=True)
    def run_rollouts(
        batch_id: str,
        environment: str,
        rollouts: list[str],
        attempts: list[int],
        probe: str | None = None,
        alone: bool = False,
    ) -> None:
        """A slice of one batch, by the ids of its rollouts; `probe` is the breaker that it is to try."""
        members = [rollout.removeprefix(f"{batch_id}:") for rollout in rollouts]
        wanted = list(zip(members, attempts, strict=True))
        if alone:
            loop.submit(runtime.run_alone(batch_id, wanted)).result()
        else:
            key = BreakerKey.parse(probe) if probe else None
            loop.submit(runtime.run_slice(batch_id, environment, wanted, key)).result()


def register_judge_jobs(app: Celery, loop: LoopThread, runtime: JudgingRuntime) -> None:
    """As `register_jobs`, for a judge worker."""

    @app.task(name=JUDGE_JOB, ignore_result=True)
    def judge_rollouts(
        batch_id: str,
        judge: str,  # noqa: ARG001  # carried to be read in Flower
        rollouts: list[str],
        tokens: list[str],
        probe: str | None = None,
    ) -> None:
        """A slice of one batch that asks one judge, by the ids of its rollouts; `probe` as of `run_rollouts`."""
        members = [rollout.removeprefix(f"{batch_id}:") for rollout in rollouts]
        key = BreakerKey.parse(probe) if probe else None
        loop.submit(runtime.judge_slice(batch_id, list(zip(members, tokens, strict=True)), key)).result()
