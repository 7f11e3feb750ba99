"""The judge server as a process: load the model, listen, publish itself, and drain at SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from dataclasses import dataclass, field, replace

from aiohttp import web
from threadpoolctl import threadpool_limits

from gym.config import is_loopback
from gym.errors import SettingsError
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Store
from gym.state.replicas import LEASE_TTL_S, Replica, Replicas
from workers.judge_server.app import JudgeServer
from workers.judge_server.scorer import load_scorer

DRAIN_S = 30.0
SEEN_S = 2.0  # judge workers have read within this time that it drains
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """The server's options. With `redis_url` it is published as a replica of `judge`; others reach it at `url`."""

    kind: str
    model: str | None = None
    judge: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    url: str | None = None
    redis_url: str | None = None
    prefix: str = "farm"
    batch_size: int = 32
    batch_wait_s: float = 0.005
    capacity: int = 1024
    threads: int = 1
    api_key: str | None = field(default=None, repr=False)


def run(options: ServerOptions) -> int:
    """Run until SIGTERM or SIGINT; return the exit code. Raises SettingsError before it listens."""
    if not is_loopback(options.host) and options.api_key is None:
        raise SettingsError(
            f"the host is {options.host}, which others can reach, and there is no key: give --api-key, and the same as "
            "`api_key` of the judge in the settings, or listen on 127.0.0.1"
        )
    scorer = load_scorer(options.kind, options.model)
    # BLAS threads spin while they wait for each other: on a busy machine that takes six times the CPU
    threadpool_limits(limits=options.threads, user_api="blas")
    server = JudgeServer(
        options.kind,
        scorer,
        batch_size=options.batch_size,
        batch_wait_s=options.batch_wait_s,
        capacity=options.capacity,
        api_key=options.api_key,
    )
    return asyncio.run(_serve(options, server))


async def _serve(options: ServerOptions, server: JudgeServer) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(server.app(), access_log=None, keepalive_timeout=75.0, shutdown_timeout=5.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.host, options.port)
        try:
            await site.start()
        except OSError as error:
            where = f"{options.host}:{options.port}"
            raise SettingsError(f"{where} cannot be listened on: {error.strerror}; give another --port") from None
        port = runner.addresses[0][1]
        url = options.url or f"http://{options.host}:{port}"
        sys.stdout.write(f"ready {url}\n")
        sys.stdout.flush()
        if options.redis_url is None or options.judge is None:
            await stop.wait()
        else:
            await _published(options, server, url, stop)
    finally:
        await runner.cleanup()
    return 0


async def _published(options: ServerOptions, server: JudgeServer, url: str, stop: asyncio.Event) -> None:
    """Renew the lease until the server stops, then let calls end before the record is deleted."""
    assert options.redis_url is not None  # noqa: S101  asked before
    assert options.judge is not None  # noqa: S101  likewise
    store = Store.connect(options.redis_url, prefix=options.prefix)
    replicas = Replicas(store)
    replica = Replica(
        judge=options.judge,
        replica=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
        url=url,
        kind=server.kind,
        model=server.scorer.model,
        version=server.scorer.version,
        capacity=server.capacity,
    )
    try:
        while not stop.is_set():
            await _publish(replicas, replica, server)
            await _pause(stop, LEASE_TTL_S / 4)
        await _publish(replicas, replace(replica, state="draining"), server)
        await asyncio.sleep(SEEN_S)
        await _pause(server.idle, DRAIN_S)
        await replicas.withdraw(replica.judge, replica.replica)
    except RedisError as error:
        _LOG.warning("not withdrawn: %s; its lease ends by itself", error, extra={"action": "replica_left"})
    finally:
        await store.close()


async def _publish(replicas: Replicas, replica: Replica, server: JudgeServer) -> None:
    now = replace(replica, in_flight=server.in_flight, waiting=server.batcher.waiting)
    try:
        await replicas.publish(now)
    except RedisError as error:
        _LOG.warning("lease not renewed: %s", error, extra={"action": "lease_failed"})


async def _pause(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
