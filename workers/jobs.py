"""The jobs that Celery carries: thin, over `workers.runtime`."""

from __future__ import annotations

from celery import Celery

from workers.app import RUN_JOB
from workers.loop import LoopThread
from workers.runtime import Runtime


def register_jobs(app: Celery, loop: LoopThread, runtime: Runtime) -> None:
    """Bind the jobs to this process's loop."""

    @app.task(name=RUN_JOB, ignore_result=True)
    def run_rollouts(
        batch_id: str,
        environment: str,  # noqa: ARG001  # carried to be read in Flower
        rollouts: list[str],
        attempts: list[int],
    ) -> None:
        """A slice of one batch, by the ids of its rollouts."""
        members = [rollout.removeprefix(f"{batch_id}:") for rollout in rollouts]
        loop.submit(runtime.run_slice(batch_id, list(zip(members, attempts, strict=True)))).result()
