# ruff: noqa: E501, ASYNC110, ASYNC240  programs on one line; what another process does can only be polled
"""Each kind of child process has the descriptors it was given and no other, also under the worker's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.local.forking import ForkServer
from api.local.supervisor import ChildSpec, Supervisor
from gym.environments.hosting.process_session import new_session
from gym.environments.hosting.processes import EnvironmentProcesses
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import load_source
from gym.environments.settings import EnvironmentEntry
from gym.processes.child import JsonLinesChild
from gym.processes.subprocesses import start_process
from gym.sandbox.base import SandboxUnavailable
from gym.sandbox.choose import find_provider
from gym.sandbox.limits import SandboxLimits
from gym.sandbox.process import start_sandbox

pytestmark = pytest.mark.anyio
WITHIN_S = 60.0
RISKY = Path(__file__).parents[3] / "integration" / "risky_environments.py"
FOUND = """
import json, os
def is_open(fd):
    try: os.fstat(fd)
    except OSError: return False
    return True
found = [fd for fd in sorted(map(int, os.listdir("/proc/self/fd"))) if is_open(fd)]
"""
SHOW = f"{FOUND}\nprint(json.dumps(found), flush=True)"
REPLICA = """
import sys, time
from workers.judge_pool.replica import ReplicaServer
server = ReplicaServer([sys.executable, "-c", sys.argv[1]], {}, host="127.0.0.1", load_path="/", hides_gpus=True)
time.sleep(120)
"""


@pytest.fixture(params=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture(autouse=True)
def inheritable() -> Iterator[socket.socket]:
    """A socket that every child would have, were it not closed: as uvloop leaves them while it starts another child."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        mine.set_inheritable(True)
        theirs.set_inheritable(True)
        yield theirs


async def shown(path: Path) -> str:
    """The first line of a file that a child writes."""
    async with asyncio.timeout(WITHIN_S):
        while not (path.exists() and "\n" in path.read_text()):
            await asyncio.sleep(0.02)
    return path.read_text().partition("\n")[0]


def name_of(opened: socket.socket) -> str:
    return str(Path(f"/proc/self/fd/{opened.fileno()}").readlink())


def links(pid: int) -> set[str]:
    found: set[str] = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.add(str(entry.readlink()))
    return found


def test_one_function_starts_the_children_of_event_loops_and_no_call_keeps_descriptors_open() -> None:
    root = Path(__file__).parents[4]
    sources = {
        str(path.relative_to(root)): path.read_text()
        for package in ("api", "gym", "workers")
        for path in (root / package).rglob("*.py")
    }
    starters = ("asyncio.create_subprocess_", ".subprocess_exec(", ".subprocess_shell(", "close_fds=False")
    assert [name for name, text in sources.items() if any(each in text for each in starters)] == [
        "gym/processes/subprocesses.py"
    ]


async def test_a_child_has_its_streams_and_what_is_named() -> None:
    pipe = asyncio.subprocess.PIPE
    named = os.open(os.devnull, os.O_RDONLY)
    try:
        for keep in ((), (named,)):
            command = [sys.executable, "-c", SHOW]
            child = await start_process(
                command, stdin=pipe, stdout=pipe, stderr=pipe, environment=os.environ, keep=keep
            )
            async with asyncio.timeout(WITHIN_S):
                out, _ = await child.communicate()
            assert json.loads(out) == [0, 1, 2, *keep]
    finally:
        os.close(named)


