"""Health check of the images: liveness and readiness of the container's role. Exit status 0 or 1.

    health.py [--live | --ready] [ROLE]

`--live` asks the process alone: api, proxy and Flower answer HTTP at their settings' port, the others answer on a
separate socket. `--ready` asks Redis: a worker or judge worker of this host holds a lease, some dispatcher leads, a
judge pool reports its state. By default `--live` is checked first, then `--ready`. The role is the argument, else the
command of process 1. Ports given as `--port` instead of FARM_… or FARM_CONFIG are unknown here.
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from gym.processes.liveness import NotAliveError, check_liveness

if TYPE_CHECKING:
    from gym.config import Settings

ROLES = ("api", "proxy", "flower", "dispatcher", "worker", "judge-worker", "judge")
WAIT_S = 4.0


def check_live(role: str) -> None:
    """Raise OSError or NotAliveError unless the process answers."""
    if role in ("api", "proxy", "flower"):
        settings = read_settings()
        ports = {"api": settings.api.port, "proxy": settings.proxy.port, "flower": settings.flower.port}
        path = f"{settings.flower.url_prefix}/healthcheck" if role == "flower" else "/healthz"
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[role]}{path}", timeout=WAIT_S):
            return
    check_liveness(role, timeout_s=WAIT_S)


def missing_in_redis(role: str) -> str:
    """Return the entry that the role lacks in Redis, or an empty text. Raises RedisError."""
    if role in ("api", "proxy", "flower"):
        return ""
    from redis import Redis

    from gym.state.redis.embedded import embedded_url
    from gym.state.redis.keys import Keys

    settings = read_settings()
    keys = Keys(settings.redis.prefix)
    url = settings.redis.url or embedded_url(settings.data_dir)
    with Redis.from_url(url, socket_timeout=WAIT_S, socket_connect_timeout=WAIT_S) as redis:
        if role in ("worker", "judge-worker"):
            seconds, micros = redis.time()
            alive = redis.zrangebyscore(keys.workers, seconds * 1000 + micros / 1000, "+inf")
            mine = f"{socket.gethostname()}-".encode()
            return "" if any(name.startswith(mine) for name in alive) else "no worker of this host holds a lease"
        key = keys.dispatcher if role == "dispatcher" else keys.judge_pool
        return "" if redis.exists(key) else f"no key {key} in Redis"


def read_settings() -> Settings:
    """Return the settings of this container."""
    from gym.config import load_settings

    config = os.environ.get("FARM_CONFIG")
    return load_settings(Path(config) if config else None)


def main() -> int:
    """Run the check, print its result and return the exit status."""
    options = {word for word in sys.argv[1:] if word in ("--live", "--ready")} or {"--live", "--ready"}
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    words = words or Path("/proc/1/cmdline").read_bytes().decode().split("\0")
    role = next((word for word in words if word in ROLES), None)
    if role is None:
        sys.stdout.write(f"no role among {words}\n")
        return 1
    wrong = ""
    try:
        if "--live" in options:
            check_live(role)
        if "--ready" in options:
            wrong = missing_in_redis(role)
    except NotAliveError as error:
        wrong = str(error)
    except Exception as error:  # noqa: BLE001  any error means that this container is not healthy
        wrong = f"{type(error).__name__}: {error}"
    sys.stdout.write(f"{role}: {wrong or 'alive'}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
