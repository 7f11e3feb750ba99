"""Pure decisions of the pool: fit into the cluster, number of replicas, and giving up.

Sources: a node of Ray gives a whole request or nothing of it; GPU requests above 1 are whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workers.judge_pool.plan import Deployment

EPSILON = 1e-6  # Ray counts in ten-thousandths


def lacking(deployments: Sequence[Deployment], nodes: Sequence[Mapping[str, float]]) -> list[str]:
    """Return why these nodes, if all were free, could not hold the minimal replicas of all judges; empty if they can.

    Large requests are placed first, each on the first node with room, as Ray packs.
    """
    problems = []
    for each in deployments:
        if each.num_gpus > 1 and each.num_gpus != int(each.num_gpus):
            problems.append(f"judge {each.judge}: num_gpus is {each.num_gpus:g}; above 1 it is a whole number")
        elif not any(_fits(each.needs, node) for node in nodes):
            problems.append(
                f"judge {each.judge}: a replica needs {shown(each.needs)} on one node, and no node of the cluster has "
                f"that: {'; '.join(map(shown, nodes)) or 'it has no nodes'}"
            )
    if problems:
        return problems
    free = [dict(node) for node in nodes]
    wanted = [each for each in deployments for _ in range(each.min_replicas)]
    for each in sorted(wanted, key=lambda one: sorted(one.needs.values()), reverse=True):
        room = next((node for node in free if _fits(each.needs, node)), None)
        if room is None:
            total = "; ".join(f"{one.judge} {one.min_replicas} times {shown(one.needs)}" for one in deployments)
            there = "; ".join(map(shown, nodes))
            return [f"all judges at their min_replicas do not fit at once: {total}. The cluster has {there}"]
        for name, amount in each.needs.items():
            room[name] -= amount
    return []


def shown(resources: Mapping[str, float]) -> str:
    """Return resources in words."""
    plain = {name: amount for name, amount in resources.items() if name not in ("memory", "object_store_memory")}
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(plain.items()) if ":" not in name) or "nothing"


def _fits(needs: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) + EPSILON >= amount for name, amount in needs.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The demand on a judge now: rollouts that wait in the queue, calls that its replicas have."""

    queued: int = 0
    in_flight: int = 0
    waiting: int = 0


def wanted_replicas(
    load: Load, *, now_running: int, least: int, most: int, target: float, calm_for_s: float, down_after_s: float
) -> int:
    """Return the wanted number of replicas, which brings the load of each to `target`.

    Replicas are added at once, and removed one at a time. They are removed only after fewer would have been enough
    for `down_after_s`, so that a pause between batches stops nothing.
    """
    total = load.queued + load.in_flight + load.waiting
    enough = max(least, min(most, -int(-total // target)))
    if enough >= now_running:
        return enough
    if calm_for_s < down_after_s:
        return max(least, min(most, now_running))
    return max(enough, min(most, now_running - 1))


def restart_pause_s(deaths: Iterable[float], now: float, *, window_s: float, most: int) -> float | None:
    """Return the pause before a dead replica is replaced; None if `most` died within the window: it has failed."""
    recent = [death for death in deaths if now - death <= window_s]
    if len(recent) > most:
        return None
    return 0.0 if len(recent) <= 1 else min(30.0, 2.0 ** (len(recent) - 2))
