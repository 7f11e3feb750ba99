"""One batch of six kinds of environments, with a model that errs: every result once, and afterwards nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.local.local_farm import LocalFarm, free_port, local_farm
from gym.environments.builtin.sql import Sql
from gym.environments.builtin.weather import Weather
from gym.sandbox.base import SandboxUnavailable
from gym.sandbox.choose import find_provider

WAIT_S = 90.0
RISKY = Path(__file__).with_name("risky_environments.py")
ERRING = ["--error-rate", "0.05", "--seed", "11"]
REFUSE = "[[status 400]]"
REFUSED_EVERY = 10  # of the rows of a kind, one is refused by the model whatever is tried


class Server:
    """A stand-in for another project's server, with its open sessions."""

    def __init__(self, module: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", f"gym.testing.{module}", "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            until(self._answers)
        except BaseException:
            self.kill()
            raise

    def open(self) -> int:
        return int(httpx.get(f"{self.url}/admin/state", timeout=30).raise_for_status().json()["open"])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.open() == 0
        return False


def until(holds: Callable[[], bool], within_s: float = WAIT_S) -> None:
    give_up_at = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with contextlib.ExitStack() as ending:
        started = []
        for module in ("resources_server", "openenv_server"):
            started.append(Server(module))
            ending.callback(started[-1].kill)
        yield started


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The farm's folder for temporary files."""
    with tempfile.TemporaryDirectory(prefix="farm-mixed-") as name:
        (Path(name) / "tmp").mkdir()
        yield Path(name) / "tmp"


def rows_of(count: int, seed: int) -> list[dict[str, Any]]:
    """So many rows of each kind; some that the model refuses, and some in which it calls tools in a wrong way."""

    def plain(environment: str, script: str, *, role: str = "user", **fields: Any) -> list[dict[str, Any]]:
        asked = {"input": [{"role": role, "content": script}]}
        return [{"environment": environment, "responses_create_params": dict(asked), **fields} for _ in range(count)]

    def done(call: str) -> str:
        return f"{call}\n---\n[[say done]]"

    tools = [{"type": "function", "name": "increment_counter", "parameters": {"type": "object"}}]
    counters = plain("counter", done('[[call increment_counter {"count": 2}]]'), initial_count=3, expected_count=5)
    for row in counters:
        row["responses_create_params"]["tools"] = tools
    answer = "```python\ndef double(x):\n    return 2 * x\n```"
    kinds = {
        "weather": [{**row, "environment": "weather"} for row in Weather.demo_rows(count, seed)],
        "sql": [{**row, "environment": "sql"} for row in Sql.demo_rows(count, seed)],
        "code": plain("code", f"[[say {answer}]]", tests=["assert double(2) == 4"]),
        "risky": plain("risky", done('[[call act {"what": "leave"}]]\n---\n[[raw-arguments act {"what": ]]')),
        "counter": counters,
        "guess": plain("guess", "[[say <action>3</action>]]\n---\n[[say <action>7</action>]]", role="system", seed=7),
    }
    rows = []
    for kind, listed in kinds.items():
        for number, row in enumerate(listed):
            if number % REFUSED_EVERY == 1:
                role = "system" if kind == "guess" else "user"  # the text that the scripted model reads first
                row["responses_create_params"]["input"] = [{"role": role, "content": REFUSE}]
            rows.append({**row, "task_id": f"{kind}-{seed}-{number}"})
    return rows


def run(farm: LocalFarm, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run a batch; return all its results and its final state."""
    with httpx.Client(base_url=farm.url, timeout=60) as http:
        answer = http.post("/v1/batches", json={"rows": rows, "limits": {"max_attempts": 3}})
        assert answer.status_code == 201, answer.text
        path = f"/v1/batches/{answer.json()['batch_id']}"
        found: list[dict[str, Any]] = []
        after = None
        give_up_at = time.monotonic() + WAIT_S + len(rows)
        while time.monotonic() < give_up_at:
            params = {"wait": "10", "limit": "1000", **({"after": after} if after else {})}
            page = http.get(f"{path}/results", params=params).raise_for_status().json()
            found, after = found + page["items"], page["next_after"]
            if page["done"]:
                return found, http.get(path).json()
        raise AssertionError(http.get(path).json()["ledger"])


class Held:
    """Resources that the farm's processes hold."""

    def __init__(self, farm: LocalFarm, temporary: Path, servers: list[Server]) -> None:
        self.files: Counter[str] = Counter()
        self.programs = self.environments = self.connections = 0
        ports = {server.port for server in servers}
        for process in psutil.Process(farm.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                self.programs += process.name() == "sleep"
                self.environments += "process_child" in command and "process_tree" not in command
                self.connections += sum(1 for c in process.net_connections("tcp") if c.raddr and c.raddr.port in ports)
                self.files.update(file.path for file in process.open_files() if str(temporary) in file.path)
        notes = temporary / f"rollout-farm-sandboxes-{os.geteuid()}"
        self.sandboxes = len(list(notes.iterdir())) if notes.is_dir() else 0
        self.folders = sorted(each.name for each in temporary.iterdir() if each != notes)


def fds(farm: LocalFarm) -> int:
    """Open files, pipes and sockets of the workers."""
    total = 0
    for process in psutil.Process(farm.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if "worker" in command and "process_child" not in command:
                total += process.num_fds()
    return total


@pytest.mark.parametrize(
    "count", [10, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(900)])], ids=lambda count: f"{count}"
)
def test_six_kinds_in_one_batch_balance_and_leave_nothing(servers: list[Server], temporary: Path, count: int) -> None:
    try:
        find_provider()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    environments = {
        "counter": {"adapter": "nemo_gym", "urls": [servers[0].url]},
        "guess": {"adapter": "openenv", "urls": [servers[1].url], "field": "number", "show": "said"},
        "risky": {"use": f"{RISKY}:Risky", "isolation": "process"},
    }
    settings = {
        "FARM_ENVIRONMENTS": json.dumps(environments),
        "FARM_BREAKERS_FAILURES": "1000",
        "FARM_SANDBOX_WARM": "1",
        "TMPDIR": str(temporary),
    }
    options = ["--workers", "1", "--concurrency", "48", "--no-flower"]
    with local_farm(temporary.parent / "data", options=options, settings=settings, model_options=ERRING) as farm:
        run(farm, rows_of(4, seed=1))
        until(lambda: all(server.open() == 0 for server in servers))
        begun = Held(farm, temporary, servers)
        at_first = fds(farm)
        rows = rows_of(count, seed=2)
        found, batch = run(farm, rows)

        assert sorted(str(item["task_id"]) for item in found) == sorted(row["task_id"] for row in rows)
        outcomes = Counter(item["outcome"] for item in found)
        ledger = {name: count for name, count in batch["ledger"].items() if count}
        assert ledger == {"submitted": len(rows), **outcomes}
        refused = {row["task_id"] for row in rows if REFUSE in json.dumps(row["responses_create_params"])}
        by_kind = Counter((str(item["task_id"]).split("-")[0], item["outcome"]) for item in found)
        for item in found:
            if item["task_id"] in refused:
                assert (item["outcome"], item["error"]["kind"]) == ("failed", "model_rejected")
            elif item["outcome"] == "failed":
                assert item["error"]["kind"] == "model_unreachable", item["error"]
        assert all(by_kind[kind, "succeeded"] > count / 2 for kind in {kind for kind, _ in by_kind}), by_kind

        until(lambda: all(server.open() == 0 for server in servers))
        until(lambda: (now := Held(farm, temporary, servers)).connections == 0 and now.programs == 0)
        until(lambda: Held(farm, temporary, servers).sandboxes <= 1)
        until(lambda: Held(farm, temporary, servers).environments <= 2)
        until(lambda: Held(farm, temporary, servers).folders == begun.folders)
        until(lambda: fds(farm) <= at_first + 8)
        family = psutil.Process(farm.process.pid).children(recursive=True)
    _, left = psutil.wait_procs(family, timeout=30)
    assert left == []
    assert [each for each in temporary.rglob("*") if not each.is_dir()] == []
