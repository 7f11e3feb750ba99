"""Checks of judges: their servers, their workers, and the judge pool's Ray, which is queried in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from api.cli.doctor.checks import WAIT_S, Check, Level, server_fault
from gym.client import connect_sync
from gym.errors import FarmError
from gym.jsontypes import JsonObject

if TYPE_CHECKING:
    from gym.config import Settings
    from gym.judges.settings import JudgeSettings

RAY_S = 60.0
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


def check_judges(settings: Settings, url: str, api_key: str | None) -> Iterator[Check]:
    """Check every judge of the settings by its URLs or its published replicas. It is not an error to have none."""
    if not settings.judges:
        yield Check(
            name="judges", level=Level.OK, seen="none are configured, and no environment that asks one takes rows"
        )
        return
    listed: dict[str, JsonObject] = {}
    try:
        with connect_sync(url, api_key=api_key, timeout_s=WAIT_S, retries=0) as farm:
            listed = {str(judge["judge"]): judge for judge in farm.judges()}
    except FarmError:
        pass  # reported by the check of the api
    if listed and not any(judge["workers"] for judge in listed.values()):
        yield Check(
            name="judge workers",
            level=Level.FAIL,
            seen="none is alive, so rollouts that need a judge wait",
            advice="start one: `farm judge-worker`",
        )
    for name, judge in settings.judges.items():
        if judge.base_urls:
            for base_url in judge.base_urls:
                yield check_replica(name, judge, base_url)
        elif name in listed:
            yield published_check(name, judge, listed[name]["replicas"])
        else:
            yield Check(
                name=f"judge {name}",
                level=Level.WARN,
                seen="it has no base_urls, and the farm that knows its replicas does not answer",
                advice="start the farm, then run this command again",
            )


def check_replica(name: str, judge: JudgeSettings, base_url: str) -> Check:
    """Check that a judge answers at a fixed URL: `/health` beside its `/v1`, else `/v1/models`."""
    root = base_url.removesuffix("/").removesuffix("/v1")
    shown = root.rpartition("@")[2] if "@" in root else root
    seen = server_fault(root, judge.api_key)
    if not seen:
        return Check(name=f"judge {name}", level=Level.OK, seen=f"{judge.kind}, {shown} answers")
    return Check(
        name=f"judge {name}",
        level=Level.FAIL,
        seen=f"{shown}: {seen}",
        advice="is the judge's server up, and reachable from this machine? Rollouts that ask it wait until then",
    )


def published_check(name: str, judge: JudgeSettings, replicas: list[JsonObject]) -> Check:
    """Check the published replicas of a judge. Pure."""
    ready = [each for each in replicas if each.get("alive") and each.get("state") == "ready"]
    other = {str(each.get("kind")) for each in ready} - {judge.kind}
    if ready and not other:
        return Check(name=f"judge {name}", level=Level.OK, seen=f"{judge.kind}, {len(ready)} replicas are ready")
    if other:
        return Check(
            name=f"judge {name}",
            level=Level.FAIL,
            seen=f"the settings say {judge.kind}, and there are replicas of kind {', '.join(sorted(other))}",
            advice="rename the judge in the settings, or publish the replica under another name",
        )
    states = ", ".join(f"{each.get('replica')} is {each.get('state')}" for each in replicas) or "none was published"
    if judge.kind in ("embedding", "reward_model"):
        advice = f"start one: `farm judge-server --kind {judge.kind} --judge {name}`"
    else:
        advice = "give its base_urls, or publish a server of Chat Completions for it"
    return Check(name=f"judge {name}", level=Level.FAIL, seen=f"no replica is ready: {states}", advice=advice)


def check_pool(settings: Settings) -> Iterator[Check]:
    """Check that the pool's interpreter has Ray, and that its cluster answers and runs the same version."""
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
        said = asked.stderr.strip().splitlines()[-1:] or ["it ended without output"]
        yield Check(name="ray", level=Level.FAIL, seen=said[0], advice="see docs/deployment.md")
    else:
        where = f", the same as the cluster at {address}" if address else ", a cluster of its own"
        yield Check(name="ray", level=Level.OK, seen=asked.stdout.strip() + where)
