"""Division of a dispatch into jobs, and the limit on jobs with suspects at a time.

A suspect's job holds a whole worker, so at most half of the workers are held at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from gym.state.ledger.rollouts import Rollouts, TakenRollout
from gym.state.redis.store import Store
from workers.dispatch.publisher import Job


def jobs_of(batch_id: str, taken: Sequence[TakenRollout], *, urgent: bool = False) -> list[Job]:
    """Return one job for the rollouts of each environment, and one for the suspects."""
    slices: dict[str, list[tuple[str, int]]] = {}
    suspects = [rollout for rollout in taken if rollout.suspect]
    for rollout in taken:
        if not rollout.suspect:
            slices.setdefault(rollout.environment, []).append((rollout.member, rollout.attempt))
    jobs = [
        Job(batch_id=batch_id, environment=name, members=members, urgent=urgent) for name, members in slices.items()
    ]
    if suspects:
        names = ",".join(sorted({rollout.environment for rollout in suspects}))
        members = [(rollout.member, rollout.attempt) for rollout in suspects]
        jobs.append(Job(batch_id=batch_id, environment=names, members=members, alone=True))
    return jobs


class SuspectJobs:
    """The jobs with suspects that this dispatcher has sent and that are not over."""

    def __init__(self, store: Store) -> None:
        self._rollouts = Rollouts(store)
        self._out: list[Job] = []

    def sent(self, jobs: Sequence[Job]) -> None:
        """Remember the jobs that hold a worker."""
        self._out += [job for job in jobs if job.alone]

    async def may_go(self, workers: int) -> bool:
        """Return whether another may be sent, given the number of workers."""
        if not self._out:
            return True
        self._out = [job for job in self._out if await self._is_under_way(job)]
        return len(self._out) < max(1, workers // 2)

    async def _is_under_way(self, job: Job) -> bool:
        return await self._rollouts.under_way(job.batch_id, job.members)
