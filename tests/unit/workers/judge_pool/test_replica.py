"""The end of a replica's processes with its actor; the actor's class is run here without a cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")

ACTOR = """
import sys, time
from workers.judge_pool.replica import ReplicaServer
server = ReplicaServer([sys.executable, "-c", sys.argv[1]], {}, host="127.0.0.1", load_path="/", hides_gpus=True)
time.sleep(120)
"""
SERVER = """
import subprocess, sys, time
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
print(engine.pid, file=open({file!r}, "w"), flush=True)
time.sleep(120)
"""


def test_what_a_server_has_started_ends_when_the_actor_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "engine"
    actor = subprocess.Popen([sys.executable, "-c", ACTOR, SERVER.format(file=str(told))])
    try:
        give_up_at = time.monotonic() + 60
        while not (told.exists() and told.read_text().endswith("\n")):
            assert actor.poll() is None
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        engine = psutil.Process(int(told.read_text()))
        actor.send_signal(signal.SIGKILL)
        _, left = psutil.wait_procs([engine], timeout=30)
        for process in left:
            process.kill()
        assert left == []
    finally:
        actor.kill()
        actor.wait()
