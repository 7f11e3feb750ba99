"""PyPI's package `gym` would overwrite ours, so nothing that we install may ask for it."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def test_no_installed_distribution_is_pypis_gym() -> None:
    assert "gym" not in {name_of(distribution.metadata["Name"]) for distribution in metadata.distributions()}


def test_nothing_that_we_depend_on_asks_for_pypis_gym() -> None:
    seen: set[str] = set()
    waiting = ["rollout-farm"]
    asks: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in requirements:
            optional = "extra ==" in requirement and name != "rollout-farm"
            if name_of(requirement) == "gym" and not optional:
                asks[name] = requirement
            if not optional:
                waiting.append(name_of(requirement))
    assert "celery" in seen
    assert asks == {}


def test_the_tested_lock_does_not_hold_pypis_gym() -> None:
    locked = {name_of(line) for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")}
    assert "celery" in locked
    assert "gym" not in locked
    assert "rollout-farm" not in locked
