"""Measurements, one function each, with the figures that each produces.

Targets are those of the project; they are compared, never enforced.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from statistics import median

import httpx
import orjson

from api.bench.environments import environments
from api.bench.figures import Figure, percentile
from api.bench.judges import judges
from api.bench.lab import WAIT_S, Lab, laboratory, weather_rows
from api.bench.profile import profile
from api.bench.scale import scale
from gym.jsontypes import JsonObject

MB = 1e6
LATENCY_S = 1.0
IDLE_S = 10.0
SETTLE_S = 3.0
BETWEEN_S = 0.3
Repeats = int


def two_calls_one_tool(lab: Lab, repeats: Repeats, *, rollouts: int = 2000) -> list[Figure]:
    """W1: two model calls and one tool call, no latency: CPU per rollout over all processes, and over the bare loop."""
    costs: list[float] = []
    bare: list[float] = []
    rates: list[float] = []
    split: JsonObject = {}
    for _ in range(repeats):
        bare.append(lab.bare_loop(rollouts)["cpu_s"] / rollouts * 1000)
        began = time.perf_counter()
        with lab.cpu() as used:
            lab.follow(lab.submit(weather_rows(rollouts)))
        rates.append(rollouts / (time.perf_counter() - began))
        costs.append(sum(used.values()) / rollouts * 1000)
        split = {role: round(value / rollouts * 1000, 3) for role, value in sorted(used.items()) if value}
    ratios = tuple(cost / limit for cost, limit in zip(costs, bare, strict=True))
    return [
        Figure(case="w1", name="CPU per rollout, bare loop", unit="ms", repeats=tuple(bare)),
        Figure(case="w1", name="CPU per rollout, farm", unit="ms", repeats=tuple(costs), detail=split),
        Figure(case="w1", name="farm over bare loop", unit="x", repeats=ratios, target=3.0),
        Figure(case="w1", name="rollouts per second", unit="1/s", repeats=tuple(rates), better="higher"),
    ]


def start_to_ready(repeats: Repeats) -> list[Figure]:
    """Time from `farm up` to its `ready` line, with warm files and an empty data directory."""
    command = [sys.executable, "-m", "api.cli.main", "up", "--api-port", "0", "--proxy-port", "0", "--flower-port", "0"]
    times: list[float] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            began = time.perf_counter()
            up = subprocess.Popen(  # noqa: S603 - this program
                [*command, "--data-dir", folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            try:
                line = up.stdout.readline() if up.stdout is not None else b""
                times.append(time.perf_counter() - began)
            finally:
                up.terminate()
                up.communicate(timeout=60)
            if not line.startswith(b"ready"):
                raise RuntimeError("`farm up` did not get ready")
    return [Figure(case="start", name="start to ready", unit="s", repeats=tuple(times), target=5.0)]


def idle(lab: Lab, repeats: Repeats) -> list[Figure]:
    """Memory (PSS) and CPU of an idle farm."""
    time.sleep(SETTLE_S)
    cores: list[float] = []
    for _ in range(repeats):
        with lab.cpu() as used:
            time.sleep(IDLE_S)
        cores.append(sum(used.values()) / IDLE_S)
    pss = lab.tree.pss_bytes()
    split = {role: round(size / MB, 1) for role, size in sorted(pss.items())}
    memory = sum(pss.values()) / MB
    return [
        Figure(case="idle", name="memory (PSS)", unit="MB", repeats=(memory,), target=350.0, detail=split),
        Figure(case="idle", name="CPU", unit="cores", repeats=tuple(cores), target=0.03),
    ]


def latency_bound(lab: Lab, repeats: Repeats, *, rollouts: int = 1000) -> list[Figure]:
    """1,000 rollouts of two 1 s calls, all in flight at once: ideal time over the time from the first to the last call.

    The bare loop shares the same cores with the model server and is measured beside it.
    """
    shares: list[float] = []
    bare: list[float] = []
    lab.model_behaves(latency_s=LATENCY_S)
    try:
        for _ in range(repeats):
            bare.append(2 * LATENCY_S / lab.bare_loop(rollouts, concurrency=rollouts)["wall_s"] * 100)
            seen = lab.newest_call()
            lab.follow(lab.submit(weather_rows(rollouts)))
            calls = list(lab.model_calls(seen))
            took = max(call["ended"] for call in calls) - min(call["started"] for call in calls)
            shares.append(2 * LATENCY_S / took * 100)
    finally:
        lab.model_behaves(latency_s=0.0)
    return [
        Figure(case="latency", name="of the ideal time, bare loop", unit="%", repeats=tuple(bare), better="higher"),
        Figure(case="latency", name="of the ideal time", unit="%", repeats=tuple(shares), target=90.0, better="higher"),
    ]


def conversation(lab: Lab, repeats: Repeats) -> list[Figure]:
    """One rollout of 100 turns and about 50k tokens with captured tokens: CPU, and the size of its result.

    The CPU of its last ten turns is that of 100 turns minus that of 90. The wall time of a turn is the time from one
    answer of the model to the next call, in a rollout that runs alone; it includes the model server's own share.
    """
    together, limits = 8, {"max_turns": 128}
    costs: list[float] = []
    sizes: list[float] = []
    grown: list[float] = []
    flat: list[float] = []
    for _ in range(repeats):
        used_by: dict[int, float] = {}
        for turns in (10, 90, 100):
            with lab.cpu() as used:
                batch_id = lab.submit([_long_row(turns)] * together, limits=limits)
                lab.follow(batch_id)
            used_by[turns] = sum(used.values()) / together
        costs.append(used_by[100])
        grown.append((used_by[100] - used_by[90]) / used_by[10])
        url = f"/v1/batches/{batch_id}/results"
        sizes.append(len(lab.http.get(url, params={"view": "training", "limit": 1}).content) / MB)
        seen = lab.newest_call()
        lab.follow(lab.submit([_long_row(100)], limits=limits))
        calls = list(lab.model_calls(seen))
        between = [after["started"] - before["ended"] for before, after in pairwise(calls)]
        flat.append(sum(between[-10:]) / sum(between[:10]))
    return [
        Figure(case="conversation", name="CPU, 100 turns", unit="s", repeats=tuple(costs), target=1.5),
        Figure(case="conversation", name="training result", unit="MB", repeats=tuple(sizes), target=2.0),
        Figure(
            case="conversation", name="last 10 turns over first 10, CPU", unit="x", repeats=tuple(grown), target=1.2
        ),
        Figure(
            case="conversation", name="last 10 turns over first 10, wall", unit="x", repeats=tuple(flat), target=1.2
        ),
    ]


def _long_row(turns: int) -> JsonObject:
    """Return a row with this many turns, each of 500 tokens."""
    argument = "word " * 100
    prompt = f'[[repeat-calls {turns - 1} get_weather {{"city": "{argument}"}}]]'
    return {"responses_create_params": {"input": [{"role": "user", "content": prompt}]}}


def first_call(lab: Lab, repeats: Repeats, *, samples: int = 50) -> list[Figure]:
    """Time from the submission of one rollout to its first model call, on an idle farm."""
    halves: list[float] = []
    tails: list[float] = []
    for _ in range(repeats):
        waits: list[float] = []
        for row in weather_rows(samples):
            seen = lab.newest_call()
            began = time.time()
            lab.follow(lab.submit([row]))
            first = min(call["started"] for call in lab.model_calls(seen))
            waits.append((first - began) * 1000)
        halves.append(percentile(waits, 0.5))
        tails.append(percentile(waits, 0.95))
    return [
        Figure(case="first_call", name="submit to first model call, p50", unit="ms", repeats=tuple(halves), target=30),
        Figure(case="first_call", name="submit to first model call, p95", unit="ms", repeats=tuple(tails), target=80),
    ]


def read_results(lab: Lab, repeats: Repeats, *, rollouts: int = 10_000) -> list[Figure]:
    """Reading of 10,000 light results by cursor."""
    batch_id = lab.submit(weather_rows(rollouts))
    lab.follow(batch_id)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        lab.follow(batch_id)
        times.append(time.perf_counter() - began)
    return [Figure(case="results", name="10,000 light results by cursor", unit="s", repeats=tuple(times), target=2.0)]


def submit_stream(lab: Lab, repeats: Repeats, *, rows: int = 100_000) -> list[Figure]:
    """100,000 rows in one streamed request, to a batch that cannot run; the api's memory before and after."""
    times: list[float] = []
    grown: list[float] = []
    away = {"base_urls": ["http://127.0.0.1:9"], "model": "none"}
    for _ in range(repeats):
        options = {"environment": "weather", "sealed": False, "policy": away, "priority": 0}
        batch_id = lab.http.post("/v1/batches", json=options).raise_for_status().json()["batch_id"]
        before = lab.tree.rss_bytes("api")
        began = time.perf_counter()
        _add_rows(lab, batch_id, rows)
        times.append(time.perf_counter() - began)
        grown.append((lab.tree.rss_bytes("api") - before) / MB)
        _cancel(lab, batch_id)
    return [
        Figure(
            case="submit",
            name="Submission of 100,000 rows in one streamed request, to a "
            "batch that cannot run; the api's memory before and after.",
            unit="s",
            repeats=tuple(times),
            target=20.0,
        ),
        Figure(case="submit", name="api memory grown", unit="MB", repeats=tuple(grown)),
    ]


