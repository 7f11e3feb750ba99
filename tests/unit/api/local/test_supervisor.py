"""The supervisor, with tiny Python programs as children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import psutil
import pytest

from api.local.supervisor import ChildFailed, ChildSpec, LogFile, Restarts, Supervisor

pytestmark = pytest.mark.anyio

IDLE = "import signal; print('up', flush=True); signal.pause()"
QUICK = Restarts(first_pause_s=0.01, longest_pause_s=0.05, settled_s=0.0)


def child(
    name: str,
    program: str,
    *arguments: str,
    stop_stage: int = 0,
    stop_within_s: float = 20.0,
    final_statuses: frozenset[int] = frozenset(),
) -> ChildSpec:
    return ChildSpec(
        name=name,
        command=[sys.executable, "-S", "-c", program, *arguments],
        stop_stage=stop_stage,
        stop_within_s=stop_within_s,
        final_statuses=final_statuses,
    )


async def until(condition: Callable[[], bool], what: str) -> None:
    with anyio.move_on_after(20):
        while not condition():  # noqa: ASYNC110 - what is watched is outside this loop
            await anyio.sleep(0.01)
        return
    raise AssertionError(f"not within 20 s: {what}")


def running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_output_goes_to_a_log_file_per_child(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    await supervisor.start(child("one", IDLE), child("two", IDLE.replace("up", "here")))
    await until(lambda: (tmp_path / "one.log").exists() and (tmp_path / "two.log").exists(), "both logs")
    assert await supervisor.stop() == []
    assert (tmp_path / "one.log").read_text() == "up\n"
    assert (tmp_path / "two.log").read_text() == "here\n"


async def test_echo_prefixes_each_line_with_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    supervisor = Supervisor(tmp_path, echo=True)
    await supervisor.start(child("one", IDLE))
    await until(lambda: bool(supervisor.children["one"].tail), "the first line")
    await supervisor.stop()
    assert capsys.readouterr().err == "one         | up\n"


async def test_a_crashed_child_is_started_again(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, restarts=QUICK)
    await supervisor.start(child("one", IDLE))
    first = supervisor.children["one"].pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: supervisor.children["one"].starts == 2 and supervisor.children["one"].pid != first, "a restart")
    await supervisor.stop()
    assert "ended with signal SIGKILL" in (tmp_path / "one.log").read_text()


async def test_a_child_that_never_settles_fails_with_its_last_lines(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, restarts=Restarts(first_pause_s=0.01, longest_pause_s=0.01, first_attempts=3))
    await supervisor.start(child("one", "raise SystemExit('no such policy')"), child("two", IDLE))
    with anyio.fail_after(20):
        failure = await supervisor.failed
    assert isinstance(failure, ChildFailed)
    assert "one was started 3 times" in str(failure)
    assert "no such policy" in str(failure)
    assert "exit status 1" in str(failure)
    await supervisor.stop()


async def test_a_child_that_ends_with_a_final_status_in_its_first_life_is_not_tried_again(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, restarts=QUICK)  # which takes it as settled
    await supervisor.start(child("one", "raise SystemExit(2)", final_statuses=frozenset({2})))
    with anyio.fail_after(20):
        failure = await supervisor.failed
    assert "one was started 1 times" in str(failure)
    await supervisor.stop()


async def test_a_final_status_of_a_later_life_is_none(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, restarts=QUICK)
    flag = tmp_path / "lived"
    program = (
        f"import pathlib, sys; p = pathlib.Path({str(flag)!r}); s = 2 if p.exists() else 1; p.touch(); sys.exit(s)"
    )
    await supervisor.start(child("one", program, final_statuses=frozenset({2})))
    await until(lambda: supervisor.children["one"].starts > 3, "four starts")
    assert not supervisor.failed.done()
    await supervisor.stop()


async def test_a_child_that_has_settled_is_restarted_for_ever(tmp_path: Path) -> None:
    supervisor = Supervisor(
        tmp_path, restarts=Restarts(first_pause_s=0.0, longest_pause_s=0.0, settled_s=0.0, first_attempts=2)
    )
    await supervisor.start(child("one", "raise SystemExit(1)"))
    await until(lambda: supervisor.children["one"].starts > 4, "five starts")
    assert not supervisor.failed.done()
    await supervisor.stop()


async def test_a_child_that_is_killed_from_outside_before_it_settles_is_restarted_for_ever(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, restarts=Restarts(first_pause_s=0.0, longest_pause_s=0.0, first_attempts=2))
    await supervisor.start(child("one", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    await until(lambda: supervisor.children["one"].starts > 4 or supervisor.failed.done(), "five starts")
    assert not supervisor.failed.done()
    await supervisor.stop()


def test_pauses_double_up_to_the_longest() -> None:
    restarts = Restarts(first_pause_s=0.5, longest_pause_s=5.0)
    assert [restarts.pause_s(deaths) for deaths in (0, 1, 2, 3, 4, 5, 5000)] == [0.0, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


async def test_children_stop_stage_by_stage(tmp_path: Path) -> None:
    order = tmp_path / "order"
    program = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    open(sys.argv[1], 'a').write(sys.argv[2] + ' ')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('up', flush=True)\n"
        "while True: signal.pause()\n"
    )
    supervisor = Supervisor(tmp_path)
    names = {"redis": 2, "worker": 1, "api": 0}
    await supervisor.start(*(child(name, program, str(order), name, stop_stage=stage) for name, stage in names.items()))
    await until(lambda: all(supervisor.children[name].tail for name in names), "all up")
    assert await supervisor.stop() == []
    assert order.read_text().split() == ["api", "worker", "redis"]


async def test_a_later_stage_is_still_kept_running_while_an_earlier_one_drains(tmp_path: Path) -> None:
    done = tmp_path / "done"
    draining = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('draining', flush=True))\n"
        "print('up', flush=True)\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
    )
    supervisor = Supervisor(tmp_path, restarts=QUICK)
    await supervisor.start(child("worker", draining, str(done)), child("redis", IDLE, stop_stage=1))
    worker, redis = supervisor.children["worker"], supervisor.children["redis"]
    await until(lambda: "up" in worker.tail and "up" in redis.tail, "both up")
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.stop)
        await until(lambda: "draining" in worker.tail, "the drain")
        redis.send(signal.SIGKILL)
        await until(lambda: redis.starts == 2, "a restart in mid-drain")
        done.touch()


async def test_a_child_that_ignores_sigterm_is_killed_after_its_bound(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    deaf = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile 1: signal.pause()"
    )
    await supervisor.start(child("deaf", deaf, stop_within_s=0.2))
    await until(lambda: bool(supervisor.children["deaf"].tail), "up")
    pid = supervisor.children["deaf"].pid
    assert pid is not None
    assert await supervisor.stop() == ["deaf"]
    assert not running(pid)


async def test_kill_ends_a_drain_at_once(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    deaf = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile 1: signal.pause()"
    )
    await supervisor.start(child("deaf", deaf, stop_within_s=600))
    await until(lambda: bool(supervisor.children["deaf"].tail), "up")
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.stop)
            await until(lambda: supervisor.children["deaf"].stopping, "the stop")
            supervisor.kill()


async def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    program = (
        "import signal, subprocess, sys\n"
        f"made = subprocess.Popen([sys.executable, '-S', '-c', {IDLE!r}])\n"
        "print('grandchild', made.pid, flush=True)\n"
        "signal.pause()\n"
    )
    supervisor = Supervisor(tmp_path)
    await supervisor.start(child("parent", program))
    tail = supervisor.children["parent"].tail
    await until(lambda: any(line.startswith("grandchild") for line in tail), "the grandchild")
    pid = int(next(line for line in tail if line.startswith("grandchild")).split()[1])
    await supervisor.stop()
    await until(lambda: not running(pid), "the grandchild's end")


async def test_a_killed_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, pathlib\n"
        "from api.local.supervisor import *\n"
        "async def main():\n"
        "    supervisor = Supervisor(pathlib.Path(sys.argv[1]))\n"
        f"    await supervisor.start(ChildSpec(name='one', command=[sys.executable, '-S', '-c', {IDLE!r}]))\n"
        "    print(supervisor.children['one'].pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as parent:  # noqa: ASYNC220 - a short line
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert running(pid)
        parent.kill()
    await until(lambda: not running(pid), "the orphan's end")


async def test_a_line_without_end_is_cut_and_not_kept_in_memory(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    await supervisor.start(child("one", f"print('x' * 200_000); {IDLE}"))
    await until(lambda: "up" in supervisor.children["one"].tail, "the line after")
    await supervisor.stop()
    assert (tmp_path / "one.log").read_text().replace("\n", "") == "x" * 200_000 + "up"


def test_a_full_log_is_moved_aside_and_the_oldest_dropped(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "one.log", size_bytes=10, kept=2)
    for number in range(7):
        log.write(b"line %d\n" % number)
    log.close()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "one.log": "line 6\n",
        "one.log.1": "line 4\nline 5\n",
        "one.log.2": "line 2\nline 3\n",
    }


async def test_a_variable_that_is_dropped_does_not_reach_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_HOST", "from outside")
    supervisor = Supervisor(tmp_path)
    program = f"import os; print(os.environ.get('FARM_HOST'), os.environ['ADDED'], flush=True); {IDLE}"
    await supervisor.start(
        ChildSpec(
            name="one",
            command=[sys.executable, "-S", "-c", program],
            environment={"ADDED": "yes"},
            dropped=frozenset({"FARM_HOST"}),
        )
    )
    await until(lambda: bool(supervisor.children["one"].tail), "a line")
    await supervisor.stop()
    assert supervisor.children["one"].tail[0] == "None yes"


async def test_a_nice_child_runs_below_the_others(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    program = f"import os; print(os.nice(0), flush=True); {IDLE}"
    await supervisor.start(ChildSpec(name="one", command=[sys.executable, "-S", "-c", program], niceness=5))
    await until(lambda: bool(supervisor.children["one"].tail), "a line")
    await supervisor.stop()
    assert int(supervisor.children["one"].tail[0]) == min(19, os.nice(0) + 5)


async def test_a_restart_replaces_children_at_once_and_leaves_the_others(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    await supervisor.start(child("one", IDLE), child("deaf", deaf), child("other", IDLE))
    await until(lambda: all((tmp_path / f"{name}.log").exists() for name in ("one", "deaf", "other")), "all run")
    before = {name: each.pid for name, each in supervisor.children.items()}
    await supervisor.restart(["one", "deaf"], within_s=0.3)
    await until(lambda: all(each.pid is not None for each in supervisor.children.values()), "all run again")
    changed = {name for name, each in supervisor.children.items() if each.pid != before[name]}
    assert changed == {"one", "deaf"}
    assert "starting it again" not in (tmp_path / "one.log").read_text()
    await supervisor.stop()
