"""`farm up`: the whole farm on one machine, as children of one process in the foreground.

Every fault that can be detected early (a taken port, a data directory in use, a Redis that does not answer) is an error
before anything is started. Redis is started first, the rest together. They stop in the order in which work flows:
processes that accept work, then the workers with their drain, then Redis.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from api.local import dashboard
from api.local.forking import ROLES, ForkServer
from api.local.grace import GRACE_S
from api.local.reload import restart_on_change, watched
from api.local.supervisor import ChildSpec, Supervisor
from gym.config import Settings, base_url, proxy_url
from gym.errors import FarmError, SettingsError
from gym.private_files import write_private
from gym.sandbox.choose import require_named
from gym.state.redis.data_dir import DataDirLock
from gym.state.redis.embedded import LOAD_TIMEOUT_S, START_TIMEOUT_S, EmbeddedRedis, ServerState, server_state
from gym.state.redis.eviction import require_noeviction
from gym.state.redis.format import require_format

READY_TIMEOUT_S = 60.0
POLL_S = 0.05
SYNC_EVERY_S = 1.0
ADDRESSES_FILE = "farm.json"
POOL_BAD_INPUT = 2
"""Exit status of `farm judge` if its configuration cannot work (workers.judge_pool.main)."""
FLOWER_NICENESS = 10  # watching must not cost rollouts
INTAKE, WORK, STORAGE = range(3)
"""Stages of a shutdown."""

Children = Callable[[Settings], Iterable[ChildSpec]]


class NotReady(FarmError):
    """The farm was started and cannot accept work."""


def run(
    settings: Settings,
    *,
    verbose: bool = False,
    children: Children | None = None,
    fork_server: ForkServer | None = None,
    reload: bool = False,
) -> int:
    """Run the farm until a signal; the exit status is 0 after a drain.

    `children` returns the processes beside Redis (`children_of` except in tests with stand-ins); the caller owns the
    `fork_server`. `reload` restarts the processes when code changes, and uses no fork server, which would hold the old
    code. Raises SettingsError before anything is started, NotReady and ChildFailed after everything has been stopped.
    """
    settings = settings.model_copy(update={"data_dir": settings.data_dir.resolve()})
    if settings.flower.enabled:
        dashboard.check(settings)
    if settings.worker.processes:
        require_named(settings.sandbox)
    if settings.pool.judges:
        from workers.judge_pool.orders import deployments_of

        deployments_of(settings)
    paths = watched(settings) if reload else []
    settings = with_ports(settings)
    lock = DataDirLock.take(settings.data_dir)
    try:
        farm = _Farm(settings, lock, children or children_of, verbose=verbose, fork_server=fork_server, reloaded=paths)
        return asyncio.run(farm.run())
    finally:
        lock.release()


def with_ports(settings: Settings) -> Settings:
    """Return the settings with a free port in place of each 0. Raises SettingsError naming a port that is taken."""
    sections = {"api": "--api-port", "proxy": "--proxy-port"}
    if settings.flower.enabled:
        sections["flower"] = "--flower-port"
    update = {}
    with ExitStack() as held:
        for name, option in sections.items():
            section = getattr(settings, name)
            listener = held.enter_context(_listen(settings.host, section.port, option))
            update[name] = section.model_copy(update={"port": listener.getsockname()[1]})
    return settings.model_copy(update=update)


def environment_of(settings: Settings) -> dict[str, str]:
    """Return all set values as `FARM_…` variables, so that a child reads the same values and no file."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in _variables(settings)}


