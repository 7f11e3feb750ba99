"""Packages that a training cluster must have installed."""

import subprocess
import sys

BLOCKED = "aiohttp celery kombu fastapi starlette uvicorn ray flower redis typer rich yaml hiredis msgpack"

PROGRAM = f"""
import sys
for name in {BLOCKED.split()!r}:
    sys.modules[name] = None
import gym.client
from gym.testing.stand_ins.fake_farm import FakeFarm
with FakeFarm() as farm, gym.client.connect_sync(farm.url) as client:
    batch = client.submit([{{"responses_create_params": {{"input": "x"}}, "environment": "weather"}}])
    assert [result.reward for result in batch.results()] == [1.0]
assert "workers" not in sys.modules and "api" not in sys.modules
"""


def test_the_client_works_where_no_server_package_is_installed() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
