"""Cost of asking a judge through the farm, over asking the same server directly. As a program: the direct calls.

The pool path includes the judging queue, the judge worker, the pool on Ray, and the server. Three costs are subtracted:
that of the same rollouts without a judge, that of the direct calls (server and client), and the idle use of farm and
Ray during the judging, as measured during the direct calls.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence

import aiohttp
import httpx
import orjson

from api.bench.figures import Figure
from api.bench.lab import WAIT_S, Lab, laboratory, run_program
from gym.jsontypes import JsonObject

JUDGE = "similarity"
REFERENCE = "Bread rises slowly."
CONCURRENCY = 64
NOBODY = {
    "kind": "remote",
    "model": "none",
    "base_urls": ["http://127.0.0.1:9"],
}  # `equivalence` requires a judge and never asks this one


def judges(repeats: int, *, rollouts: int = 1000) -> list[Figure]:
    """Rollouts scored by a judge on the farm's own Ray: CPU over direct calls of that server; batch sizes.

    The target is checked against the classifier, whose own work is small: an embedding takes ten times the overhead,
    and its scatter alone is as large as the overhead.
    """
    return [*_over_bare("reward_model", repeats, rollouts, target=1.5), *_over_bare("embedding", repeats, rollouts)]


def _over_bare(kind: str, repeats: int, rollouts: int, *, target: float | None = None) -> list[Figure]:
    texts = [f"Loaf {number} rose." for number in range(rollouts)]
    judged = [_row(text, environment="essay_similarity", reference=REFERENCE) for text in texts]
    plain = [_row(text, environment="equivalence", expected_answer=text) for text in texts]
    settings = {
        "FARM_JUDGES": json.dumps({JUDGE: {"kind": kind, "cache": False}, "equality": NOBODY}),
        "FARM_POOL_JUDGES": json.dumps({JUDGE: {}}),
    }
    bare: list[float] = []
    path: list[float] = []
    workers: list[float] = []
    sizes: list[float] = []
    detail: JsonObject = {}
    with laboratory("--no-flower", settings=settings, warm_up=False) as lab:
        url = _replica(lab)
        for rows in (judged[:200], plain[:200]):
            lab.follow(lab.submit(rows, environment=rows[0]["environment"]))
        for _ in range(repeats):
            began = time.monotonic()
            with lab.cpu() as called:
                client = run_program("api.bench.judges", url, str(rollouts))
            took_s = time.monotonic() - began
            idle = {role: cpu_s / took_s for role, cpu_s in called.items() if role != "judge-server"}
            without, without_s = _run(lab, plain)
            before = _counters(url)
            with_judge, with_s = _run(lab, judged)
            after = _counters(url)
            each = {
                role: (with_judge.get(role, 0.0) - without.get(role, 0.0) - idle.get(role, 0.0) * (with_s - without_s))
                / rollouts
                * 1000
                for role in with_judge.keys() | without.keys()
            }
            bare.append((called["judge-server"] + client["cpu_s"]) / rollouts * 1000)
            path.append(sum(each.values()))
            workers.append(each["judge-worker"])
            sizes.append((after["items"] - before["items"]) / (after["batches"] - before["batches"]))
            detail = {role: round(value, 3) for role, value in sorted(each.items())}
    over = tuple(whole - call for whole, call in zip(path, bare, strict=True))
    case = "judges"
    return [
        Figure(case=case, name=f"{kind}: bare call, server and client", unit="ms", repeats=tuple(bare)),
        Figure(case=case, name=f"{kind}: pool path", unit="ms", repeats=tuple(path), detail=detail),
        Figure(case=case, name=f"{kind}: pool path over bare call", unit="ms", repeats=over, target=target),
        Figure(case=case, name=f"{kind}: of it in the judge worker", unit="ms", repeats=tuple(workers)),
        Figure(case=case, name=f"{kind}: texts in a batch", unit="", repeats=tuple(sizes), better="higher"),
    ]


def _run(lab: Lab, rows: Sequence[JsonObject]) -> tuple[dict[str, float], float]:
    """Return CPU seconds by role, and the duration in seconds."""
    began = time.monotonic()
    with lab.cpu() as used:
        lab.follow(lab.submit(rows, environment=rows[0]["environment"]))
    return used, time.monotonic() - began


def _row(said: str, **task: str) -> JsonObject:
    return {"responses_create_params": {"input": [{"role": "user", "content": f"[[say {said}]]"}]}, **task}


def _replica(lab: Lab) -> str:
    """Return the URL of the judge's replica, once it is published."""
    ends_at = time.monotonic() + WAIT_S
    while time.monotonic() < ends_at:
        for judge in lab.http.get("/v1/judges").raise_for_status().json()["items"]:
            for replica in judge["replicas"]:
                if replica["state"] == "ready":
                    return str(replica["url"])
        time.sleep(0.2)
    raise RuntimeError(f"the judge's replica did not become ready within {WAIT_S:g} s")


def _counters(url: str) -> dict[str, int]:
    told: dict[str, int] = httpx.get(f"{url}/v1/judge", timeout=30).raise_for_status().json()
    return told


async def _ask(url: str, count: int) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        pending = iter(range(count))

        async def work() -> None:
            for number in pending:
                item = {"answer": f"Loaf {number} rose.", "reference": REFERENCE}
                body = orjson.dumps({"items": [item]})
                async with session.post(f"{url}/v1/scores", data=body) as response:
                    response.raise_for_status()
                    orjson.loads(await response.read())

        cpu = time.process_time()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        sys.stdout.write(orjson.dumps({"cpu_s": time.process_time() - cpu}).decode())


if __name__ == "__main__":
    asyncio.run(_ask(sys.argv[1], int(sys.argv[2])))