class _Farm:
    """One run of `farm up`."""

    def __init__(
        self,
        settings: Settings,
        lock: DataDirLock,
        children: Children,
        *,
        verbose: bool,
        fork_server: ForkServer | None,
        reloaded: Sequence[Path],
    ) -> None:
        self._settings = settings
        self._lock = lock
        self._children = children
        self._verbose = verbose
        self._fork_server = fork_server
        self._console = Console(stderr=True, highlight=False)
        self._reloaded = reloaded
        self._beside: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        supervisor = Supervisor(self._settings.data_dir / "logs", echo=self._verbose, fork_server=self._fork_server)
        asked: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()

        def on_signal(number: signal.Signals) -> None:
            if not asked.done():
                asked.set_result(number)
                self._console.print("draining; a second signal kills")
            else:
                self._console.print("killing")
                supervisor.kill()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
        start = asyncio.create_task(self._start(supervisor), name="start")
        try:
            ends: list[asyncio.Future[Any]] = [asked, supervisor.failed]
            await asyncio.wait([start, *ends], return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            failure = supervisor.failed.result() if supervisor.failed.done() else None
        finally:
            start.cancel()
            await asyncio.wait({start})
            (self._settings.data_dir / ADDRESSES_FILE).unlink(missing_ok=True)
            overdue = await supervisor.stop()
            for task in self._beside:
                task.cancel()
        if failure is not None:
            raise failure
        if supervisor.killed:
            return 128 + asked.result()
        if overdue:
            self._console.print(f"killed after the time limit: {', '.join(overdue)}")
        return 0

    async def _start(self, supervisor: Supervisor) -> None:
        settings = await self._with_redis(supervisor)
        began = time.monotonic()
        await supervisor.start(*self._children(settings))
        api = base_url(settings.host, settings.api.port)
        try:
            await _until_ready(settings, began + READY_TIMEOUT_S)
        except NotReady as error:
            reports = [child.report() for child in supervisor.children.values() if child.starts > 1]
            raise NotReady("\n".join([str(error), *reports, f"the logs are in {supervisor.log_dir}"])) from None
        flower = None
        if settings.flower.enabled:
            flower = base_url(settings.host, settings.flower.port) + dashboard.url_prefix(settings.flower)
        proxy = proxy_url(settings)
        addresses = {"api": api, "proxy": proxy, "flower": flower, "pid": os.getpid()}
        write_private(settings.data_dir / ADDRESSES_FILE, json.dumps(addresses) + "\n")
        sys.stdout.write(f"ready {api}\n")
        sys.stdout.flush()
        self._explain(settings, api, proxy, flower)
        if self._reloaded:
            self._beside.append(asyncio.create_task(restart_on_change(supervisor, self._reloaded), name="reload"))

    async def _with_redis(self, supervisor: Supervisor) -> Settings:
        """Return the settings with the URL of a Redis that answers: the embedded one unless the settings name one."""
        settings = self._settings
        if settings.redis.url is not None:
            if await asyncio.to_thread(server_state, settings.redis.url) is not ServerState.READY:
                raise SettingsError(
                    f"no Redis answers at {settings.masked()['redis']['url']}: check --redis-url and its password, "
                    "or leave it out to use the embedded server"
                )
            await asyncio.to_thread(require_noeviction, settings.redis.url)
            await asyncio.to_thread(require_format, settings.redis.url, settings.redis.prefix)
            return settings
        embedded = EmbeddedRedis(settings.data_dir, lock=self._lock)
        command = embedded.prepare()
        await supervisor.start(
            ChildSpec(
                name="redis",
                command=command,
                stop_stage=STORAGE,
                stop_within_s=START_TIMEOUT_S,
                inherited_fds=(self._lock.fd,),
            )
        )
        began = time.monotonic()
        while (state := embedded.state()) is not ServerState.READY:
            bound_s = LOAD_TIMEOUT_S if state is ServerState.LOADING else START_TIMEOUT_S
            if time.monotonic() - began > bound_s:
                raise NotReady(f"the embedded Redis is {state}; {supervisor.children['redis'].report()}")
            await asyncio.sleep(POLL_S / 5)
        self._beside.append(asyncio.create_task(_keep_synced(embedded), name="sync"))
        await asyncio.to_thread(require_format, embedded.url, settings.redis.prefix)
        redis = settings.redis.model_copy(update={"url": embedded.url})
        return settings.model_copy(update={"redis": redis})

    def _explain(self, settings: Settings, api: str, proxy: str, flower: str | None) -> None:
        option = "" if settings.api.port == type(settings.api)().port else f" --url {api}"
        self._console.print(f"[bold]farm[/]    {api}  (API: {api}/docs)")
        self._console.print(f"[bold]proxy[/]   {proxy}/v1  (a base_url for agents of your own)")
        if flower:
            self._console.print(f"[bold]Flower[/]  {flower}")
        if not settings.worker.processes:
            self._console.print("[bold]workers[/] none on this machine; start some with `farm worker`")
        self._console.print(f"[bold]data[/]    {settings.data_dir}  (logs in {settings.data_dir / 'logs'})")
        if not settings.policies:
            self._console.print("[bold]policy[/]  none is configured; `farm mock-model` serves one for trying out")
        self._console.print(f"[bold]submit[/]  farm submit ROWS.jsonl --follow{option}", soft_wrap=True)
        self._console.print("Ctrl-C drains and stops; the state is kept.")


def children_of(settings: Settings) -> Iterator[ChildSpec]:
    """Return the child processes beside Redis.

    The workers come first: they initialize while the fork server imports the modules of the others.
    """
    environment = environment_of(settings)
    ours = frozenset(name for name in os.environ if name.startswith("FARM_"))

    def child(
        name: str, command: str, stage: int, stop_within_s: float, niceness: int = 0, final: int | None = None
    ) -> ChildSpec:
        return ChildSpec(
            name=name,
            command=[sys.executable, "-m", "api.cli.main", command],
            environment=environment,
            dropped=ours,
            stop_stage=stage,
            stop_within_s=stop_within_s,
            # Redis goes down with the supervisor, so there is nothing that a drain could still save
            orphan_signal=signal.SIGKILL,
            niceness=niceness,
            final_statuses=frozenset() if final is None else frozenset({final}),
            forked=[command] if command in ROLES else (),
        )

    drain_s = settings.worker.kill_s
    for number in range(1, settings.worker.processes + 1):
        yield child(f"worker-{number}", "worker", WORK, drain_s)
    for number in range(1, settings.judging.processes + 1 if settings.judges else 1):
        yield child(f"judge-worker-{number}", "judge-worker", WORK, drain_s)
    if settings.pool.judges:
        pool_drain_s = max(each.drain_s for each in settings.pool.judges.values()) + GRACE_S
        yield child("judge", "judge", WORK, pool_drain_s, final=POOL_BAD_INPUT)
    yield child("dispatcher", "dispatcher", INTAKE, 2 * GRACE_S)
    yield child("proxy", "proxy", WORK, drain_s)
    yield child("api", "api", INTAKE, 2 * GRACE_S)
    if settings.flower.enabled:
        yield child("flower", "flower", INTAKE, GRACE_S, niceness=FLOWER_NICENESS)


async def _keep_synced(redis: EmbeddedRedis) -> None:
    """Synchronize the disk regularly, to bound the loss at a power failure."""
    while True:
        await asyncio.sleep(SYNC_EVERY_S)
        await asyncio.to_thread(redis.sync)


async def _until_ready(settings: Settings, give_up_at: float) -> None:
    """Wait for /readyz, or for /healthz if the workers run elsewhere. Raises NotReady with the missing parts."""
    path = "/readyz" if settings.worker.processes else "/healthz"
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host  # noqa: S104 - compared, not listened on
    missing = "the api does not answer"
    while time.monotonic() < give_up_at:
        try:
            async with asyncio.timeout(2.0):
                status, body = await _get(host, settings.api.port, path)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            status, body = 0, b""
        if status == 200:
            return
        if status:
            missing = f"{path} answers {status}: {body.decode(errors='replace')[:500]}"
        await asyncio.sleep(POLL_S)
    raise NotReady(f"the farm is not ready after {READY_TIMEOUT_S:.0f} s: {missing}")


async def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """Send a GET by hand: importing an HTTP client would take longer than the whole start."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        named = f"[{host}]" if ":" in host else host
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {named}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read(64 * 1024)).partition(b"\r\n\r\n")
        _, status, *_ = head.split(maxsplit=2)  # a ValueError if the api died before it had sent the status
        return int(status), body
    finally:
        writer.close()


def _listen(host: str, port: int, option: str) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        unknown_host = isinstance(error, socket.gaierror)
        reason = error.strerror if unknown_host else os.strerror(error.errno or 0)  # create_server repeats the address
        raise SettingsError(
            f"cannot listen on {host}:{port} ({reason}): give another port with {option}, 0 for any free one"
        ) from None


def _variables(section: BaseModel, prefix: str = "FARM_") -> Iterator[tuple[str, Any]]:
    values = section.model_dump(mode="json")
    for name in type(section).model_fields:
        inner = getattr(section, name)
        if isinstance(inner, BaseModel):
            yield from _variables(inner, f"{prefix}{name.upper()}_")
        elif values[name] is not None:
            yield f"{prefix}{name.upper()}", values[name]
