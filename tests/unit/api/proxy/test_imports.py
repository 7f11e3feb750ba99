"""Packages that the proxy process must import, and those that it must not need."""

import subprocess
import sys

BLOCKED = "fastapi celery kombu ray flower httpx rich"

PROGRAM = f"""
import sys
for name in {BLOCKED.split()!r}:
    sys.modules[name] = None
from api.proxy.app import create_app
from gym.config import load_settings
create_app(load_settings(redis={{"url": "redis://127.0.0.1:1/0"}}, api={{"keys": [{{"key": "k" * 20}}]}}))
"""


def test_the_proxy_starts_without_the_apis_framework() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
