"""Every guarantee names a test that there is, and so does every other page that names tests."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = re.compile(r"`(test_(?!list`)\w+)`")  # `test_list` is a column of a data set
PAGES = [
    page.relative_to(ROOT).as_posix()
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if NAMES.search(page.read_text())
]


@pytest.mark.parametrize("page", sorted({"docs/guarantees.md", *PAGES}))
def test_every_test_that_a_page_names_exists(page: str) -> None:
    named = set(NAMES.findall((ROOT / page).read_text()))
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert {name for name in named if f"def {name}(" not in tests} == set()
