"""Control groups for sandboxes: where they can be made, with which limits, and that they are removed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gym.processes.subprocesses import start_process
from gym.sandbox.base import SandboxProvider
from gym.sandbox.cgroup import PREFIX, ControlGroup, find_place, new_control_group, sweep_control_groups
from gym.sandbox.limits import MIB, SandboxLimits
from gym.sandbox.process import start_sandbox

pytestmark = pytest.mark.anyio
LIMITS = SandboxLimits(memory_bytes=256 * MIB, work_bytes=16 * MIB, processes=16)


def group(path: Path, controllers: str) -> Path:
    """A directory with the files of a control group that matter."""
    path.mkdir(exist_ok=True)
    (path / "cgroup.subtree_control").write_text(controllers)
    (path / "cgroup.procs").touch()
    return path


@pytest.mark.parametrize(
    ("above", "own", "place"),
    [
        ("cpu memory pids", "", "farm"),
        ("", "memory pids", "farm/worker"),
        ("memory", "pids", None),
        ("", "", None),
    ],
)
def test_a_scope_is_made_where_memory_and_pids_are_given(
    tmp_path: Path, above: str, own: str, place: str | None
) -> None:
    group(tmp_path / "farm", above)
    group(tmp_path / "farm" / "worker", own)
    told = tmp_path / "told"
    told.write_text("1:name=systemd:/x\n0::/farm/worker\n")
    assert find_place(tmp_path, told) == (None if place is None else tmp_path / place)


def test_no_scope_is_made_above_what_is_seen_or_without_cgroup_v2(tmp_path: Path) -> None:
    group(tmp_path, "memory pids")
    told = tmp_path / "told"
    told.write_text("0::/\n")
    assert find_place(group(tmp_path / "root", ""), told) is None
    told.write_text("4:memory:/x\n")
    assert find_place(tmp_path, told) is None
    assert new_control_group(LIMITS, None) is None


def test_a_scope_has_the_limits_of_its_sandbox(tmp_path: Path) -> None:
    place = group(tmp_path / "farm", "memory pids")
    assert new_control_group(LIMITS, place) is None, "a directory that is no control group has no file for processes"
    [made] = place.glob(f"{PREFIX}*")
    assert (made / "memory.max").read_text() == str((256 + 3 * 16) * MIB)
    assert (made / "pids.max").read_text() == "20"
    assert (made / "memory.swap.max").read_text() == "0"


def test_only_scopes_whose_owner_is_gone_are_swept(tmp_path: Path) -> None:
    place = group(tmp_path / "farm", "memory pids")
    (place / f"{PREFIX}1.0-ab").mkdir()
    new_control_group(LIMITS, place)
    assert sweep_control_groups(place) == 1
    assert len(list(place.glob(f"{PREFIX}*"))) == 1


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group of this machine's cgroup v2, with whatever controllers it has."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in (Path(parts[1]) for parts in mounts if parts[2] == "cgroup2"):
        made = place / f"{PREFIX}test-{os.getpid()}"
        try:
            made.mkdir()
        except OSError:
            continue
        yield made
        if made.exists():
            made.rmdir()
        return
    pytest.skip("no cgroup v2 that can be written is mounted here")


async def test_a_child_is_in_its_group_from_its_first_step_and_ends_with_it(real_group: Path) -> None:
    scope = ControlGroup(real_group, os.open(real_group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
    child = await start_process(
        ["/bin/sh", "-c", "sleep 1000 & wait"], environment={"PATH": "/usr/bin:/bin"}, before_exec=scope.enter
    )
    held = scope.holds(child.pid)
    if not (real_group / "cgroup.kill").exists():
        os.killpg(child.pid, signal.SIGKILL)
    await scope.remove()
    assert held
    assert await child.wait() == -signal.SIGKILL
    assert not real_group.exists()  # noqa: ASYNC240  one look


async def test_a_sandbox_is_in_a_scope_where_the_host_allows_it(provider: SandboxProvider) -> None:
    place = find_place()
    if place is None:
        pytest.skip("this host lets the tests make no control group with memory and pids")
    sandbox = await start_sandbox(provider, LIMITS)
    [scope] = place.glob(f"{PREFIX}{os.getpid()}.*")
    held = (scope / "cgroup.procs").read_text().split()
    await sandbox.close()
    assert str(sandbox.pid) in held
    assert not scope.exists()
