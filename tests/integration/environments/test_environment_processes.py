from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.local.local_farm import LocalFarm, local_farm
from gym.environments.capacity import CapacityWaits, listen_to_waits
from gym.environments.hosting.process_session import new_session
from gym.environments.hosting.processes import EnvironmentProcesses
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import load_registry, load_source
from gym.environments.settings import EnvironmentEntry
from gym.environments.tools import BadArguments
from gym.errors import BadRow, EnvironmentFailed, EnvironmentUnavailable, Stage, VerifierFailed
from gym.judges.base import Ask
from gym.reward import Reward
from gym.trajectory import Trajectory

WITHIN_S = 90.0
LEFT = "86397"  # seconds that a program sleeps which an environment leaves behind
FILE = Path(__file__).parents[1] / "risky_environments.py"
RISKY = EnvironmentEntry(name="risky", use=f"{FILE}:Risky", isolation="process")
JUDGED = EnvironmentEntry(name="judged", use=f"{FILE}:RiskyJudged", isolation="process")
STEPS = EnvironmentEntry(name="steps", use=f"{FILE}:RiskySteps", isolation="process")
ROW = {"responses_create_params": {"input": "Hello"}}
EMPTY = Trajectory(params={})
Open = Callable[..., EnvironmentSession]


@pytest.fixture
async def processes() -> AsyncIterator[EnvironmentProcesses]:
    pool = EnvironmentProcesses(2)
    yield pool
    await pool.close()
    assert not [each for each in psutil.Process().children(recursive=True) if "process_tree.py" in str(each.cmdline())]


@pytest.fixture
def open_apart(processes: EnvironmentProcesses) -> Iterator[Open]:
    with EnvironmentThreads(1) as threads:

        def make(source: EnvironmentEntry = RISKY, **fields: Any) -> EnvironmentSession:
            kind = load_source(source)
            assert kind.error is None, kind.error
            return new_session(kind, {**ROW, **fields}, seed=3, executor=threads, processes=processes)

        yield make


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not holds():  # noqa: ASYNC110  what it waits for is another process
            await asyncio.sleep(0.02)


@pytest.mark.anyio
async def test_tools_and_the_verifier_work_in_another_process_which_is_used_again(open_apart: Open) -> None:
    where = []
    for _ in range(2):
        session = open_apart()
        await session.setup()
        called, printed = await asyncio.gather(
            session.call_tool("where", "{}"), session.call_tool("act", '{"what": "print"}')
        )
        assert (printed.output, printed.failed) == ("print:", False), "it sees none of the farm's settings"
        assert await session.verify(Trajectory(params={}, tool_calls=[called, printed])) == Reward(2.0)
        refused = await session.call_tool("act", '{"nothing": 1}')
        assert refused.failed
        where.append(called.output)
        await session.close()
    assert where[0] == where[1] != str(os.getpid())


@pytest.mark.anyio
async def test_a_verifier_may_ask_a_judge_from_its_process(open_apart: Open) -> None:
    session = open_apart(JUDGED, verdict="ask")
    await session.setup()
    found = await session.verify(EMPTY)
    await session.close()
    assert isinstance(found, Ask)
    assert (found.questions[0].judge, found.facts) == ("strict", {"seed": 3})


@pytest.mark.anyio
async def test_a_stepped_environment_steps_in_its_process(open_apart: Open) -> None:
    session = open_apart(STEPS)
    await session.setup()
    assert await session.observe() == ["begin"]
    with pytest.raises(BadArguments, match="that is no move"):
        await session.step("bad")
    first, second = await session.step("a"), await session.step("b")
    await session.close()
    assert first.observation != os.getpid()
    assert (first.done, second.done, second.reward) == (False, True, 0.5)
    assert session.codec is load_source(STEPS).cls.codec  # type: ignore[union-attr]  # the class has one


@pytest.mark.anyio
async def test_a_crash_fails_the_one_rollout_and_the_next_gets_a_new_process(open_apart: Open) -> None:
    neighbour, session = open_apart(), open_apart(verdict="crash")
    await neighbour.setup()
    await session.setup()
    with pytest.raises(VerifierFailed, match="ended with code 7"):
        await session.verify(EMPTY)
    await session.close()
    session = open_apart()
    await session.setup()
    with pytest.raises(EnvironmentFailed, match="ended with code 7") as crashed:
        await session.call_tool("act", '{"what": "crash"}')
    assert (crashed.value.stage, crashed.value.retryable) == (Stage.TOOL, False)
    await session.close()
    assert not (await neighbour.call_tool("where", "{}")).failed
    await neighbour.close()


@pytest.mark.anyio
async def test_a_call_that_never_returns_is_killed_with_its_process_and_all_it_started(
    open_apart: Open, processes: EnvironmentProcesses
) -> None:
    session = open_apart()
    session._close_timeout_s = 0.2
    await session.setup()
    left = int((await session.call_tool("act", '{"what": "leave"}')).output)
    pid = int((await session.call_tool("where", "{}")).output)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await session.call_tool("act", '{"what": "hang"}')
    await session.close()
    await until(lambda: not psutil.pid_exists(pid) and not psutil.pid_exists(left))
    assert processes.load() == {"busy": 0, "idle": 0, "killed": 1}


