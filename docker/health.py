"""The health check of the images: whether the role that a container runs is alive. Exit status 0 or 1, and a word why.

The role is the argument, else the command of process 1. Api, proxy and Flower answer HTTP at their settings' port; a
worker or judge worker of this host holds a lease in Redis; some dispatcher leads, if it is not this one; a judge pool
tells how it is. Ports given as `--port` and not in FARM_… or FARM_CONFIG are not seen.
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from pathlib import Path

from redis import Redis

from gym.config import Settings, load_settings
from gym.state.embedded import embedded_url
from gym.state.keys import Keys

ROLES = ("api", "proxy", "flower", "dispatcher", "worker", "judge-worker", "judge")
WAIT_S = 4.0


def check(role: str, settings: Settings) -> str:
    """What is wrong, empty if nothing. Raises OSError and RedisError where something does not answer."""
    if role in ("api", "proxy", "flower"):
        ports = {"api": settings.api.port, "proxy": settings.proxy.port, "flower": settings.flower.port}
        path = f"{settings.flower.url_prefix}/healthcheck" if role == "flower" else "/healthz"
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[role]}{path}", timeout=WAIT_S):
            return ""
    keys = Keys(settings.redis.prefix)
    url = settings.redis.url or embedded_url(settings.data_dir)
    with Redis.from_url(url, socket_timeout=WAIT_S, socket_connect_timeout=WAIT_S) as redis:
        if role in ("worker", "judge-worker"):
            seconds, micros = redis.time()
            alive = redis.zrangebyscore(keys.workers, seconds * 1000 + micros / 1000, "+inf")
            mine = f"{socket.gethostname()}-".encode()
            return "" if any(name.startswith(mine) for name in alive) else "no worker of this host holds a lease"
        key = keys.dispatcher if role == "dispatcher" else keys.judge_pool
        return "" if redis.exists(key) else f"nothing lies under {key}"


def main() -> int:
    """Check, say, and return the exit status."""
    words = sys.argv[1:] or Path("/proc/1/cmdline").read_bytes().decode().split("\0")
    role = next((word for word in words if word in ROLES), None)
    if role is None:
        sys.stdout.write(f"no role among {words}\n")
        return 1
    config = os.environ.get("FARM_CONFIG")
    try:
        wrong = check(role, load_settings(Path(config) if config else None))
    except Exception as error:  # noqa: BLE001  whatever it is, this container is not well
        wrong = f"{type(error).__name__}: {error}"
    sys.stdout.write(f"{role}: {wrong or 'alive'}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
