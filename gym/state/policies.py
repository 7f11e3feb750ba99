"""Registry of policies in Redis: their endpoints, whether they are paused, and the announced version.

A process waits for a change and reads the records when the revision has grown. It reports which revision it has seen
and its calls in flight, so that a pause knows when it is obeyed. A process without news reports only as often as it
must to stay known, and then also sees a change whose wake-up it missed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import orjson
from redis.exceptions import RedisError

from gym.errors import NotFound
from gym.fields.bounded import STORED
from gym.model_client.routing.served_model import Pause, ServedModel
from gym.policy import PolicySpec
from gym.state.redis.store import POLICY_REPORT, Argument, Store, insisting
from gym.state.redis.unreadable import read_object, read_or_none

BUSY_S = 0.4  # between reports of a process that has calls in flight
REPORT_S = 1.6
REPORT_TTL_MS = 5000
POLL_S = 0.05
_LOG = logging.getLogger(__name__)

Lanes = Mapping[str, tuple[int, int]]  # policy → calls in flight, calls held


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoad:
    """A policy's model calls over all processes; `obeyed` says that all of them have seen its last change."""

    in_flight: int
    held: int
    obeyed: bool


class Policies:
    """Registration, pausing and resuming of policies."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, name: str, spec: PolicySpec) -> ServedModel:
        """Register or replace a policy from the next model call on. A pause stays, as does an omitted version."""
        keys = self._store.keys
        pipeline = self._store.redis.pipeline(transaction=True)
        text = orjson.dumps(spec.model_dump(mode="json"))
        pipeline.eval(*insisting(keys.policies, "HSET", name, text))
        if spec.version is not None:
            pipeline.eval(*insisting(keys.policies_version, "HSET", name, spec.version))
        self._tell(pipeline)
        await pipeline.execute()
        return await self.get(name)

    async def get(self, name: str) -> ServedModel:
        """Return a policy's record. Raises NotFound."""
        record = (await self.all()).get(name)
        if record is None:
            raise policy_not_found(name)
        return record

    async def all(self) -> dict[str, ServedModel]:
        """Return every registered policy by name."""
        keys = self._store.keys
        pipeline = self._store.redis.pipeline(transaction=True)
        pipeline.hgetall(keys.policies)
        pipeline.hgetall(keys.policies_paused)
        pipeline.hgetall(keys.policies_version)
        pipeline.get(keys.policies_revision)
        specs, paused, versions, revision = await pipeline.execute()
        records = {}
        for name, text in specs.items():

            def read(name: bytes = name, text: bytes = text) -> ServedModel:
                version = read_or_none("version of policy", name, int, versions[name]) if name in versions else None
                return ServedModel(
                    name=name.decode(),
                    spec=PolicySpec.model_validate(orjson.loads(text), context=STORED),
                    revision=int(revision or 1),
                    paused=cast(Pause, paused[name].decode()) if name in paused else None,
                    version=version,
                )

            record = read_or_none("policy", name, read)
            if record is not None:
                records[record.name] = record
        return records

    async def delete(self, name: str) -> bool:
        """Delete a policy and return whether there was one."""
        keys = self._store.keys
        pipeline = self._store.redis.pipeline(transaction=True)
        pipeline.hdel(keys.policies, name)
        pipeline.hdel(keys.policies_paused, name)
        pipeline.hdel(keys.policies_version, name)
        self._tell(pipeline)
        return bool((await pipeline.execute())[0])

    async def pause(self, name: str, mode: Pause, *, timeout_s: float) -> PolicyLoad:
        """Hold new model calls; return when every process does, and with `drain` when no call is in flight.

        Returns after `timeout_s` at the latest, with the load at that time. Raises NotFound.
        """
        await self.get(name)
        pipeline = self._store.redis.pipeline(transaction=True)
        pipeline.eval(*insisting(self._store.keys.policies_paused, "HSET", name, mode))
        self._tell(pipeline)
        revision = int((await pipeline.execute())[1])
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + timeout_s
        while True:
            load = await self.load(name, revision)
            done = load.obeyed and (mode == "hold" or load.in_flight == 0)
            if done or loop.time() >= give_up_at:
                return load
            await asyncio.sleep(POLL_S)

    async def resume(self, name: str, version: int | None) -> ServedModel:
        """Release held calls, under the version announced here. Raises NotFound."""
        await self.get(name)
        keys = self._store.keys
        pipeline = self._store.redis.pipeline(transaction=True)
        if version is not None:
            pipeline.eval(*insisting(keys.policies_version, "HSET", name, version))
        pipeline.hdel(keys.policies_paused, name)
        self._tell(pipeline)
        await pipeline.execute()
        return await self.get(name)

    def _tell(self, pipeline: Any) -> None:
        """Add the wake-up of a change to a pipeline."""
        keys = self._store.keys
        pipeline.eval(*insisting(keys.policies_revision, "INCR"))
        pipeline.eval(*insisting(keys.policies_changes, "XADD", "MAXLEN", 1, "*", "changed", 1))

    async def revision(self) -> int:
        """Return the revision, which grows with every change."""
        return int(await self._store.redis.get(self._store.keys.policies_revision) or 0)

    async def changed(self, seen: str, *, wait_s: float) -> str:
        """Return the mark of the newest change once it differs from `seen`, after `wait_s` at the latest."""
        block_ms = max(1, int(wait_s * 1000))
        answer = await self._store.redis.xread({self._store.keys.policies_changes: seen}, count=1, block=block_ms)
        return str(answer[0][1][-1][0].decode()) if answer else seen

    async def report(self, process: str, revision: int, lanes: Lanes, *, ttl_ms: int = REPORT_TTL_MS) -> int:
        """Store a process's revision and load, which expire without renewal. Return the newest revision."""
        keys = self._store.keys
        args: list[Argument] = [process, revision, ttl_ms, orjson.dumps(lanes)]
        return int(await self._store.run(POLICY_REPORT, [keys.policies_load, keys.policies_revision], args))

    async def load(self, name: str, revision: int) -> PolicyLoad:
        """Return the calls over all living processes; reports of dead ones are removed."""
        now = await self._store.now_ms()
        in_flight = held = 0
        obeyed = True
        for process, text in (await self._store.redis.hgetall(self._store.keys.policies_load)).items():
            report = read_or_none("load of process", process, _report_of, name, text)
            if report is None or report.until < now:
                await self._store.redis.hdel(self._store.keys.policies_load, process)
                continue
            in_flight += report.flying
            held += report.waiting
            obeyed = obeyed and report.revision >= revision
        return PolicyLoad(in_flight=in_flight, held=held, obeyed=obeyed)


