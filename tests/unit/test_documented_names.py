"""Modules and names that README and docs/ mention: each can be imported under the name that is written there."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = re.compile(r"(?<![\w./-])(?:gym|workers|api)(?:\.[A-Za-z_]\w*)+")
SETTINGS = re.compile(r"api\.(?:host|port|keys?|max_\w+|trusted_hosts)$")
WRITTEN = sorted({name for page in PAGES for name in NAMES.findall(page.read_text()) if not SETTINGS.match(name)})
PUBLIC = ("gym.client", "gym.environments.base", "gym.policy", "gym.testing.answers", "gym.testing.episodes")


def _is_there(name: str) -> bool:
    parts = name.split(".")
    module = importlib.import_module(parts[0])
    for at, part in enumerate(parts[1:], 1):
        path = ".".join(parts[: at + 1])
        if hasattr(module, "__path__") and importlib.util.find_spec(path) is not None:
            module = importlib.import_module(path)
        elif hasattr(module, part):
            module = getattr(module, part)
        else:
            return False
    return True


@pytest.mark.parametrize("name", sorted({*WRITTEN, *PUBLIC, "workers.judge_pool.rollout_farm"}))
def test_a_name_that_the_docs_mention_can_be_imported(name: str) -> None:
    assert _is_there(name)