def backlog(lab: Lab, repeats: Repeats, *, sizes: Sequence[int] = (1000, 10_000, 100_000)) -> list[Figure]:
    """CPU per rollout while 1k, 10k and 100k wait, in turns: over some 4,000 rollouts after the first few.

    Small backlogs are measured several times, so that each figure covers as many rollouts.
    """
    costs: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(repeats):
        for size in sizes:
            spent, ended = 0.0, 0
            for _ in range(max(1, 5000 // size)):
                batch_id = lab.submit(weather_rows(1), sealed=False)
                _add_rows(lab, batch_id, size)
                before = _until_ended(lab, batch_id, min(size // 10, 1000))
                with lab.cpu() as used:
                    after = _until_ended(lab, batch_id, max(before + 1, min(size * 9 // 10, before + 4000)))
                spent += sum(used.values())
                ended += after - before
                _cancel(lab, batch_id)
            costs[size].append(spent / ended * 1000)
    figures = [
        Figure(case="backlog", name=f"CPU per rollout, {size:,} waiting", unit="ms", repeats=tuple(costs[size]))
        for size in sizes
    ]
    grown = figures[-1].value / figures[0].value
    name = f"{sizes[-1]:,} waiting over {sizes[0]:,}"
    return [*figures, Figure(case="backlog", name=name, unit="x", repeats=(grown,), target=1.1)]


def _until_ended(lab: Lab, batch_id: str, wanted: int) -> int:
    """Return how many rollouts of a batch have ended, once enough have. Raises RuntimeError."""
    ends_at = time.monotonic() + WAIT_S
    while time.monotonic() < ends_at:
        ledger = lab.http.get(f"/v1/batches/{batch_id}").raise_for_status().json()["ledger"]
        ended = int(ledger["succeeded"] + ledger["failed"])
        if ended >= wanted:
            return ended
        time.sleep(0.05)
    raise RuntimeError(f"{wanted} rollouts of batch {batch_id} did not end within {WAIT_S:g} s")


def large_results(repeats: Repeats, *, rollouts: int = 1000) -> list[Figure]:
    """1,000 finished rollouts with 64 KB of tokens each: Redis's memory for ten times that, and the reading rate."""
    prompt = f"[[say {'token ' * 2700}]]"
    row = {"responses_create_params": {"input": [{"role": "user", "content": prompt}]}, "agent": "single_turn"}
    with laboratory() as lab:
        empty = lab.tree.pss_bytes()["redis"]
        batch_id = lab.submit([row] * 10, num_samples=rollouts // 10)
        lab.follow(batch_id)
        grown = lab.tree.pss_bytes()["redis"] - empty
        memory = (empty + grown * 10_000 / rollouts) / MB
        _read_packed(lab, batch_id)
        rates: list[float] = []
        size = 0
        for _ in range(repeats):
            began = time.perf_counter()
            size = _read_packed(lab, batch_id)
            rates.append(size / MB / (time.perf_counter() - began))
    detail: JsonObject = {"bytes_per_result": round(size / rollouts)}
    return [
        Figure(case="large", name="Redis, 10,000", unit="MB", repeats=(memory,), target=512.0, detail=detail),
        Figure(case="large", name="feed read", unit="MB/s", repeats=tuple(rates), target=100.0, better="higher"),
    ]


def fair_share(lab: Lab, repeats: Repeats) -> list[Figure]:
    """A batch of 100 behind one of 50,000 at equal priority: its time over its time alone, medians of five each.

    The first of the five follows right after the large one, the others while that runs at full speed.
    """
    small = 5
    ratios = []
    for _ in range(repeats):
        alone = [_timed(lambda: lab.follow(lab.submit(weather_rows(100)))) for _ in range(small)]
        big = lab.submit(weather_rows(1), sealed=False)
        _add_rows(lab, big, 50_000)
        behind = []
        for _ in range(small):
            behind.append(_timed(lambda: lab.follow(lab.submit(weather_rows(100)))))
            time.sleep(BETWEEN_S)
        _cancel(lab, big)
        ratios.append(median(behind) / median(alone))
    return [Figure(case="fair", name="100 behind 50,000 over alone", unit="x", repeats=tuple(ratios), target=3.0)]


def proxy_call(lab: Lab, repeats: Repeats, *, calls: int = 3000) -> list[Figure]:
    """CPU of the proxy process for a Responses call with a 2 KB prompt, 64 at a time."""
    body = orjson.dumps({"model": "policy", "input": "The quick brown fox jumps over it. " * 58, "temperature": 1.0})
    headers = {"content-type": "application/json", "x-farm-policy": "policy"}
    costs: list[float] = []
    _proxy_load(lab, body, headers, 500)
    for _ in range(repeats):
        with lab.cpu() as used:
            _proxy_load(lab, body, headers, calls)
        costs.append(used["proxy"] / calls * 1000)
    return [Figure(case="proxy", name="CPU per Responses call of 2 KB", unit="ms", repeats=tuple(costs), target=0.8)]


def _proxy_load(lab: Lab, body: bytes, headers: dict[str, str], calls: int) -> None:
    left = threading.Semaphore(calls)

    def work() -> None:
        with httpx.Client(base_url=lab.farm.proxy_url, timeout=120) as client:
            while left.acquire(blocking=False):
                client.post("/v1/responses", content=body, headers=headers).raise_for_status()

    threads = [threading.Thread(target=work) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _read_packed(lab: Lab, batch_id: str) -> int:
    """Read a batch's training results as msgpack and return the number of bytes."""
    import msgpack

    size = 0
    after: dict[str, str] = {}
    while True:
        params = {"view": "training", "limit": "500", **after}
        headers = {"accept": "application/msgpack"}
        raw = lab.http.get(f"/v1/batches/{batch_id}/results", params=params, headers=headers).content
        size += len(raw)
        page = msgpack.unpackb(raw)
        after = {"after": page["next_after"]}
        if page["done"]:
            return size


def _add_rows(lab: Lab, batch_id: str, rows: int) -> None:
    """Add rows in one streamed request."""
    headers = {"content-type": "application/x-ndjson"}
    lab.http.post(f"/v1/batches/{batch_id}/rows", content=_lines(rows), headers=headers).raise_for_status()


def _lines(rows: int) -> Iterator[bytes]:
    for first in range(0, rows, 1000):
        portion = weather_rows(min(1000, rows - first), seed=first)
        yield b"\n".join(map(orjson.dumps, portion)) + b"\n"


def _cancel(lab: Lab, batch_id: str) -> None:
    lab.http.delete(f"/v1/batches/{batch_id}").raise_for_status()


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


ON_ONE_FARM: dict[str, Callable[[Lab, Repeats], list[Figure]]] = {
    "idle": idle,
    "first_call": first_call,
    "w1": two_calls_one_tool,
    "latency": latency_bound,
    "proxy": proxy_call,
    "conversation": conversation,
    "results": read_results,
    "submit": submit_stream,
    "backlog": backlog,
    "fair": fair_share,
}
ON_THEIR_OWN: dict[str, Callable[[Repeats], list[Figure]]] = {
    "start": start_to_ready,
    "environments": environments,
    "large": large_results,
    "judges": judges,
}
ON_DEMAND: dict[str, Callable[[Repeats], list[Figure]]] = {"profile": profile, "scale": scale}
"""Measured only if named."""
