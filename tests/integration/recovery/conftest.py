"""A farm of its own for tests that break it: short leases, work sent again soon, its Redis within reach."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis import Redis

from api.local.local_farm import LocalFarm, local_farm

WAIT_S = 90.0
ENVIRONMENTS = ("Stubborn", "Deaf")
SETTINGS = {
    "FARM_DISPATCHER_RESEND_AFTER_S": "2",
    "FARM_WORKER_LEASE_TTL_S": "5",
    "FARM_REDIS_TIMEOUT_S": "5",
    "FARM_WORKER_ENVIRONMENT_THREADS": "12",
    "FARM_WORKER_MAX_HUNG_THREADS": "26",
    "FARM_WORKER_DRAIN_S": "2",
    "FARM_ENVIRONMENTS": json.dumps([f"{Path(__file__).with_name('stubborn.py')}:{name}" for name in ENVIRONMENTS]),
}


@dataclass
class Breakable:
    """A farm that a test can disturb."""

    local: LocalFarm
    redis: Redis
    settings: dict[str, str]
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.local.url, timeout=60)

    def processes(self, command: str) -> list[psutil.Process]:
        """The farm's living processes of a kind: `worker`, `dispatcher`, `api`, `redis`."""
        found = []
        for process in psutil.Process(self.local.process.pid).children(recursive=True):
            try:
                name, line = process.name(), process.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if line[-1:] == [command] or (command == "redis" and name in ("valkey-server", "redis-server")):
                found.append(process)
        return found

    def slow_model(self, latency_s: float) -> None:
        """Set the duration of model calls from now on."""
        httpx.post(f"{self.local.model_url}/admin/behaviour", json={"latency_s": latency_s}).raise_for_status()

    def calls(self, batch_id: str) -> list[dict[str, Any]]:
        """The model calls of a batch, as the model server saw them."""
        found: list[dict[str, Any]] = []
        after = 0
        with httpx.Client(base_url=self.local.model_url) as model:
            while page := model.get("/admin/requests", params={"after": after}).json()["items"]:
                found += [call for call in page if (call["x_request_id"] or "").startswith(f"{batch_id}:")]
                after = page[-1]["number"]
        return found

    @staticmethod
    def body(rows: int | list[dict[str, Any]]) -> dict[str, Any]:
        question = {"responses_create_params": {"input": [{"role": "user", "content": "what's it like in Oslo?"}]}}
        return {"environment": "weather", "rows": [question] * rows if isinstance(rows, int) else rows}

    def submit(self, rows: int | list[dict[str, Any]], **options: Any) -> str:
        """A batch of these rows, or of so many weather questions, for each of which two model calls are made."""
        answer = self.http.post("/v1/batches", json=self.body(rows) | options)
        assert answer.status_code == 201, answer.text
        batch_id: str = answer.json()["batch_id"]
        return batch_id

    def ledger(self, batch_id: str) -> dict[str, int]:
        """Return the ledger, which balances at each look."""
        ledger: dict[str, int] = self.http.get(f"/v1/batches/{batch_id}").raise_for_status().json()["ledger"]
        assert ledger["submitted"] == sum(number for state, number in ledger.items() if state != "submitted")
        return ledger

    def results(self, batch_id: str) -> list[dict[str, Any]]:
        """All results, once the batch is done."""
        found: list[dict[str, Any]] = []
        after = None
        give_up_at = time.monotonic() + WAIT_S
        while time.monotonic() < give_up_at:
            params = {"wait": "5", "limit": "500", **({"after": after} if after else {})}
            page = self.http.get(f"/v1/batches/{batch_id}/results", params=params).raise_for_status().json()
            found += page["items"]
            after = page["next_after"]
            if page["done"]:
                assert len({item["rollout_id"] for item in found}) == len(found) == self.ledger(batch_id)["submitted"]
                return found
        raise AssertionError(f"{batch_id} is not done: {self.ledger(batch_id)}")

    def settled(self) -> None:
        """Wait until the farm is as it was when it started."""
        wait_until(lambda: self.http.get("/readyz").status_code == 200, "ready")
        wait_until(lambda: len([w for w in self.workers() if w["alive"]]) == 2, "two workers")

    def workers(self) -> list[dict[str, Any]]:
        """Return the workers as the api lists them."""
        found: list[dict[str, Any]] = self.http.get("/v1/workers").raise_for_status().json()["items"]
        return found


def wait_until(condition: Callable[[], Any], what: str, within_s: float = WAIT_S) -> Any:
    """Wait for a condition and return its value."""
    give_up_at = time.monotonic() + within_s
    while not (answer := condition()):
        assert time.monotonic() < give_up_at, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.05)
    return answer


@pytest.fixture
def until() -> Callable[..., Any]:
    """Wait for a condition."""
    return wait_until


@pytest.fixture(scope="session")
def breakable_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Breakable]:
    """One for the session; take `broken` instead. Its processes' logs stay in pytest's temporary directory."""
    folder = tmp_path_factory.mktemp("broken")
    options = ["--workers", "2", "--concurrency", "64", "--no-flower"]
    with local_farm(folder, options=options, settings=SETTINGS) as local:
        redis = Redis.from_url((folder / "redis" / "url").read_text())
        farm = Breakable(local, redis, SETTINGS)
        yield farm
        farm.http.close()
        redis.close()


@pytest.fixture
def broken(breakable_farm: Breakable) -> Iterator[Breakable]:
    """A farm that may be broken, as long as it can mend itself, and then has nothing to be alarmed about."""
    breakable_farm.settled()
    yield breakable_farm
    breakable_farm.slow_model(0.0)
    breakable_farm.settled()
    alarms = breakable_farm.http.get("/v1/alarms").raise_for_status().json()["items"]
    # a submission that a killed Redis cut between its rows and its entry in the index is found later, and said
    known = ("published, and in no index until now",)
    raised = [alarm for alarm in alarms if alarm["kind"] != "redis_full" and alarm["message"] not in known]
    assert not raised, json.dumps(raised, indent=1)
