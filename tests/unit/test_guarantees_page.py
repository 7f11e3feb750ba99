"""Every guarantee on the page of guarantees, and in the README, names a test that there is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = re.compile(r"`(test_\w+)`")


@pytest.mark.parametrize("page", ["docs/guarantees.md", "README.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    named = set(NAMES.findall((ROOT / page).read_text()))
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert {name for name in named if f"def {name}(" not in tests} == set()
