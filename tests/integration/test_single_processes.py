"""The processes one by one, as a Procfile or a container runs them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gym.errors import SettingsError
from gym.processes.process_tree import end_with_parent
from gym.state.redis.data_dir import DataDirLock
from gym.state.redis.embedded import ServerState, embedded_url, server_state


@contextlib.contextmanager
def process(*arguments: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    with subprocess.Popen(
        [sys.executable, "-m", "api.cli.main", *arguments],
        env=kept | settings,
        stdout=subprocess.DEVNULL,
        preexec_fn=end_with_parent(signal.SIGKILL),
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def until(condition: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_at, f"not within 30 s: {what}"
        time.sleep(0.02)


def get(
    url: str, *, login: str | None = None, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status 0 where nothing listens."""
    headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}
    if host is not None:
        headers["Host"] = host
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()
    except OSError:
        return 0, {}, b""


def test_the_embedded_redis_is_found_by_its_data_directory_and_ends_on_sigterm(tmp_path: Path) -> None:
    with process("redis", "--data-dir", str(tmp_path)) as redis:
        url = embedded_url(tmp_path, timeout_s=30)
        assert server_state(url) is ServerState.READY
        with pytest.raises(SettingsError, match=f"process {redis.pid}"):
            DataDirLock.take(tmp_path, timeout_s=0)
        redis.terminate()
        assert redis.wait(30) == 0


def test_flower_without_a_login_serves_its_api_to_this_machine_and_changes_nothing(redis_url: str) -> None:
    port = free_port()
    with process("flower", "--port", str(port), FARM_REDIS_URL=redis_url) as flower:
        api = f"http://127.0.0.1:{port}/api"
        until(lambda: get(f"{api}/tasks")[0] == 200, "Flower's API")
        _, headers, body = get(f"{api}/tasks")
        assert json.loads(body) == {}
        assert not [name for name in headers if name.lower().startswith("access-control-")]
        assert get(f"{api}/task/send-task/anything", method="POST")[0] == 403
        assert get(f"{api}/tasks", host=f"localhost:{port}")[0] == 200
        for page in (f"{api}/tasks", f"http://127.0.0.1:{port}/metrics", f"http://127.0.0.1:{port}/"):
            assert get(page, host="rebound.example")[0] == 421
        assert not [part for part in Path(f"/proc/{flower.pid}/cmdline").read_text().split("\0") if "redis:" in part]
        flower.terminate()
        assert flower.wait(30) == 0


def test_flower_with_a_login_and_a_prefix(redis_url: str) -> None:
    port = free_port()
    settings = {"FARM_FLOWER_BASIC_AUTH": "user:password", "FARM_FLOWER_URL_PREFIX": "flower"}
    with process("flower", "--port", str(port), FARM_REDIS_URL=redis_url, **settings):
        page = f"http://127.0.0.1:{port}/flower/"
        until(lambda: get(page)[0] == 401, "Flower's page")
        status, _, body = get(page, login="user:password")
        assert status == 200
        assert b"/flower/static/" in body
        assert get(f"{page}api/tasks")[0] == 401
        assert get(f"{page}api/tasks", login="user:password")[0] == 200
        assert get(f"{page}metrics")[0] == 401
        assert get(f"{page}metrics", login="user:password")[0] == 200
        assert get(f"{page}healthcheck")[2] == b"OK"
        assert get(page, login="user:password", host="flower.example")[0] == 200
