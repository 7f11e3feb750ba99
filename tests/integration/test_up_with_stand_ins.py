"""`farm up` around a real Redis and stand-ins for the farm's own processes."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gym.errors import SettingsError
from gym.processes.process_tree import end_with_parent
from gym.state.redis.data_dir import DataDirLock
from gym.state.redis.embedded import embedded_url

PROGRAM = """
import http.server, sys
from api.cli import main
from api.local import up
from api.local.supervisor import ChildSpec
from gym.config import load_settings

API = '''
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        dies = os.path.join(os.environ["FARM_DATA_DIR"], "api-dies")
        if os.path.exists(dies):
            os.remove(dies)
            os._exit(1)
        self.send_response(200 if self.path in ("/readyz", "/healthz") else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(os.environ["FARM_API_PORT"])), Handler).serve_forever()
'''
WORKER = '''
import os, redis, signal, sys
client = redis.Redis.from_url(os.environ["FARM_REDIS_URL"])
client.incr("lives")
def drain(*_):
    client.incr("drains")
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
print("worker is up", flush=True)
while True: signal.pause()
'''

def children(settings):
    environment = up.environment_of(settings)
    for name, program, stage in (("worker", WORKER, up.WORK), ("api", API, up.INTAKE)):
        yield ChildSpec(
            name=name, command=[sys.executable, "-c", program], environment=environment, stop_stage=stage,
        )

settings = load_settings(data_dir=sys.argv[1], api={"port": 0}, flower={"enabled": False}, proxy={"port": 0})
sys.exit(up.run(settings, children=children))
"""


class Up:
    """A running `farm up`."""

    def __init__(self, process: subprocess.Popen[str], data_dir: Path) -> None:
        self.process = process
        self.data_dir = data_dir

    def ready(self) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 60)[0], "no line within 60 s"
        return self.process.stdout.readline()

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, program: str) -> psutil.Process:
        """The one whose program contains the word."""
        return next(process for process in self.family() if program in " ".join(process.cmdline()))

    def redis_process(self) -> psutil.Process:
        """The embedded server."""
        return next(process for process in self.family() if "-server" in process.name())

    def said_up(self) -> int:
        """Count how often a worker said so."""
        log = self.data_dir / "logs" / "worker.log"
        return log.read_text().count("worker is up") if log.exists() else 0

    def redis(self, command: str, key: str) -> bytes | None:
        from redis import Redis

        with Redis.from_url(embedded_url(self.data_dir)) as client:
            answer: bytes | None = client.execute_command(command, key)
            return answer


@contextlib.contextmanager
def up(data_dir: Path) -> Iterator[Up]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(data_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_parent(signal.SIGKILL),
    ) as process:
        try:
            yield Up(process, data_dir)
        finally:
            process.kill()


def until(condition: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_at, f"not within 30 s: {what}"
        time.sleep(0.02)


def test_one_line_says_that_it_is_ready_and_sigterm_drains_and_exits_0(tmp_path: Path) -> None:
    with up(tmp_path) as farm:
        assert farm.ready().startswith("ready http://127.0.0.1:")
        until(lambda: farm.redis("GET", "lives") == b"1", "the worker")
        family = farm.family()
        assert len(family) == 3
        farm.process.terminate()
        out, _ = farm.process.communicate(timeout=60)
        assert farm.process.returncode == 0
        assert out == ""
        assert not [process for process in family if process.is_running()]


def test_an_api_that_dies_in_the_middle_of_an_answer_does_not_end_the_start(tmp_path: Path) -> None:
    (tmp_path / "api-dies").touch()
    with up(tmp_path) as farm:
        assert farm.ready().startswith("ready http://127.0.0.1:")
        assert not (tmp_path / "api-dies").exists()


def test_state_survives_and_the_worker_had_redis_until_its_drain_was_over(tmp_path: Path) -> None:
    for life in (1, 2):
        with up(tmp_path) as farm:
            farm.ready()
            until(lambda life=life: farm.said_up() == life, "the worker")
            counts = (farm.redis("GET", "lives"), farm.redis("GET", "drains"))
            farm.process.send_signal(signal.SIGINT)
            assert farm.process.wait(60) == 0
    assert counts == (b"2", b"1")


def test_a_killed_farm_leaves_no_process_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with up(tmp_path) as farm:
        farm.ready()
        until(lambda: farm.redis("GET", "lives") == b"1", "the worker")
        family = farm.family()
        farm.process.kill()
        _, left = psutil.wait_procs(family, timeout=20)
        assert not left
    with up(tmp_path) as farm:
        assert farm.ready().startswith("ready ")


def test_the_data_stay_locked_until_the_redis_of_a_killed_farm_has_ended(tmp_path: Path) -> None:
    with up(tmp_path) as farm:
        farm.ready()
        redis = farm.redis_process()
        redis.suspend()
        try:
            farm.process.kill()
            farm.process.wait(20)
            with pytest.raises(SettingsError, match="in use by its Redis server"):
                DataDirLock.take(tmp_path, timeout_s=0)
        finally:
            redis.resume()
    DataDirLock.take(tmp_path, timeout_s=20).release()


def test_a_crashed_redis_and_a_crashed_worker_are_started_again(tmp_path: Path) -> None:
    with up(tmp_path) as farm:
        farm.ready()
        until(lambda: farm.said_up() == 1, "the worker")
        redis = farm.redis_process()
        redis.kill()
        redis.wait(20)
        embedded_url(tmp_path, timeout_s=30)
        farm.child("drains").kill()
        until(lambda: farm.said_up() == 2, "another worker")


def test_a_second_farm_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with up(tmp_path) as first:
        first.ready()
        with up(tmp_path) as second:
            _, errors = second.process.communicate(timeout=60)
        assert f"in use by process {first.process.pid}" in errors
        assert first.process.poll() is None


def test_a_second_signal_kills(tmp_path: Path) -> None:
    with up(tmp_path) as farm:
        farm.ready()
        until(lambda: farm.said_up() == 1, "the worker")
        worker, api = farm.child("drains"), farm.child("readyz")
        worker.suspend()
        farm.process.terminate()
        until(lambda: not api.is_running(), "the drain's first stage")
        farm.process.terminate()
        assert farm.process.wait(30) == 128 + signal.SIGTERM
        until(lambda: not worker.is_running(), "the worker's end")
