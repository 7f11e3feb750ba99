"""The architecture page and CONTRIBUTING name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_path_on_a_page_exists(page: str) -> None:
    paths = set(re.findall(r"`((?:gym|workers|api|tests|docs|configs)/[\w/.]+)`", (ROOT / page).read_text()))
    assert paths
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_every_script_on_the_page_exists() -> None:
    scripts = set(re.findall(r"`(\w+\.lua)`", PAGE))
    assert scripts
    assert sorted(name for name in scripts if not (ROOT / "gym/state/scripts" / name).exists()) == []
