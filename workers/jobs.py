"""The jobs that Celery carries: thin, over `workers.process.slice_runtime`."""

from __future__ import annotations

from celery import Celery

from gym.state.ledger.breakers import BreakerKey
from gym.state.ledger.judging import JudgeClaim
from gym.state.ledger.rollouts import Claim
from workers.judging.runner import JudgedRollout
from workers.process.app import JUDGE_JOB, RUN_JOB
from workers.process.loop import LoopThread
from workers.process.slice_runtime import F, Slice, SliceRuntime
from workers.rollouts.runner import RunningRollout
from workers.rollouts.suspects import SuspectRuns


def register_jobs(
    app: Celery, loop: LoopThread, runtime: SliceRuntime[Claim, RunningRollout, int], suspects: SuspectRuns
) -> None:
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
        """Run a slice of one batch, by the ids of its rollouts; `probe` is the circuit breaker that it probes."""
        job = _slice(batch_id, rollouts, attempts, probe, environment)
        if alone:
            loop.submit(suspects.run(job)).result()
        else:
            loop.submit(runtime.run(job)).result()


def register_judge_jobs(app: Celery, loop: LoopThread, runtime: SliceRuntime[JudgeClaim, JudgedRollout, str]) -> None:
    """Bind a judge worker's jobs to this process's loop."""

    @app.task(name=JUDGE_JOB, ignore_result=True)
    def judge_rollouts(
        batch_id: str,
        judge: str,  # noqa: ARG001  # carried to be read in Flower
        rollouts: list[str],
        tokens: list[str],
        probe: str | None = None,
    ) -> None:
        """Judge a slice of one batch that asks one judge, by the ids of its rollouts; `probe` as of `run_rollouts`."""
        loop.submit(runtime.run(_slice(batch_id, rollouts, tokens, probe))).result()


def _slice(batch_id: str, rollouts: list[str], fences: list[F], probe: str | None, environment: str = "") -> Slice[F]:
    members = [rollout.removeprefix(f"{batch_id}:") for rollout in rollouts]
    return Slice(
        batch_id=batch_id,
        wanted=list(zip(members, fences, strict=True)),
        environment=environment,
        probe=BreakerKey.parse(probe) if probe else None,
    )
