# ruff: noqa: E501, ASYNC110  programs on one line; what ends by itself can only be polled
"""Providers, the pool and what is left over. An engine is used in `test_container_sandboxes`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from gym.environments.builtin.code import Code
from gym.environments.registry import _load
from gym.errors import SettingsError
from gym.sandbox.base import SandboxProvider, SandboxUnavailable
from gym.sandbox.bubblewrap import Bubblewrap
from gym.sandbox.choose import find_provider, first_working, require_named
from gym.sandbox.docker import Docker
from gym.sandbox.left_over import note, started_at, sweep_pid_files
from gym.sandbox.limits import SandboxLimits
from gym.sandbox.pool import SandboxPool
from gym.sandbox.seccomp import filter_program
from gym.sandbox.settings import SandboxSettings

pytestmark = pytest.mark.anyio


def test_where_no_provider_works_each_ones_reason_is_said(tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'no namespaces for you' >&2\nexit 1\n")
    broken.chmod(0o755)
    tmp_path.chmod(0o755)
    with pytest.raises(SandboxUnavailable, match=r"there is no no-such-bwrap.*docker: there is no no-such-docker"):
        first_working((Bubblewrap(command="no-such-bwrap"), Docker(command="no-such-docker")))


def test_an_environment_without_a_sandbox_is_disabled_with_the_reason() -> None:
    class Boxless(Code):
        name = "boxless"

        @classmethod
        def check_machine(cls, sandbox: SandboxSettings) -> None:
            first_working((Bubblewrap(command="no-such-bwrap"),))

    loaded = _load("boxless", lambda: Boxless)
    assert (loaded.name, loaded.cls) == ("boxless", None)
    assert "there is no no-such-bwrap; install the package bubblewrap" in str(loaded.error)


def test_docker_is_asked_for_a_container_that_can_do_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    client = tmp_path / "docker"
    client.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n[ "$1" = ps ] && echo "gone 1.2" && echo "mine {os.getpid()}.{started_at(os.getpid())}"\n'
        "exit 0\n"
    )
    client.chmod(0o755)
    docker = Docker(command=str(client))
    start = docker.start("box", SandboxLimits(processes=7), 3)
    wanted = {"--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--pull=never"}
    assert wanted <= set(start.argv)
    assert start.argv[start.argv.index("--pids-limit") + 1] == "9"
    assert list(start.stop) == [str(client), "rm", "--force", "box"]
    assert docker.sweep(tmp_path) == 1
    assert log.read_text().splitlines()[-1] == "rm --force gone"


def test_a_filter_exists_for_two_machines_and_no_other() -> None:
    assert len(filter_program("x86_64")) % 8 == len(filter_program("aarch64")) % 8 == 0
    with pytest.raises(ValueError, match="no seccomp filter for riscv64"):
        filter_program("riscv64")


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="wall_s is 0"):
        SandboxLimits(wall_s=0)


async def test_a_pool_keeps_warm_ones_and_ends_them(provider: SandboxProvider) -> None:
    pool = SandboxPool(provider, warm=1)
    first = await pool.take()
    with anyio.fail_after(60):
        while pool.warm < 1:
            await anyio.sleep(0.02)
    second = await pool.take()
    assert first.pid != second.pid
    await first.close()
    await second.close()
    await pool.close()
    assert pool.warm == 0


async def test_a_sandbox_that_nobody_closes_ends_by_its_age(provider: SandboxProvider) -> None:
    pool = SandboxPool(provider, warm=1, idle_s=0.1, age_s=0.1)
    taken = await pool.take()
    with anyio.fail_after(60):
        while taken.is_usable:
            await anyio.sleep(0.02)
    await pool.close()


def test_what_a_killed_process_leaves_is_swept(tmp_path: Path) -> None:
    directory = tmp_path / "notes"
    sleeper = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    note(directory, sleeper.pid)
    assert sweep_pid_files(directory) == 0, "its owner lives"
    (found,) = directory.iterdir()
    found.rename(directory / f"{sleeper.pid}.{started_at(sleeper.pid)}.1.12345")
    assert sweep_pid_files(directory) == 1
    assert sleeper.wait(30) == -9
    assert list(directory.iterdir()) == []


@pytest.mark.usefixtures("provider")
def test_a_sandbox_dies_with_a_process_that_is_killed() -> None:
    code = (
        "import asyncio, time\nfrom gym.sandbox.pool import loop_pool\n"
        "async def main():\n    box = await loop_pool().take()\n    print(box.pid, flush=True)\n"
        "    await box.run(['/bin/sleep', '1000'])\nasyncio.run(main())"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    box = psutil.Process(int(owner.stdout.readline()))
    everything = [box, *box.children(recursive=True)]
    owner.kill()
    owner.wait(30)
    owner.stdout.close()
    assert psutil.wait_procs(everything, timeout=60)[1] == []


def stand_in(directory: Path, script: str) -> Bubblewrap:
    """A `bwrap` that does as it is told here."""
    command = directory / "bwrap"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    return Bubblewrap(command=str(command), python="/usr/bin/python3")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One that other users may read, since root's sandboxes are started as nobody."""
    with tempfile.TemporaryDirectory(prefix="bwrap-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def frames(*answers: str) -> str:
    return " ".join(f"printf '{len(answer)}\\n%s' '{answer}';" for answer in answers)


def answering(answer: str) -> str:
    """A stand-in that reads a request and answers it with its nonce."""
    take = 'read size; request=$(head -c "$size");'
    nonce = """nonce=$(expr "$request" : '.*"nonce": "\\([0-9a-f]*\\)"');"""
    body = f"""body='{answer[:-1]}, "nonce": "'$nonce'"}}';"""
    ready = frames('{"ready": 1}')
    return f"""{take} {ready} {take} {nonce} {body} printf '%s\\n%s' "${{#body}}" "$body"; sleep 5"""


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'no namespaces for you' >&2; exit 1", "no namespaces for you"),
        (frames('{"ready": 77}') + "sleep 5", "it has no process namespace of its own"),
        (answering('{"broken": "no memory"}'), "the trial failed.*no memory"),
        ('read size; head -c "$size" >/dev/null;' + frames('{"ready": 1}'), "the trial failed"),
        (
            frames('{"ready": 1}', '{"exit_code": 0, "stdout": "", "nonce": "0"}') + "sleep 5",
            "the trial failed.*without the nonce of its request",
        ),
        ("exec 0<&-", "it ended or did not answer while it started"),
        (
            answering(
                '{"exit_code": 0, "stopped": null, "wall_s": 1, "cpu_s": 1, "stderr": "", '
                f'"stdout": "{b64encode(b"inside 2 3").decode()}"}}',
            ),
            "the trial saw a network",
        ),
        (
            answering(
                '{"exit_code": 1, "stopped": null, "wall_s": 1, "cpu_s": 1, "stdout": "", '
                f'"stderr": "{b64encode(b"no such library").decode()}"}}',
            ),
            "the trial printed.*no such library",
        ),
    ],
)
def test_a_bwrap_that_fails_its_trial_is_not_used(open_directory: Path, script: str, reason: str) -> None:
    with pytest.raises(SandboxUnavailable, match=reason):
        first_working((stand_in(open_directory, script),))


def test_a_provider_that_is_named_has_to_work_and_auto_may_find_none() -> None:
    require_named(SandboxSettings(provider="none"))
    with pytest.raises(SandboxUnavailable, match=r"the setting sandbox\.provider is none"):
        find_provider(SandboxSettings(provider="none"))
    named = SandboxSettings(provider="docker", image="no/such-image")
    with pytest.raises(SettingsError, match=r"sandbox\.provider is docker: .*docker"):
        require_named(named)
