"""Summary of a batch: figures per environment, and failures by kind. Pure.

pass@k is the unbiased estimate of Chen et al. 2021 (Evaluating Large Language Models Trained on Code, section 2.1):
with n scored samples of a task, c of them right, `1 - C(n-c, k) / C(n, k)`, averaged over the tasks that have at least
k scored samples. A rollout without a reward is unscored, not wrong: it is in no mean and in no n.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING

from gym.rollout import Outcome

if TYPE_CHECKING:
    from gym.client import Result

SUCCESS_AT = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSummary:
    """Row of the summary table. `turns`, `tokens` (in and out) and the times in seconds are of completed rollouts.

    `pass_at` maps k to the estimate, for k = 1 and k = the most samples that a task has.
    """

    environment: str
    rollouts: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    mean_reward: float | None
    pass_at: dict[int, float]
    turns: float | None
    tokens: float | None
    p50_s: float | None
    p95_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureSummary:
    """Failures of one kind in one environment, with the message of the first."""

    environment: str
    kind: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """The fields of a result that the summary needs."""

    environment: str
    group_id: str
    outcome: Outcome
    reward: float | None
    turns: int
    tokens: int
    total_s: float
    kind: str | None
    message: str


class Summary:
    """Collector of results in any order; for a rollout that was run again the last result counts.

    `success_at` is the reward at which a rollout counts as solved.
    """

    def __init__(self, *, success_at: float = SUCCESS_AT) -> None:
        self._success_at = success_at
        self._entries: dict[str, _Entry] = {}

    def add(self, result: Result) -> None:
        error = result.error
        self._entries[result.rollout_id] = _Entry(
            environment=result.environment,
            group_id=result.group_id,
            outcome=result.outcome,
            reward=result.reward,
            turns=result.model_calls,
            tokens=result.usage.input_tokens + result.usage.output_tokens,
            total_s=result.timing.total_s,
            kind=error.kind if error else None,
            message=error.message if error else "",
        )

    def environments(self) -> list[EnvironmentSummary]:
        """Return one summary per environment, by name."""
        by_environment: defaultdict[str, list[_Entry]] = defaultdict(list)
        for entry in self._entries.values():
            by_environment[entry.environment].append(entry)
        return [self._line(name, by_environment[name]) for name in sorted(by_environment)]

    def failures(self) -> list[FailureSummary]:
        """Return one summary per environment and kind, the most frequent first."""
        counts: Counter[tuple[str, str]] = Counter()
        examples: dict[tuple[str, str], str] = {}
        for entry in self._entries.values():
            if entry.kind is not None:
                key = (entry.environment, entry.kind)
                counts[key] += 1
                examples.setdefault(key, entry.message)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [
            FailureSummary(environment=environment, kind=kind, count=count, example=examples[environment, kind])
            for (environment, kind), count in ordered
        ]

    def _line(self, environment: str, entries: list[_Entry]) -> EnvironmentSummary:
        outcomes = Counter(entry.outcome for entry in entries)
        ran = [entry for entry in entries if entry.outcome in (Outcome.SUCCEEDED, Outcome.FAILED)]
        times = [entry.total_s for entry in ran]
        return EnvironmentSummary(
            environment=environment,
            rollouts=len(entries),
            succeeded=outcomes[Outcome.SUCCEEDED],
            failed=outcomes[Outcome.FAILED],
            cancelled=outcomes[Outcome.CANCELLED],
            expired=outcomes[Outcome.EXPIRED],
            mean_reward=_mean([entry.reward for entry in entries if entry.reward is not None]),
            pass_at=self._pass_at(entries),
            turns=_mean([entry.turns for entry in ran]),
            tokens=_mean([entry.tokens for entry in ran]),
            p50_s=percentile(times, 50),
            p95_s=percentile(times, 95),
        )

    def _pass_at(self, entries: Iterable[_Entry]) -> dict[int, float]:
        samples: Counter[str] = Counter()
        scored: Counter[str] = Counter()
        right: Counter[str] = Counter()
        for entry in entries:
            samples[entry.group_id] += 1
            if entry.reward is not None:
                scored[entry.group_id] += 1
                right[entry.group_id] += entry.reward >= self._success_at
        estimates: dict[int, float] = {}
        for k in sorted({1, max(samples.values(), default=1)}):
            mean = _mean([pass_at_k(n, right[group], k) for group, n in scored.items() if n >= k])
            if mean is not None:
                estimates[k] = mean
        return estimates


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the probability that at least one of k samples is right, if c of n samples are right.

    Raises ValueError unless 0 ≤ c ≤ n and 1 ≤ k ≤ n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} right among {n} is not defined")
    return 1.0 - comb(n - c, k) / comb(n, k)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Interpolate linearly between the two nearest ranks, as numpy does by default; None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
