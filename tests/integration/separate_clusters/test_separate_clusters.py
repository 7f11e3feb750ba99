"""The topology separate_clusters: a trainer and a farm on machines of their own, HTTP between them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from subprocess import CompletedProcess

TRAINER = Path(__file__).with_name("trainer.py")
KEY = "a-key-for-these-tests"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def filtered(apart: Any) -> Any:
    """As `apart`, on a machine that can close ports."""
    if apart.why_not_apart:
        pytest.skip(f"no network namespaces here, so no port can be closed: {apart.why_not_apart}")
    return apart


def train(apart: Any) -> CompletedProcess[str]:
    """Run the trainer on its machine."""
    done: CompletedProcess[str] = apart.trainer.run(
        sys.executable, str(TRAINER), apart.farm_url, apart.policy_url, KEY, "6"
    )
    return done


def test_results_come_to_a_trainer_that_has_the_client_alone(apart: Any) -> None:
    done = train(apart)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"outcomes": ["succeeded"] * 12, "with_tokens": 12, "servers": []}


def test_only_the_documented_ports_are_open(filtered: Any) -> None:
    knock = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
    there = [(filtered.trainer, filtered.farm.address), (filtered.farm, filtered.trainer.address)]
    for machine, address in there:
        assert "Network is unreachable" in machine.run(sys.executable, "-c", knock, address, "6379").stderr
    for port in (filtered.api_port, filtered.proxy_port):
        assert filtered.trainer.run(sys.executable, "-c", knock, filtered.farm.address, str(port)).returncode == 0


def test_the_doctor_is_content_on_both_sides(filtered: Any) -> None:
    assert train(filtered).returncode == 0
    status, seen = filtered.doctor(filtered.trainer)
    assert {name: check["level"] for name, check in seen.items() if check["level"] == "fail"} == {}
    wanted = {"way to the api", "way to the proxy", "version", "key", "api", "policy trained", "clock"}
    assert {name for name in wanted if seen[name]["level"] == "ok"} == wanted
    assert status == 0
    status, seen = filtered.doctor(filtered.farm)
    assert (status, seen["policy trained"]["level"], seen["api"]["level"]) == (0, "ok", "ok"), seen


def test_the_doctor_names_the_port_to_open_on_either_side(filtered: Any) -> None:
    assert train(filtered).returncode == 0
    filtered.close(filtered.trainer, filtered.proxy_port)
    status, seen = filtered.doctor(filtered.trainer)
    assert (status, seen["way to the proxy"]["level"]) == (0, "warn")
    assert f"open TCP port 8701 of {filtered.farm.address}" in seen["way to the proxy"]["advice"]
    filtered.close(filtered.trainer, filtered.api_port)
    status, seen = filtered.doctor(filtered.trainer)
    assert (status, seen["way to the api"]["level"]) == (1, "fail")
    assert f"open TCP port 8700 of {filtered.farm.address}" in seen["way to the api"]["advice"]
    filtered.close(filtered.farm, filtered.policy_port)
    status, seen = filtered.doctor(filtered.farm)
    assert (status, seen["policy trained"]["level"]) == (1, "fail")
    assert f"open TCP port 9000 of {filtered.trainer.address}" in seen["policy trained"]["advice"]
