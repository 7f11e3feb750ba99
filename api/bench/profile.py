"""`farm bench profile`: the top costs of each role, while a farm runs W1, sampled by py-spy.

py-spy (`pip install py-spy`) must be permitted to inspect the farm's processes: root, or `kernel.yama.ptrace_scope` 0.
Sampling slows the sampled process: read shares here, and absolute costs from `farm bench w1`. Redis is not Python; its
time by command is shown, as it counts it itself.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from api.bench.figures import Figure
from api.bench.lab import Lab, laboratory, weather_rows
from gym.errors import SettingsError
from gym.state.redis.driver import Redis

SAMPLED = ("worker", "dispatcher", "api")
RATE_HZ = 200
ATTACH_S = 3.0
TOP = 12
# leaves that py-spy counts as work although their thread waits
_WAITING = ("Condition.wait ", "_worker (", "EpollSelector.select ", "_epoll.poll ", "Future.result ", "Runner.run (")
_PLACE = re.compile(r"\S*/site-packages/|:\d+\)$")


def profile(repeats: int, *, rollouts: int = 3000) -> list[Figure]:
    """Time under W1: of worker, dispatcher and api by function, of Redis by command."""
    py_spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if py_spy is None:
        raise SettingsError("`farm bench profile` needs py-spy: pip install py-spy")
    with tempfile.TemporaryDirectory(prefix="profile-") as folder, laboratory() as lab:
        with Redis.from_url(lab.farm.redis_url) as redis:
            redis.config_resetstat()
            files = _sample(lab, py_spy, Path(folder), rollouts * repeats)
            commands = redis.info("commandstats")
        figures = []
        for role in SAMPLED:
            figures += _top(role, files[role])
    return figures + _commands(commands)


def _sample(lab: Lab, py_spy: str, folder: Path, rollouts: int) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {role: [] for role in SAMPLED}
    samplers = []
    for role in SAMPLED:
        for pid in lab.tree.pids(role):
            file = folder / f"{role}-{pid}"
            files[role].append(file)
            options = ["--pid", str(pid), "--format", "raw", "--rate", str(RATE_HZ), "--duration", "600"]
            samplers.append(
                subprocess.Popen(  # noqa: S603 - found above
                    [py_spy, "record", *options, "--output", str(file)],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
    try:
        time.sleep(ATTACH_S)
        lab.follow(lab.submit(weather_rows(rollouts)))
    finally:
        for sampler in samplers:
            sampler.send_signal(signal.SIGINT)
        for sampler in samplers:
            with suppress(subprocess.TimeoutExpired):
                sampler.wait(60)
            sampler.kill()
            sampler.wait()
    return files


def _top(role: str, files: Iterable[Path]) -> list[Figure]:
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    if not lines:
        raise SettingsError(f"py-spy sampled nothing of the {role}: it needs root or `kernel.yama.ptrace_scope` 0")
    return [
        Figure(case="profile", name=f"{role}: {name}", unit="%", repeats=(share * 100,), detail={"self": own * 100})
        for name, share, own in top_costs(lines)[:TOP]
    ]


def top_costs(lines: Sequence[str]) -> list[tuple[str, float, float]]:
    """Return (function, share with callees, own share) from py-spy's raw lines, the most costly first.

    Frames that are in nearly every sample, such as `main`, are left out.
    """
    whole: Counter[str] = Counter()
    own: Counter[str] = Counter()
    total = 0
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = [_PLACE.sub("", frame) for frame in stack.split(";")]
        if not frames[-1].startswith(_WAITING):
            total += int(count)
            own[frames[-1]] += int(count)
            whole.update(dict.fromkeys(frames, int(count)))
    return [
        (f"{name})" if "(" in name else name, number / total, own[name] / total)
        for name, number in whole.most_common()
        if number < 0.75 * total
    ]


def _commands(stats: dict[str, dict[str, float]]) -> list[Figure]:
    """Return Redis's commands by cost; commands within scripts are counted under `evalsha` too."""
    total = sum(each["usec"] for name, each in stats.items() if name in ("cmdstat_evalsha", "cmdstat_eval"))
    slowest = sorted(stats.items(), key=lambda item: -item[1]["usec"])[:TOP]
    return [
        Figure(
            case="profile",
            name=f"redis: {name.removeprefix('cmdstat_')}, over all scripts",
            unit="%",
            repeats=(each["usec"] / max(1.0, total) * 100,),
            detail={"calls": each["calls"], "us_per_call": each["usec_per_call"]},
        )
        for name, each in slowest
    ]
