"""Registry of judge replicas: the URL of each, and whether it is ready.

This is the interface between the farm and the servers of judges (`farm judge-server`, the judge pool). A replica
registers under a lease and renews it with its state and load; an expired one is not used. Judge workers read the list
about once a second (`ReplicaCache`). So a replica that wants to end reports `draining` first, waits until its calls are
answered, and then withdraws.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

import orjson
from redis.exceptions import RedisError

from gym.errors import Invalid
from gym.jsontypes import JsonObject
from gym.judges.settings import JudgeSettings
from gym.model_client.http.hosts import EVERY_HOST, HostRules, check_hosts
from gym.model_client.routing.served_model import ServedModel
from gym.state.redis.store import Store
from gym.state.redis.unreadable import read_object, read_or_none

ReplicaState = Literal["starting", "ready", "draining", "down"]
REFRESH_S = 1.0
LEASE_TTL_S = 8.0
FORGET_S = 3600.0
MOST_REFUSED = 256  # remembered, so that each is logged once
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One server of a judge. `version` names its weights, `capacity` is the number of concurrent calls.

    `url` is its base URL, under which it has `/v1/chat/completions` or `/v1/scores`, and `/health` beside `/v1`.
    """

    judge: str
    replica: str
    url: str
    kind: str
    state: ReplicaState = "ready"
    model: str = ""
    version: str = ""
    capacity: int = 0
    in_flight: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class PublishedReplica:
    """A registered replica; its lease may have expired (negative seconds)."""

    replica: Replica
    lease_ends_in_s: float

    @property
    def ready(self) -> bool:
        """Return whether it takes calls."""
        return self.lease_ends_in_s > 0 and self.replica.state == "ready"


class Replicas:
    """Registry of judge replicas in Redis: publish with a lease, withdraw, list."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def publish(self, replica: Replica, *, ttl_s: float = LEASE_TTL_S) -> None:
        """Register a replica, or renew its lease with its present state and load."""
        keys = self._store.keys
        name = f"{replica.judge} {replica.replica}"
        ends = await self._store.now_ms() + int(ttl_s * 1000)
        pipeline = self._store.redis.pipeline(transaction=True)
        pipeline.hset(keys.judge_replica_info, name, orjson.dumps(asdict(replica)))
        pipeline.zadd(keys.judge_replicas, {name: ends})
        await pipeline.execute()

    async def withdraw(self, judge: str, replica: str) -> None:
        """Remove a replica."""
        keys = self._store.keys
        pipeline = self._store.redis.pipeline(transaction=True)
        pipeline.zrem(keys.judge_replicas, f"{judge} {replica}")
        pipeline.hdel(keys.judge_replica_info, f"{judge} {replica}")
        await pipeline.execute()

    async def all(self) -> list[PublishedReplica]:
        """Return every registered replica, by judge and name; those expired for an hour are removed."""
        keys, redis = self._store.keys, self._store.redis
        now = await self._store.now_ms()
        leases = await redis.zrange(keys.judge_replicas, 0, -1, withscores=True)
        if not leases:
            return []
        infos = await redis.hmget(keys.judge_replica_info, [name for name, _ in leases])
        found = []
        for (name, ends), info in zip(leases, infos, strict=True):
            left_s = (ends - now) / 1000
            if info is None or left_s < -FORGET_S:
                await redis.zrem(keys.judge_replicas, name)
                await redis.hdel(keys.judge_replica_info, name)
                continue
            replica = read_or_none("replica", name, read_replica, info)
            if replica is not None:
                found.append(PublishedReplica(replica, left_s))
        return sorted(found, key=lambda each: (each.replica.judge, each.replica.replica))


def read_replica(text: bytes) -> Replica:
    """Return a replica's report without fields that this version does not know. Raises a decode error."""
    record = read_object(text)
    known = {each.name for each in fields(Replica)}
    replica = Replica(**{name: value for name, value in record.items() if name in known})
    if not all(isinstance(value, str) for value in (replica.judge, replica.replica, replica.url, replica.state)):
        raise TypeError("judge, replica, url and state are texts")
    return replica


class ReplicaCache:
    """A process's copy of the list, as the model client needs it: a policy whose endpoints change."""

    def __init__(
        self,
        store: Store,
        judges: Mapping[str, JudgeSettings],
        hosts: HostRules = EVERY_HOST,
    ) -> None:
        self._hosts = hosts
        self._refused: set[str] = set()
        self._replicas = Replicas(store)
        self._judges = judges
        self._records: dict[str, ServedModel] = {}
        self._versions: dict[str, str] = {}
        self._revision = 0
        for name, settings in judges.items():
            if settings.base_urls:
                self._enter(name, settings.base_urls)

    def get(self, name: str) -> ServedModel | None:
        """Return a judge's endpoints, `None` if no ready replica is registered."""
        return self._records.get(name)

    def version(self, name: str) -> str:
        """Return the version of a judge's replicas, empty if they differ or report none."""
        return self._versions.get(name, "")

    async def refresh(self) -> None:
        """Look for changes once."""
        ready: dict[str, list[Replica]] = {}
        for published in await self._replicas.all():
            if published.ready and self._may_be_asked(published.replica):
                ready.setdefault(published.replica.judge, []).append(published.replica)
        for name, settings in self._judges.items():
            if settings.base_urls:
                continue
            replicas = ready.get(name, [])
            versions = {replica.version for replica in replicas}
            self._versions[name] = versions.pop() if len(versions) == 1 else ""
            urls = tuple(replica.url for replica in replicas)
            known = self._records.get(name)
            if not urls:
                self._records.pop(name, None)
            elif known is None or tuple(known.spec.base_urls) != urls:
                self._enter(name, urls)

    def _may_be_asked(self, replica: Replica) -> bool:
        try:
            check_hosts([replica.url], self._hosts.all_patterns)
        except Invalid:
            if replica.url not in self._refused and len(self._refused) < MOST_REFUSED:
                self._refused.add(replica.url)
                _LOG.warning(
                    "judge %s: its replica %s is not asked, since judge_hosts does not allow its host",
                    replica.judge,
                    replica.replica,
                    extra={"action": "replica_refused"},
                )
            return False
        return True

    async def keep_fresh(self) -> None:
        """Look for changes until cancelled; while Redis is away the last copy is used."""
        while True:
            try:
                await self.refresh()
            except RedisError as error:
                _LOG.warning("replicas not refreshed: %s", error, extra={"action": "replicas_stale"})
            await asyncio.sleep(REFRESH_S)

    def _enter(self, name: str, urls: tuple[str, ...]) -> None:
        self._revision += 1
        spec = self._judges[name].spec(urls)
        self._records[name] = ServedModel(
            kind="judge", name=name, spec=spec, revision=self._revision, paused=None, version=None
        )


def shown(published: PublishedReplica) -> JsonObject:
    """Return a replica as `GET /v1/judges` shows it."""
    info = asdict(published.replica)
    del info["judge"]
    url = str(info["url"])
    return info | {
        "url": f"{url.partition('://')[0]}://{url.rpartition('@')[2]}" if "@" in url else url,
        "alive": published.lease_ends_in_s > 0,
        "lease_ends_in_s": published.lease_ends_in_s,
    }
