"""What `farm doctor` looks at in judges: whether each has somebody who answers, and somebody who asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx

from api.cli.doctor.checks import WAIT_S, Check, Level
from gym.client import connect_sync
from gym.errors import FarmError
from gym.jsontypes import JsonObject

if TYPE_CHECKING:
    from gym.config import Settings
    from gym.judges.settings import JudgeSettings


def check_judges(settings: Settings, url: str, api_key: str | None) -> Iterator[Check]:
    """Every judge of the settings, by what answers at its URLs or what was published for it; none is no fault."""
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
        pass  # the check of the api says it
    if listed and not any(judge["workers"] for judge in listed.values()):
        yield Check(
            name="judge workers",
            level=Level.FAIL,
            seen="none is alive, so whatever asks a judge waits",
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
                advice="start the farm, then ask again",
            )


def check_replica(name: str, judge: JudgeSettings, base_url: str) -> Check:
    """Whether a judge answers at a fixed URL: `/health` beside its `/v1`, else `/v1/models`."""
    root = base_url.removesuffix("/").removesuffix("/v1")
    shown = root.rpartition("@")[2] if "@" in root else root
    headers = {"authorization": f"Bearer {judge.api_key}"} if judge.api_key else {}
    seen = ""
    for path in ("/health", "/v1/models"):
        try:
            with httpx.stream("GET", root + path, headers=headers, timeout=WAIT_S) as answer:  # the body is not read
                status = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            seen = str(error) or type(error).__name__
            continue
        if status == 200:
            return Check(name=f"judge {name}", level=Level.OK, seen=f"{judge.kind}, {shown} answers")
        seen = f"{path} is answered {status}"
    return Check(
        name=f"judge {name}",
        level=Level.FAIL,
        seen=f"{shown}: {seen}",
        advice="is the judge's server up, and reachable from this machine? rollouts that ask it wait meanwhile",
    )


def published_check(name: str, judge: JudgeSettings, replicas: list[JsonObject]) -> Check:
    """What the replicas that were published for a judge amount to. Pure."""
    ready = [each for each in replicas if each.get("alive") and each.get("state") == "ready"]
    other = {str(each.get("kind")) for each in ready} - {judge.kind}
    if ready and not other:
        return Check(name=f"judge {name}", level=Level.OK, seen=f"{judge.kind}, {len(ready)} replicas are ready")
    if other:
        return Check(
            name=f"judge {name}",
            level=Level.FAIL,
            seen=f"the settings say {judge.kind}, and there are replicas of kind {', '.join(sorted(other))}",
            advice="give the replica, or the settings, another judge's name",
        )
    states = ", ".join(f"{each.get('replica')} is {each.get('state')}" for each in replicas) or "none was published"
    if judge.kind in ("embedding", "reward_model"):
        advice = f"start one: `farm judge-server --kind {judge.kind} --judge {name}`"
    else:
        advice = "give its base_urls, or publish a server of Chat Completions for it"
    return Check(name=f"judge {name}", level=Level.FAIL, seen=f"no replica is ready: {states}", advice=advice)
