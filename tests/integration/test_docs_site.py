"""The documentation site builds without a warning, and its generated pages hold what the code defines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(built)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return built


@pytest.mark.parametrize(
    ("page", "holds"),
    [
        ("index", "Architecture"),
        ("architecture", "gym/limits.py"),
        ("reference/settings", "FARM_REDIS_URL"),
        ("reference/rest", "/v1/batches"),
        ("reference/cli", "farm play"),
        ("reference/metrics", "farm_rollouts"),
        ("reference/scripts", "gym/state/"),
    ],
)
def test_a_page_is_built_and_holds_its_subject(site: Path, page: str, holds: str) -> None:
    assert holds in (site / f"{page}.html").read_text()


def test_every_script_that_farm_code_loads_has_a_caller_on_its_page(site: Path) -> None:
    text = (site / "reference/scripts.html").read_text()
    rows = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in text.split("<tr>")]
    named = {re.sub(r"<[^>]+>", "", cells[0]): cells[2] for cells in rows if len(cells) == 3}
    libraries = {"lib", "feed", "dispatch"}
    scripts = {path.stem for path in (ROOT / "gym/state/scripts").glob("*.lua")}
    assert named.keys() == scripts
    assert {name for name, callers in named.items() if not callers} <= libraries
