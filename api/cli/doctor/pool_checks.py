"""What `farm doctor` looks at in the judge pool's Ray and in clocks. Ray is asked in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from api.cli.doctor.checks import WAIT_S, Check, Level

if TYPE_CHECKING:
    from gym.config import Settings

RAY_S = 60.0
CLOCK_S = 5.0
_ASK = """
import sys
from workers.judge_pool.ray_cluster import RayUnusable, check_versions, import_ray
try:
    if len(sys.argv) > 1:
        check_versions(sys.argv[1])
    print("Ray", import_ray().__version__)
except RayUnusable as error:
    sys.exit(str(error))
"""


def check_pool(settings: Settings) -> Iterator[Check]:
    """Whether the pool's interpreter has Ray, and the cluster that it is to attach to answers and has the same."""
    if not settings.pool.judges:
        return
    python, address = str(settings.pool.python or sys.executable), settings.pool.ray_head_node_address
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    try:
        asked = subprocess.run(  # noqa: S603  the settings' own interpreter
            [python, "-c", _ASK, *([address] if address else [])],
            capture_output=True,
            text=True,
            timeout=RAY_S,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Check(name="ray", level=Level.FAIL, seen=f"{python}: {error}", advice="check pool.python")
        return
    if asked.returncode:
        said = asked.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
        yield Check(name="ray", level=Level.FAIL, seen=said[0], advice="see docs/deployment.md")
    else:
        where = f", the same as the cluster at {address}" if address else ", a cluster of its own"
        yield Check(name="ray", level=Level.OK, seen=asked.stdout.strip() + where)


def check_clock(url: str) -> Check:
    """How far this machine's clock is from the farm's, to the second that HTTP's `Date` has."""
    try:
        stamp = httpx.get(f"{url}/healthz", timeout=WAIT_S).headers.get("date", "")
        offset_s = time.time() - parsedate_to_datetime(stamp).timestamp()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError):
        return Check(name="clock", level=Level.OK, seen="not compared: the farm does not answer or gives no date")
    return clock_check(offset_s)


def clock_check(offset_s: float) -> Check:
    """What an offset in seconds amounts to. Pure."""
    if abs(offset_s) > CLOCK_S:
        advice = "set both by NTP: timestamps of results and of training will not line up"
        return Check(name="clock", level=Level.WARN, seen=f"{offset_s:+.0f} s from the farm's", advice=advice)
    return Check(name="clock", level=Level.OK, seen=f"within {CLOCK_S:.0f} s of the farm's")