class _Report(NamedTuple):
    """Calls of one policy in one process."""

    until: int
    revision: int
    flying: int
    waiting: int


def _report_of(policy: str, text: bytes) -> _Report:
    report = read_object(text)
    flying, waiting = report["lanes"].get(policy, (0, 0))
    return _Report(int(report["until"]), int(report["revision"]), int(flying), int(waiting))


class PolicyCache:
    """A process's copy of the records; `get` serves the model client."""

    def __init__(self, store: Store, process: str) -> None:
        self._policies = Policies(store)
        self._process = process
        self._records: dict[str, ServedModel] = {}
        self._revision = -1
        self._reported: tuple[int, Lanes] | None = None
        self._report_at = 0.0
        self._change = "0-0"

    def get(self, name: str) -> ServedModel | None:
        """Return the record as of the last moments."""
        return self._records.get(name)

    def records(self) -> list[ServedModel]:
        """Return all records by name."""
        return [self._records[name] for name in sorted(self._records)]

    async def refresh(self) -> None:
        """Look for changes once."""
        await self._catch_up(await self._policies.revision())

    async def keep_fresh(self, lanes: Callable[[], Lanes]) -> None:
        """Look for changes and report until cancelled; while Redis is away the last copy is used."""
        while True:
            try:
                await self._look(lanes)
                busy = any(any(calls) for calls in lanes().values())
                self._change = await self._policies.changed(self._change, wait_s=BUSY_S if busy else REPORT_S)
            except RedisError as error:
                _LOG.warning("policies not refreshed: %s", error, extra={"action": "policies_stale"})
                await asyncio.sleep(BUSY_S)

    async def _look(self, lanes: Callable[[], Lanes]) -> None:
        """Wait for changes and report; a change is reported as obeyed at once."""
        while True:
            news = (self._revision, lanes())  # read after the change: calls that began before it are in flight
            fresh = news == self._reported and time.monotonic() < self._report_at
            newest = await (self._policies.revision() if fresh else self._report(news))
            if newest == self._revision:
                return
            await self._catch_up(newest)

    async def _report(self, news: tuple[int, Lanes]) -> int:
        self._report_at = time.monotonic() + REPORT_S
        newest = await self._policies.report(self._process, *news)
        self._reported = news
        return newest

    async def _catch_up(self, revision: int) -> None:
        if revision != self._revision:
            self._records = await self._policies.all()
            self._revision = revision


def policy_not_found(name: str) -> NotFound:
    return NotFound(
        "policy_not_found", f"there is no policy {name}; register it with PUT /v1/policies/{name}", {"policy": name}
    )
