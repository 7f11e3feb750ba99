"""Whether a process answers a health check."""

from __future__ import annotations

import asyncio
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gym.processes.liveness import Heartbeat, NotAliveError, check_liveness, serve_liveness, serve_liveness_in_thread
from gym.processes.process_tree import end_with_parent

BLOCKS = """
import asyncio, sys, time
from gym.processes.liveness import serve_liveness
async def main():
    await serve_liveness(sys.argv[1])
    print("up", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    time.sleep(600)
asyncio.run(main())
"""


@pytest.fixture
def role() -> str:
    """A role that no other process on this machine has."""
    return f"role-{secrets.token_hex(4)}"


@contextmanager
def that_blocks(role: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose event loop stands still once it is told so."""
    with subprocess.Popen(
        [sys.executable, "-c", BLOCKS, role],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=end_with_parent(signal.SIGKILL),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_process_whose_event_loop_turns_is_alive(role: str) -> None:
    with that_blocks(role):
        check_liveness(role, timeout_s=10)


def test_a_process_whose_event_loop_stands_still_is_not_alive(role: str) -> None:
    with that_blocks(role) as process:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        time.sleep(0.5)
        with pytest.raises(NotAliveError, match=r"did not answer within 0\.2 s"):
            check_liveness(role, timeout_s=0.2)


def test_a_role_that_does_not_run_is_not_alive(role: str) -> None:
    with that_blocks(role):
        pass
    with pytest.raises(NotAliveError, match=f"no {role} runs"):
        check_liveness(role, timeout_s=1)


@pytest.mark.anyio
async def test_a_process_says_what_is_wrong_with_it(role: str) -> None:
    server = await serve_liveness(role, lambda: "the thread of the lease has ended")
    assert server is not None
    with pytest.raises(NotAliveError, match="the thread of the lease has ended"):
        await asyncio.to_thread(check_liveness, role, timeout_s=5)
    server.close()


def test_a_loop_in_a_thread_is_alive_while_it_turns(role: str) -> None:
    heartbeat = Heartbeat(0.5)
    serve_liveness_in_thread(role, heartbeat.problem)
    heartbeat.turn()
    check_liveness(role, timeout_s=5)
    time.sleep(0.6)
    with pytest.raises(NotAliveError, match="has stood still"):
        check_liveness(role, timeout_s=5)