async def test_children_that_are_started_together_share_no_stream() -> None:
    pipe = asyncio.subprocess.PIPE
    show = "import os; print([os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 1, 2)])"
    code = f"{SHOW}\n{show}"

    async def one() -> tuple[list[int], set[str]]:
        child = await start_process(
            [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, environment=os.environ
        )
        async with asyncio.timeout(WITHIN_S):
            out, _ = await child.communicate()
        first, second = out.decode().splitlines()
        return json.loads(first), set(json.loads(second.replace("'", '"')))

    found = await asyncio.gather(*(one() for _ in range(6)))
    assert [fds for fds, _ in found] == [[0, 1, 2]] * 6
    streams = [each for _, names in found for each in names]
    assert len(streams) == len(set(streams))


async def test_a_supervised_process(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    program = f"{SHOW}\nimport signal; signal.pause()"
    await supervisor.start(ChildSpec(name="one", command=[sys.executable, "-S", "-c", program]))
    found = await shown(tmp_path / "one.log")
    await supervisor.stop()
    assert json.loads(found) == [0, 1, 2]


async def test_the_fork_server_and_its_forks(tmp_path: Path, inheritable: socket.socket) -> None:
    leaked = name_of(inheritable)
    server = ForkServer.start()
    assert server is not None
    try:
        with (tmp_path / "output").open("wb") as output:
            forked = await server.fork(
                ["worker"],
                environment={"PATH": os.environ["PATH"], "FARM_DATA_DIR": str(tmp_path / "data")},
                output=output.fileno(),
                orphan_signal=signal.SIGKILL,
                niceness=0,
            )
        assert leaked not in links(server.pid)
        async with asyncio.timeout(WITHIN_S):
            while len(links(forked.pid)) > 2:
                await asyncio.sleep(0.02)
        assert links(forked.pid) == {os.devnull, str(tmp_path / "output")}
        forked.send_signal(signal.SIGKILL)
        await forked.wait()
    finally:
        server.stop()


async def test_an_isolated_environment_and_what_it_starts(inheritable: socket.socket) -> None:
    entry = EnvironmentEntry(name="risky", use=f"{RISKY}:Risky", isolation="process")
    kind = load_source(entry)
    pool = EnvironmentProcesses(1)
    leaked = name_of(inheritable)
    try:
        with EnvironmentThreads(1) as threads:
            row = {"responses_create_params": {"input": "Hello"}}
            session = new_session(kind, row, seed=3, executor=threads, processes=pool)
            await session.setup()
            pid = int((await session.call_tool("where", "{}")).output)
            has = links(pid)
            started = await session.call_tool("act", '{"what": "descriptors"}')
            await session.close()
    finally:
        await pool.close()
    assert json.loads(started.output) == [0, 1, 2]
    assert leaked not in has


async def test_a_process_of_packages_beside_a_worker(tmp_path: Path) -> None:
    told = tmp_path / "told"
    program = f"{FOUND}\nopen({str(told)!r}, 'w').write(json.dumps(found) + chr(10))\nprint('{{\"ready\": {{}}}}', flush=True)\nimport sys; sys.stdin.read()"
    child = JsonLinesChild([sys.executable, "-c", program], what="a child")
    await asyncio.to_thread(child.start, within_s=WITHIN_S)
    found = await shown(told)
    child.close()
    assert json.loads(found) == [0, 1, 2]


async def test_a_judge_server(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    told = tmp_path / "told"
    program = f"{FOUND}\nopen({str(told)!r}, 'w').write(json.dumps(found) + chr(10))\nimport time; time.sleep(120)"
    actor = await start_process([sys.executable, "-c", REPLICA, program], environment=os.environ)
    try:
        assert json.loads(await shown(told)) == [0, 1, 2]
    finally:
        actor.kill()
        await actor.wait()


async def test_programs_in_a_sandbox_and_its_first_process() -> None:
    try:
        provider = find_provider()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    boxes = await asyncio.gather(*(start_sandbox(provider, SandboxLimits()) for _ in range(4)))
    try:
        told = await asyncio.gather(*(box.run(["{python}", "-I", "-c", SHOW]) for box in boxes))
        assert [json.loads(outcome.stdout) for outcome in told] == [[0, 1, 2]] * 4
        answer = f"{FOUND}\ndef descriptors():\n    return found\n"
        verdict = await boxes[0].check(
            answer, ["assert len(descriptors()) == 4 and descriptors()[:3] == [0, 1, 2]"], None
        )
        assert (verdict.passed, verdict.failed) == (1, None)
        kinds = "import os; print([os.readlink(f'/proc/self/fd/{fd}').partition(':')[0] for fd in range(3)])"
        assert (await boxes[0].run(["{python}", "-I", "-c", kinds])).stdout == "['/dev/null', 'pipe', 'pipe']\n"
    finally:
        for box in boxes:
            await box.close()
