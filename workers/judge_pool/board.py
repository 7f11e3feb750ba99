"""The pool's records in Redis: replicas under leases (gym.state.replicas reads them), status, orders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from workers.judge_pool.plan import RedisKeys
from workers.judge_pool.resp import Redis, Reply

LEASE_TTL_S = 8.0
MOST_ORDERS = 100
OURS = "pool-"
"""How the names of the pool's replicas begin; others' entries are not touched."""


class Board:
    """The pool's access to Redis over one connection; each call raises RedisAway if Redis cannot be reached."""

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._keys = keys

    def publish(self, replicas: Sequence[Mapping[str, Any]], status: Mapping[str, Any]) -> None:
        """Renew the leases of these replicas and store the pool's status."""
        ends = self.now_ms() + int(LEASE_TTL_S * 1000)
        commands: list[tuple[Any, ...]] = [
            ("SET", self._keys.status, json.dumps(status), "PX", int(LEASE_TTL_S * 1000))
        ]
        for replica in replicas:
            name = f"{replica['judge']} {replica['replica']}"
            commands.append(("HSET", self._keys.infos, name, json.dumps(replica)))
            commands.append(("ZADD", self._keys.leases, ends, name))
        self._redis.run(("MULTI",), *commands, ("EXEC",))

    def strike_off(self, judge: str, replica: str) -> None:
        """Delete a replica's record."""
        name = f"{judge} {replica}"
        self._redis.run(("ZREM", self._keys.leases, name), ("HDEL", self._keys.infos, name))

    def mark_down(self, judges: Sequence[str]) -> int:
        """Mark replicas that an earlier pool process left for these judges, so none is asked; return their number."""
        [flat] = self._redis.run(("HGETALL", self._keys.infos))
        found = 0
        for name, info in _pairs(flat):
            judge, _, replica = name.partition(" ")
            if judge not in judges or not replica.startswith(OURS):
                continue
            down = json.dumps({**json.loads(info), "state": "down", "in_flight": 0, "waiting": 0})
            self._redis.run(("HSET", self._keys.infos, name, down), ("ZADD", self._keys.leases, self.now_ms(), name))
            found += 1
        return found

    def orders(self) -> list[dict[str, Any]]:
        """Return the orders of `farm judge drain` and `farm judge scale`, oldest first, each once."""
        taken, _ = self._redis.run(
            ("LRANGE", self._keys.orders, 0, MOST_ORDERS - 1), ("LTRIM", self._keys.orders, MOST_ORDERS, -1)
        )
        return [json.loads(each) for each in taken or () if isinstance(each, bytes)] if isinstance(taken, list) else []

    def queued(self, judges: Sequence[str]) -> dict[str, int]:
        """Return the number of rollouts that wait for each judge, over all open batches."""
        [batches] = self._redis.run(("ZRANGE", self._keys.active, 0, -1))
        names = [each.decode() for each in batches if isinstance(each, bytes)] if isinstance(batches, list) else []
        found = dict.fromkeys(judges, 0)
        if not names or not judges:
            return found
        fields = [f"{judge}|waiting" for judge in judges]
        rows = self._redis.run(*(("HMGET", self._keys.batch_judges.replace("*", name), *fields) for name in names))
        for row in rows:
            for judge, value in zip(judges, row if isinstance(row, list) else (), strict=False):
                found[judge] += int(value) if isinstance(value, bytes) else 0
        return found

    def now_ms(self) -> int:
        """Return the time of the server's clock."""
        [time] = self._redis.run(("TIME",))
        assert isinstance(time, list)  # noqa: S101  it is two numbers
        seconds, micros = (int(each) for each in time if isinstance(each, bytes))
        return seconds * 1000 + micros // 1000


def _pairs(flat: Reply) -> list[tuple[str, bytes]]:
    words = [each for each in flat if isinstance(each, bytes)] if isinstance(flat, list) else []
    return [(name.decode(), value) for name, value in zip(words[::2], words[1::2], strict=True)]
