"""Code that a model wrote, on a whole farm: right, wrong and endless answers; afterwards nothing of them is there."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.local.local_farm import LocalFarm, local_farm
from gym.sandbox.base import SandboxUnavailable
from gym.sandbox.choose import find_provider
from tests.unit.gym.sandbox.forgeries import FORGERIES, at_load

SLEEP = "86399"  # seconds; also the mark by which what is left over would be found
RIGHT = "def double(x):\n    return 2 * x"
WRONG = "def double(x):\n    return x"
ENDLESS = f"import os\nfor _ in range(3):\n    os.fork()\nos.execv('/bin/sleep', ['sleep', '{SLEEP}'])"
WITHIN_S = 100.0


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="farm-code-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def ending() -> Iterator[contextlib.ExitStack]:
    """Ends the farm `boxed`, where a test has not done so."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def boxed(folder: Path, ending: contextlib.ExitStack) -> LocalFarm:
    """A farm with little patience and temporary files of its own."""
    try:
        find_provider()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    (folder / "tmp").mkdir()
    settings = {"FARM_SANDBOX_WALL_S": "4", "FARM_SANDBOX_WARM": "2", "TMPDIR": str(folder / "tmp")}
    options = ["--workers", "1", "--concurrency", "16", "--no-flower"]
    return ending.enter_context(local_farm(folder / "data", options=options, settings=settings))


def row(answer: str, *before: str) -> dict[str, Any]:
    """A row that the scripted model answers in this way."""
    said = "\n---\n".join([*before, f"[[say ```python\n{answer}\n```]]"])
    return {
        "environment": "code",
        "responses_create_params": {"input": f"Write double(x).\n{said}"},
        "tests": ["assert double(2) == 4", "assert double(0) == 0"],
    }


def results_of(farm: LocalFarm, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results in the order of the rows, once all have ended."""
    rows = [{**each, "task_id": f"t{number}"} for number, each in enumerate(rows)]
    with httpx.Client(base_url=farm.url, timeout=60) as http:
        answer = http.post("/v1/batches", json={"rows": rows})
        assert answer.status_code == 201, answer.text
        batch, give_up_at = answer.json()["batch_id"], time.monotonic() + WITHIN_S
        items: list[dict[str, Any]] = []
        after = ""
        while len(items) < len(rows):
            assert time.monotonic() < give_up_at, items
            params = {"wait": "10", "view": "full", **({"after": after} if after else {})}
            page = http.get(f"/v1/batches/{batch}/results", params=params).json()
            items += page["items"]
            after = page["next_after"] or after
    return sorted(items, key=lambda item: int(str(item["task_id"])[1:]))


def sleepers() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if SLEEP in process.cmdline():
                found.append(process)
    return found


def test_answers_are_scored_and_an_endless_one_harms_no_other(boxed: LocalFarm) -> None:
    command = f"echo $((6 * 7)) > kept; (sleep {SLEEP} &) ; cat kept"
    tool = f"[[call bash {json.dumps({'command': command})}]]"
    results = results_of(boxed, [row(RIGHT), row(WRONG), row(ENDLESS), row(RIGHT, tool), row(RIGHT), row(WRONG)])
    assert [each["error"] for each in results] == [None] * 6
    assert [each["reward"] for each in results] == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    assert [each["reward_components"]["passed"] for each in results] == [1.0, 0.5, 0.0, 1.0, 1.0, 0.5]
    (output,) = [item for item in results[3]["response"]["output"] if item["type"] == "function_call_output"]
    assert '"stdout":"42\\n"' in output["output"]
    assert sleepers() == []


def test_wrong_answers_that_forge_or_end_their_sandbox_are_scored_nothing_and_never_unscored(boxed: LocalFarm) -> None:
    names = list(FORGERIES)[::2]
    ahead = f"[[call python_exec {json.dumps({'code': FORGERIES['writes replies to every descriptor']})}]]"
    ending_it = f"[[call python_exec {json.dumps({'code': 'import os; os.kill(1, 2); os.kill(-1, 9)'})}]]"
    rows = [row(at_load(FORGERIES[name])) for name in names]
    rows += [row(WRONG, ahead), row(WRONG, ending_it), row(RIGHT, ahead), row(RIGHT, ending_it)]
    results = results_of(boxed, rows)
    assert [each["error"] for each in results] == [None] * len(rows)
    assert [each["reward"] for each in results] == [*[0.0] * len(names), 0.0, 0.0, 1.0, 1.0]


def test_nothing_is_left_when_the_farm_has_ended(boxed: LocalFarm, ending: contextlib.ExitStack, folder: Path) -> None:
    """Also the sandboxes that were kept warm are gone; the last test of this farm."""
    notes = folder / "tmp" / f"rollout-farm-sandboxes-{os.geteuid()}"
    assert [each["reward"] for each in results_of(boxed, [row(RIGHT)])] == [1.0]
    give_up_at = time.monotonic() + WITHIN_S
    while not list(notes.iterdir()):
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    family = psutil.Process(boxed.process.pid).children(recursive=True)
    ending.close()
    _, left = psutil.wait_procs(family, timeout=30)
    assert left == []
    assert list(notes.iterdir()) == [], "each is forgotten by who closed it, and not left to be swept"
    assert sleepers() == []


def test_without_a_sandbox_the_environment_says_why_and_the_others_run(folder: Path) -> None:
    settings = {"FARM_SANDBOX_PROVIDER": "none"}
    with (
        local_farm(folder / "none", options=["--workers", "1", "--no-flower"], settings=settings) as farm,
        httpx.Client(base_url=farm.url, timeout=60) as http,
    ):
        assert http.get("/v1/environments/code").json()["error"].endswith("the setting sandbox.provider is none")
        refused = http.post("/v1/batches", json={"rows": [row(RIGHT)]})
        assert refused.status_code == 422
        assert "sandbox.provider is none" in refused.json()["error"]["message"]
        weather = {"environment": "weather", "responses_create_params": {"input": "Weather in Oslo?"}}
        assert [each["error"] for each in results_of(farm, [weather])] == [None]
