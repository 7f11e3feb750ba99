"""Children of the fork server: `farm worker` processes that wait for a Redis or report a wrong setting."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from api.cli.fork_server import MODULES
from api.local.forking import ROLES, ForkedProcess, ForkServer, NotForked
from api.local.supervisor import ChildSpec, Supervisor

pytestmark = pytest.mark.anyio
WITHIN_S = 60.0
IDLE = "import signal; print('up', flush=True); signal.pause()"


@pytest.fixture
async def server() -> AsyncIterator[ForkServer]:
    started = ForkServer.start()
    assert started is not None
    yield started
    started.stop()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not holds():  # noqa: ASYNC110 - what is watched is outside this loop
            await asyncio.sleep(0.02)


class Orders:
    """Forks with their output in a file, in a data directory where no Redis runs."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self.output = folder / "output"

    async def fork(self, *arguments: str, **variables: str) -> ForkedProcess:
        environment = {"PATH": os.environ["PATH"], "FARM_DATA_DIR": str(self._folder / "data"), **variables}
        with self.output.open("wb") as file:
            return await self._server.fork(
                arguments,
                environment=environment,
                output=file.fileno(),
                orphan_signal=signal.SIGKILL,
                niceness=3,
            )

    async def ended(self, *arguments: str, **variables: str) -> tuple[int, str]:
        process = await self.fork(*arguments, **variables)
        async with asyncio.timeout(WITHIN_S):
            status = await process.wait()
        return status, self.output.read_text()


@pytest.fixture
def orders(server: ForkServer, tmp_path: Path) -> Orders:
    return Orders(server, tmp_path)


async def test_a_fork_looks_and_is_placed_as_if_it_had_been_started_here(orders: Orders) -> None:
    forked = await orders.fork("worker")
    try:
        process = psutil.Process(forked.pid)
        program, *words = process.cmdline()
        assert words == ["-m", "api.cli.main", "worker"]
        assert Path(program) == Path(sys.executable)
        assert process.ppid() == os.getpid()
        assert os.getsid(forked.pid) == forked.pid
        assert process.nice() == 3 + psutil.Process().nice()
        await until(lambda: len(os.listdir(f"/proc/{forked.pid}/fd")) == 3)  # noqa: PTH208 - not a folder of files
    finally:
        forked.send_signal(signal.SIGKILL)
        assert await forked.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        forked.send_signal(signal.SIGTERM)


async def test_exit_status_and_output_are_those_of_farm(orders: Orders) -> None:
    status, output = await orders.ended("worker", "--help")
    assert status == 0
    assert "Run one Celery worker" in output
    status, output = await orders.ended("dispatcher", "--nonsense")
    assert status == 2
    assert "--nonsense" in output


async def test_a_fork_has_the_environment_that_was_ordered_and_no_other(
    orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_LOG_LEVEL", "debug")
    status, output = await orders.ended("worker", FARM_LOG_LEVEL="loud")
    assert status == 2
    assert "log_level" in output


def test_every_role_of_the_fork_server_has_its_modules() -> None:
    assert set(MODULES) == ROLES


@pytest.mark.parametrize("role", sorted(MODULES))
async def test_every_module_that_is_imported_ahead_exists(role: str) -> None:
    for name in MODULES[role]:
        importlib.import_module(name)


async def test_what_is_imported_ahead_starts_no_thread_and_opens_no_connection() -> None:
    program = (
        "import threading, psutil; from api.cli.fork_server import MODULES, preload; list(map(preload, MODULES)); "
        "print(threading.active_count(), len(psutil.Process().net_connections()))"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=WITHIN_S
    )
    assert done.stdout.split() == ["1", "0"]


async def test_who_gives_up_an_order_gets_no_child(orders: Orders) -> None:
    before = {child.pid for child in psutil.Process().children()}
    order = asyncio.create_task(orders.fork("worker"))
    await asyncio.sleep(0.01)
    order.cancel()
    await asyncio.wait({order})
    await until(lambda: {child.pid for child in psutil.Process().children()} <= before)
    with pytest.raises(NotForked):
        await orders.fork("worker")


async def test_an_orphan_of_others_that_comes_with_a_child_is_reaped(
    orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, orphans = ForkServer._answer, list[int]()

    async def answer_beside_an_orphan(server: ForkServer, control: socket.socket) -> bytes:
        said = await answer(server, control)
        if said != b"ready":
            command = ["sh", "-c", "sleep 0.5 >/dev/null & echo $!"]
            left = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, check=True)
            orphans.append(int(left.stdout))
        return said

    monkeypatch.setattr(ForkServer, "_answer", answer_beside_an_orphan)
    forked = await orders.fork("worker", "--help")
    assert psutil.Process(orphans[0]).ppid() == os.getpid()
    assert await forked.wait() == 0
    await until(lambda: not psutil.pid_exists(orphans[0]))


async def test_the_end_of_the_fork_server_harms_no_child_and_the_next_ones_are_started_without_it(
    server: ForkServer, orders: Orders, tmp_path: Path
) -> None:
    forked = await orders.fork("worker")
    os.kill(server.pid, signal.SIGKILL)
    supervisor = Supervisor(tmp_path / "logs", fork_server=server)
    await supervisor.start(ChildSpec(name="one", command=[sys.executable, "-S", "-c", IDLE], forked=["worker"]))
    log = tmp_path / "logs" / "one.log"
    await until(lambda: log.exists() and log.read_text().endswith("up\n"))
    assert "without the fork server" in log.read_text()
    assert await supervisor.stop() == []
    assert forked.returncode is None
    forked.send_signal(signal.SIGKILL)
    assert await forked.wait() == -signal.SIGKILL


async def test_a_fork_that_dies_is_forked_again(server: ForkServer, tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "logs", fork_server=server)
    environment = {"FARM_DATA_DIR": str(tmp_path / "data")}
    await supervisor.start(ChildSpec(name="one", command=["false"], environment=environment, forked=["worker"]))
    child = supervisor.children["one"]
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: child.starts == 2 and child.pid not in (None, first))
    await supervisor.stop()
