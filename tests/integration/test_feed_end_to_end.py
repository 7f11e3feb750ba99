"""Leases and events of a whole farm: real workers, real HTTP, a trainer that dies and a listener that is cut off."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import Any

import httpx
import orjson
import pytest

from api.local.local_farm import LocalFarm
from gym.client import Batch, connect_sync

ROWS = 30
SAMPLES = 4


def weather_rows(number: int) -> list[dict[str, Any]]:
    ask = {"responses_create_params": {"input": [{"role": "user", "content": "what's it like in Oslo?"}]}}
    return [ask | {"task_id": f"w{row}"} for row in range(number)]


@pytest.fixture
def batch(carrier: str, farm: LocalFarm, new_client: Any) -> Any:
    with connect_sync(farm.url if carrier == "http" else new_client(farm.redis_url)) as client:
        yield client.submit(weather_rows(ROWS), environment="weather", num_samples=SAMPLES)


def train_and_die(batch: Batch, used: list[str]) -> None:
    """Use up two groups of a lease of eight, then fall over the third."""
    with closing(batch.leased_groups("trainer", most=8, ttl_s=1)) as groups:
        for group in groups:
            if len(used) == 2:
                raise RuntimeError("out of memory")
            used.append(group[0].group_id)


@pytest.mark.both_carriers
def test_a_trainer_that_dies_goes_on_with_the_groups_that_it_had_not_used_up(batch: Batch) -> None:
    used: list[str] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        train_and_die(batch, used)
    rest = list(batch.leased_groups("trainer", most=8, ttl_s=60, view="training"))
    assert all(len({result.sample_index for result in group}) == SAMPLES for group in rest)
    assert all(result.segments for group in rest for result in group)
    assert Counter([*used, *(group[0].group_id for group in rest)]) == {
        f"{batch.batch_id}:{row}": 1 for row in range(ROWS)
    }
    watcher = [result.rollout_id for result in batch.leased("watcher", most=50)]
    assert len(set(watcher)) == len(watcher) == ROWS * SAMPLES


@pytest.mark.parametrize("carrier", ["http"])
def test_a_listener_that_is_cut_off_again_and_again_misses_nothing(farm: LocalFarm, batch: Batch) -> None:
    told: Counter[str] = Counter()
    groups: set[str] = set()
    last: dict[str, str] = {}
    final: dict[str, Any] = {}
    with httpx.Client(base_url=farm.url, timeout=60) as http:
        for cut_after in (3, 10, 40, 10_000):
            kind = ""
            headers = {"last-event-id": last["id"]} if last else {}
            with http.stream("GET", f"/v1/batches/{batch.batch_id}/events", headers=headers) as answer:
                for number, line in enumerate(answer.iter_lines()):
                    name, _, value = line.partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "id":
                        last = {"id": value}
                    elif name == "data":
                        data = orjson.loads(value)
                        if kind == "rollout":
                            told[data["rollout_id"]] += 1
                        elif kind == "group":
                            groups.add(data["group_id"])
                        elif kind == "batch":
                            final = data
                    if number >= cut_after and not line:
                        break
    assert set(told) == {f"{batch.batch_id}:{row}:{sample}" for row in range(ROWS) for sample in range(SAMPLES)}
    assert max(told.values()) <= 2
    assert len(groups) == ROWS
    assert (final["state"], final["ledger"]["succeeded"]) == ("done", ROWS * SAMPLES)
    assert final["ended_at"]