@pytest.mark.anyio
async def test_the_errors_of_the_environment_keep_their_kind(open_apart: Open) -> None:
    session = open_apart()
    await session.setup()
    with pytest.raises(EnvironmentUnavailable, match="the database is away") as away:
        await session.call_tool("act", '{"what": "away"}')
    await session.close()
    assert away.value.stage == Stage.TOOL
    session = open_apart(verdict=3)
    with pytest.raises(BadRow, match="verdict"):
        await session.setup()
    await session.close()


@pytest.mark.anyio
async def test_after_close_a_session_reaches_nobody_elses_environment(open_apart: Open) -> None:
    first, second = open_apart(), open_apart()
    await first.setup()
    await first.close()
    await second.setup()
    for call, stage in ((first.verify(EMPTY), Stage.VERIFY), (first.call_tool("where", "{}"), Stage.TOOL)):
        with pytest.raises(EnvironmentFailed, match="risky: the session is closed") as caught:
            await call
        assert caught.value.stage is stage
    await second.close()


@pytest.mark.anyio
async def test_there_are_never_more_processes_than_places(open_apart: Open, processes: EnvironmentProcesses) -> None:
    first, second, third = (open_apart() for _ in range(3))
    await first.setup()
    await second.setup()
    waits = CapacityWaits()
    listen_to_waits(waits)
    waiting = asyncio.create_task(third.setup())
    await asyncio.sleep(0)
    assert waits.last(math.inf) == math.inf, "a rollout that waits does not stall"
    assert processes.load()["busy"] == 2
    assert not waiting.done()
    await first.close()
    await waiting
    assert processes.load()["busy"] == 2
    await second.close()
    await third.close()


def test_what_runs_elsewhere_already_cannot_be_isolated() -> None:
    entry = EnvironmentEntry(name="boxed", use="gym.environments.builtin.code:Code", isolation="process")
    kind = load_registry([entry]).get("boxed")
    assert kind.error is not None


@pytest.fixture(scope="module")
def isolated() -> Iterator[LocalFarm]:
    environments = {"risky": {"use": f"{FILE}:Risky", "isolation": "process"}}
    settings = {"FARM_ENVIRONMENTS": json.dumps(environments), "FARM_BREAKERS_FAILURES": "1000"}
    options = ["--workers", "1", "--concurrency", "16", "--no-flower"]
    with (
        tempfile.TemporaryDirectory(prefix="farm-test-") as folder,
        local_farm(Path(folder), options=options, settings=settings) as farm,
    ):
        yield farm


def batch_of(farm: LocalFarm, scripts: list[str], **limits: Any) -> list[dict[str, Any]]:
    rows = [
        {"environment": "risky", "task_id": f"t{n}", "responses_create_params": {"input": script}}
        for n, script in enumerate(scripts)
    ]
    with httpx.Client(base_url=farm.url, timeout=60) as http:
        answer = http.post("/v1/batches", json={"rows": rows, "limits": limits})
        assert answer.status_code == 201, answer.text
        path, give_up_at = f"/v1/batches/{answer.json()['batch_id']}/results", time.monotonic() + WITHIN_S
        found: list[dict[str, Any]] = []
        after = None
        while time.monotonic() < give_up_at:
            page = http.get(path, params={"wait": "10", **({"after": after} if after else {})}).json()
            found, after = found + page["items"], page["next_after"]
            if page["done"]:
                return sorted(found, key=lambda item: str(item["task_id"]))
    raise AssertionError(found)


def of_environments(farm: LocalFarm) -> list[psutil.Process]:
    found = []
    for each in psutil.Process(farm.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "process_child" in str(each.cmdline()) and "process_tree" not in str(each.cmdline()):
                found.append(each)
    return found


def test_on_a_farm_crashes_and_hangs_fail_their_own_rollouts_and_leave_nothing(isolated: LocalFarm) -> None:
    act = "[[call act {}]]\n---\n[[say done]]"
    scripts = [act.format(json.dumps({"what": what})) for what in ("fine", "crash", "leave", "fine")]
    hangs = act.format(json.dumps({"what": "hang"}))
    with ThreadPoolExecutor() as beside:
        hung = beside.submit(batch_of, isolated, [hangs], rollout_timeout_s=6)
        found = batch_of(isolated, scripts)
    assert [item["reward"] for item in found] == [1.0, None, 1.0, 1.0]
    assert found[1]["error"]["kind"] == "environment_error"
    assert "code 7" in found[1]["error"]["message"]
    assert [item["error"]["kind"] for item in hung.result()] == ["timeout"]
    before = of_environments(isolated)
    assert before, "some are kept for the next rollouts"
    assert not [each for each in psutil.process_iter(["cmdline"]) if LEFT in (each.info["cmdline"] or ())]

    workers = set()
    for each in before:
        with contextlib.suppress(psutil.NoSuchProcess):
            workers.add(psutil.Process(each.ppid()).ppid())
    (worker,) = workers
    psutil.Process(worker).kill()
    _, left = psutil.wait_procs(before, timeout=30)
    assert left == [], "they end with their worker, also when it is killed"
