"""Schedule of kills: a pure function of a seed.

Invariant: the same seed gives the same strikes. Kinds are dealt from a shuffled bag, which is filled again when it is
empty, so that every kind has its turn in each bag and none is forgotten by chance. Which process is there to be killed
when the strike comes is the farm's doing, so two runs of a seed are alike and not the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "worker", "judge-worker", "dispatcher", "api", "proxy", "redis", "flower", "fork-server", "model", "farm"
]
"""`farm` is `farm up` itself, the supervisor of all the others but the model server, which also serves the judge."""

KINDS: tuple[Kind, ...] = get_args(Kind)
BAG: Mapping[Kind, int] = {
    "worker": 4,
    "judge-worker": 3,
    "dispatcher": 2,
    "api": 2,
    "proxy": 1,
    "redis": 3,
    "flower": 1,
    "fork-server": 1,
    "model": 2,
    "farm": 1,
}
"""How often each kind is in the bag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """Kill -9 of one process of a kind, `after_s` behind the strike before it.

    `pick` in [0, 1) says which of several; `down_s` is the delay until the model server, or `farm up`, is started
    again.
    """

    after_s: float
    kind: Kind
    pick: float
    down_s: float


def strikes(seed: int, *, bag: Mapping[Kind, int] = BAG, least_s: float = 1.0, most_s: float = 3.0) -> Iterator[Strike]:
    """Strikes without end."""
    chance = random.Random(seed)
    while True:
        kinds = [kind for kind, count in bag.items() for _ in range(count)]
        chance.shuffle(kinds)
        for kind in kinds:
            yield Strike(
                after_s=chance.uniform(least_s, most_s),
                kind=kind,
                pick=chance.random(),
                down_s=chance.uniform(0.1, 1.0),
            )
