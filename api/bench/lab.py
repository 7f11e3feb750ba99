"""A farm to measure: started with a mock model, warmed up, and used over its REST API as a client would."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson

from api.bench.processes import ProcessTree
from api.local.local_farm import LocalFarm, local_farm
from gym.environments.builtin.weather import Weather
from gym.jsontypes import JsonObject

WAIT_S = 600.0
WARM_UP = 300


class Lab:
    """One farm under measurement."""

    def __init__(self, farm: LocalFarm, http: httpx.Client) -> None:
        self.farm = farm
        self.http = http
        self.tree = ProcessTree(farm.process.pid)

    def submit(self, rows: Sequence[JsonObject], **options: Any) -> str:
        """Submit a sealed batch and return its id."""
        body = {"environment": "weather", **options, "rows": rows}
        answer = self.http.post("/v1/batches", content=orjson.dumps(body), headers={"content-type": "application/json"})
        batch_id: str = answer.raise_for_status().json()["batch_id"]
        return batch_id

    def follow(self, batch_id: str, *, view: str = "light") -> list[JsonObject]:
        """Read all results; raise RuntimeError unless every rollout succeeded."""
        found: list[JsonObject] = []
        after: dict[str, str] = {}
        ends_at = time.monotonic() + WAIT_S
        while time.monotonic() < ends_at:
            params = {"wait": "10", "limit": "1000", "view": view, **after}
            answer = self.http.get(f"/v1/batches/{batch_id}/results", params=params).raise_for_status()
            page = orjson.loads(answer.content)
            found += page["items"]
            after = {"after": page["next_after"]}
            if page["done"]:
                failed = [item for item in found if item["outcome"] != "succeeded"]
                if failed:
                    raise RuntimeError(f"{len(failed)} rollouts did not succeed, such as {failed[0]}")
                return found
        raise RuntimeError(f"batch {batch_id} did not end within {WAIT_S:g} s")

    @contextmanager
    def cpu(self) -> Iterator[dict[str, float]]:
        """Measure CPU seconds by role, spent in the block; filled when it ends."""
        used: dict[str, float] = {}
        before = self.tree.cpu_s()
        yield used
        used.update({role: value - before.get(role, 0.0) for role, value in self.tree.cpu_s().items()})

    def bare_loop(self, rollouts: int, *, concurrency: int = 256) -> dict[str, float]:
        """Return the cost of the same model calls in a bare loop: `cpu_s` and `wall_s`."""
        url = f"{self.farm.model_url}/v1/chat/completions"
        return run_program("api.bench.bare", url, str(rollouts), str(concurrency))

    def model_behaves(self, **behaviour: float) -> None:
        """Change the mock model's behaviour while it runs."""
        httpx.post(f"{self.farm.model_url}/admin/behaviour", json=behaviour, timeout=30).raise_for_status()

    def newest_call(self) -> int:
        """Return the number of the last call that the mock model remembers, 0 if there is none."""
        return max((call["number"] for call in self.model_calls()), default=0)

    def model_calls(self, after: int = 0) -> Iterator[JsonObject]:
        """Return the calls that the mock model remembers, in order, from the one after a number on."""
        with httpx.Client(base_url=self.farm.model_url, timeout=30) as model:
            while page := model.get("/admin/requests", params={"after": after}).json()["items"]:
                yield from page
                after = page[-1]["number"]


def run_program(module: str, *arguments: str) -> dict[str, float]:
    """Run a module as a separate program and return its output, so that its costs are not mixed with this one's."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, check=True, timeout=WAIT_S)  # noqa: S603 - this program
    said: dict[str, float] = orjson.loads(done.stdout)
    return said


@contextmanager
def laboratory(*options: str, settings: dict[str, str] | None = None, warm_up: bool = True) -> Iterator[Lab]:
    """Run a farm with two workers of 512 slots, in a temporary directory; `options` are those of `farm up`."""
    given = ["--workers", "2", "--concurrency", "512", *options]
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        local_farm(Path(folder), options=given, settings=settings) as farm,
        httpx.Client(base_url=farm.url, timeout=WAIT_S) as http,
    ):
        lab = Lab(farm, http)
        if warm_up:
            lab.follow(lab.submit(weather_rows(WARM_UP)))
        yield lab


def weather_rows(count: int, *, seed: int = 1) -> list[JsonObject]:
    """Return rows of two model calls and a tool call each."""
    return Weather.demo_rows(count, seed)
