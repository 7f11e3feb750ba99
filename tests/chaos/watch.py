"""Looks at the farm all the time, from outside: every endpoint that shows a ledger or counts, and readiness."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import orjson

from gym.rollout import Ledger
from tests.chaos.observations import Answered, LedgerSeen, QueueSeen

POLL_S = 0.25
READY_POLL_S = 0.1
TIMEOUT_S = 20.0
# a farm's answers while a part of it is away
AWAY = frozenset({503})
END = "999999999999999-0"  # a cursor behind every result
_GAUGE = "farm_rollouts_active{state="
_ALARMS = "farm_alarms_total{kind="
_ENDS = "farm_rollouts_total{outcome="


class Watch:
    """Polls until it is cancelled. `look_now` makes it look at once, as after a kill."""

    def __init__(self, url: str, batch_ids: Sequence[str]) -> None:
        self.ledgers: list[LedgerSeen] = []
        self.queues: list[QueueSeen] = []
        self.answers: list[Answered] = []
        self.ready: list[tuple[float, bool]] = []
        self.alarms: dict[str, int] = {}
        self.ends: list[dict[str, int]] = []
        self.polls = 0
        self.latest: dict[str, Ledger] = {}
        self._url = url
        self.batch_ids = batch_ids
        self._look = asyncio.Event()

    def look_now(self) -> None:
        """Do not wait for the next turn."""
        self._look.set()

    async def run(self) -> None:
        """Until cancelled."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(self._url, timeout=timeout) as http, asyncio.TaskGroup() as group:
            group.create_task(self._poll_readiness(http))
            group.create_task(self._poll_counts(http))

    async def until_looked(self) -> None:
        """Wait for a look at the counters that begins after this call. Raises TimeoutError."""
        seen = len(self.ends)
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.ends) < seen + 2:
                self.look_now()
                await asyncio.sleep(POLL_S)

    async def until_ready(self, within_s: float) -> bool:
        """Wait for /readyz, and return whether the farm became ready in time."""
        began = time.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not any(ready and at >= began for at, ready in self.ready[-3:]):  # noqa: ASYNC110  polled
                    await asyncio.sleep(READY_POLL_S)
            return True
        return False

    async def _poll_readiness(self, http: aiohttp.ClientSession) -> None:
        while True:
            at = time.time()
            answer = await self._get(http, "/readyz")
            self.ready.append((at, answer is not None))
            await asyncio.sleep(READY_POLL_S)

    async def _poll_counts(self, http: aiohttp.ClientSession) -> None:
        while True:
            await self._look_once(http)
            self.polls += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), POLL_S)
            self._look.clear()

    async def _look_once(self, http: aiohttp.ClientSession) -> None:
        at = time.time()
        listed = await self._get(http, "/v1/batches?limit=100")
        for item in (listed or {"items": ()})["items"]:
            self._see(at, "GET /v1/batches", item)
        for batch_id in self.batch_ids:
            at = time.time()
            item = await self._get(http, f"/v1/batches/{batch_id}", missing_is_fine=True)
            if item is not None:
                self._see(at, "GET /v1/batches/{id}", item)
            events = await self._get(http, f"/v1/batches/{batch_id}/events?wait=0&after={END}", missing_is_fine=True)
            for ledger in _ledgers(events or ""):
                self._see(at, "GET /v1/batches/{id}/events", {"batch_id": batch_id, "ledger": ledger})
        at = time.time()
        queues = await self._get(http, "/v1/queues")
        if queues is not None:
            counted = ("queued", "running", "judging", "dispatched")
            for item in (queues, *queues["items"]):
                self.queues.append(
                    QueueSeen(at=at, source="GET /v1/queues", counts={name: item[name] for name in counted})
                )
        at = time.time()
        metrics = await self._get(http, "/metrics")
        if metrics is not None and (states := _labelled(metrics, _GAUGE)):
            self.queues.append(QueueSeen(at=at, source="GET /metrics", counts=states))
            self.alarms = _labelled(metrics, _ALARMS)
            self.ends.append(_labelled(metrics, _ENDS))

    def _see(self, at: float, source: str, item: dict[str, Any]) -> None:
        ledger = Ledger(**item["ledger"])
        self.latest[item["batch_id"]] = ledger
        self.ledgers.append(LedgerSeen(at=at, source=source, batch_id=item["batch_id"], ledger=ledger))

    async def _get(self, http: aiohttp.ClientSession, path: str, *, missing_is_fine: bool = False) -> Any:
        """The answer, None where the farm is away; anything else is written down."""
        at = time.time()
        try:
            async with http.get(path) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return None
        if response.status == 200:
            return orjson.loads(body) if response.content_type == "application/json" else body.decode()
        if response.status not in AWAY and not (missing_is_fine and response.status == 404):
            self.answers.append(
                Answered(at=at, request=f"GET {path}", status=response.status, body=body.decode(errors="replace"))
            )
        return None


def _ledgers(events: str) -> list[dict[str, int]]:
    """The ledgers of server-sent events."""
    found = []
    for text in events.split("\n\n"):
        kind, _, data = text.partition("\n")
        if kind in ("event: ledger", "event: batch"):
            said = orjson.loads(data.removeprefix("data: "))
            found.append(said.get("ledger", said))
    return found


def _labelled(metrics: str, name: str) -> dict[str, int]:
    """The values of a metric by its one label."""
    values = {}
    for line in metrics.splitlines():
        if line.startswith(name):
            label, _, value = line.removeprefix(name).partition("} ")
            values[label.strip('"')] = int(float(value))
    return values
