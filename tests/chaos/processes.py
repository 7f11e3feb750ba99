"""A real farm and a scripted model server as processes that can be killed one by one, and are started again.

Invariant: everything that is started carries `MARK` in its environment, so that every process left at the end is
found, however it was orphaned. `farm up` restarts what it supervises; `farm up` itself and the model server are
started again by this module, on the same ports and the same data directory, as an init system would.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from api.local.local_farm import farm_process, free_port, mock_policy
from gym.state.redis.embedded import ServerState, server_state
from tests.chaos.observations import Kill, Outage
from tests.chaos.schedule import Kind, Strike
from tests.chaos.small_disk import SmallDisk

MARK = "CHAOS_RUN"
ENVIRONMENT = Path(__file__).with_name("journaled_counter.py")
STOP_TIMEOUT_S = 90.0
POLL_S = 0.05
_CHILDREN = frozenset({"api", "worker", "judge-worker", "dispatcher", "proxy", "flower"})
_JUDGE = {"kind": "remote", "model": "judge", "template": "{answer}\n{reference}", "cache": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class FarmOptions:
    """Size of the farm and latency of its model."""

    workers: int = 2
    concurrency: int = 32
    model_latency_s: float = 0.2
    small_disk: bool = False  # of the trajectories; see `ChaosFarm.disk`


class ChaosFarm:
    """A farm that can be killed. `start` first; `stop` at the end in any case."""

    def __init__(self, folder: Path, options: FarmOptions, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.data_dir = folder / "farm"
        self.temporary = folder / "tmp"
        self.journal = folder / "sessions.txt"
        self.model_log = folder / "calls.jsonl"
        self.disk = SmallDisk(self.data_dir / "blobs")
        self.kills: list[Kill] = []
        self.killed: set[int] = set()
        self.outages: list[Outage] = []
        self.returned: list[float] = []  # when a worker that stood still went on
        self.unasked_ends: list[str] = []
        self._options = options
        self._mark = uuid.uuid4().hex
        ports = {name: free_port() for name in ("api", "proxy", "flower", "model")}
        self.url, self.proxy_url, self.flower_url, self.model_url = (f"http://127.0.0.1:{p}" for p in ports.values())
        self._ports = ports
        policy = mock_policy(self.model_url).model_dump(mode="json", exclude_none=True)
        self._settings = {
            "FARM_POLICIES": orjson.dumps({"policy": policy}).decode(),
            "FARM_ENVIRONMENTS": orjson.dumps(
                [f"{ENVIRONMENT}:JournaledCounter", f"{ENVIRONMENT}:JudgedCounter"]
            ).decode(),
            # the same scripted model as the policy's, which dies and comes back like it
            "FARM_JUDGES": orjson.dumps({"chaos": _JUDGE | {"base_urls": [self.model_url]}}).decode(),
            "FARM_RESULTS_INLINE_BYTES": "2048",  # so that some trajectories are files
            "FARM_SESSIONS_IDLE_S": "5",  # so that those left open are seen to be closed
            "FARM_SESSIONS_CALL_TIMEOUT_S": "3",
            MARK: self._mark,
            "TMPDIR": str(self.temporary),
            **settings,
        }
        self._up: subprocess.Popen[bytes] | None = None
        self._model: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start everything; wait until the farm is ready is the caller's."""
        self.temporary.mkdir(parents=True)
        self.data_dir.mkdir(mode=0o700)
        if self._options.small_disk:
            self.disk.attach()
        self.journal.touch()
        self._start_model()
        self._start_up()
        self._keep(self._watch_up())

    async def stop(self) -> list[str]:
        """End everything as a user does; return all faults, orphans included. Nothing is left afterwards."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        breaches = []
        if self._up is not None:
            self._up.terminate()
            status = await asyncio.to_thread(_ended, self._up)
            if status != 0:
                breaches.append(f"`farm up` ended with {status} after SIGTERM")
        if self._model is not None:
            self._model.terminate()
            await asyncio.to_thread(_ended, self._model)
        # those of a killed `farm up` may be on their last breath
        left = await self._until_gone(5.0)
        breaches += [f"a process was left: {' '.join(process.info['cmdline'] or [])}" for process in left]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return breaches

    async def until_model_answers(self, within_s: float) -> None:
        """Wait for the model server to be back. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self._ports["model"])
                    writer.close()
                    return
                await asyncio.sleep(POLL_S)

    def redis_url(self) -> str | None:
        """The farm's Redis: the one it was given, else the embedded one, None where that has never been started."""
        if "FARM_REDIS_URL" in self._settings:
            return self._settings["FARM_REDIS_URL"]
        with contextlib.suppress(FileNotFoundError):
            return (self.data_dir / "redis" / "url").read_text()
        return None

    def pids(self, kind: Kind) -> list[int]:
        """The processes of a kind that can be killed now."""
        if kind == "model":
            return [self._model.pid] if self._model is not None and self._model.poll() is None else []
        if kind == "farm":
            return [self._up.pid] if self._up is not None and self._up.poll() is None else []
        return [pid for pid, role in self._children() if role == kind]

    def strike(self, strike: Strike) -> Kill | None:
        """Kill a process of the kind with its group; return None if there is no such process."""
        pids = self.pids(strike.kind)
        if not pids:
            return None
        pid = sorted(pids)[int(strike.pick * len(pids))]
        family = {child for child, _ in self._children()} if strike.kind == "farm" else set()
        at = time.time()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        self.killed |= family | {pid}
        kill = Kill(at=at, kind=strike.kind, pid=pid)
        self.kills.append(kill)
        if strike.kind in ("redis", "farm"):
            self._keep(self._watch_outage(at))
        if strike.kind == "model":
            self._keep(self._restart_model(strike.down_s))
        if strike.kind == "farm":
            self._keep(self._restart_up(strike.down_s))
        return kill

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start_up(self) -> None:
        options = ["--data-dir", str(self.data_dir)]
        for name in ("api", "proxy", "flower"):
            options += [f"--{name}-port", str(self._ports[name])]
        options += ["--workers", str(self._options.workers), "--concurrency", str(self._options.concurrency)]
        self._up = farm_process("up", options, self._settings, self.folder / "up.log")

    def _start_model(self) -> None:
        options = ["--port", str(self._ports["model"]), "--log-file", str(self.model_log)]
        options += ["--latency-s", str(self._options.model_latency_s)]
        self._model = farm_process("mock-model", options, self._settings, self.folder / "model.log")

    async def _restart_model(self, down_s: float) -> None:
        await asyncio.sleep(down_s)
        await asyncio.to_thread(_ended, self._model)
        self._start_model()

    async def _restart_up(self, down_s: float) -> None:
        await asyncio.to_thread(_ended, self._up)
        await asyncio.sleep(down_s)
        self._start_up()

    async def _watch_up(self) -> None:
        """`farm up` may only end by being killed; where it gives up by itself, that is a breach."""
        while True:
            await asyncio.sleep(0.2)
            status = self._up.poll() if self._up is not None else None
            if status is not None and status != -signal.SIGKILL:
                self.unasked_ends.append(f"`farm up` ended by itself with {status}; its log: {self._log_end()}")
                self._start_up()

    async def _watch_outage(self, began: float) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            url = self.redis_url()
            if url and await asyncio.to_thread(server_state, url) is ServerState.READY:
                self.outages.append(Outage(began, time.time()))
                return

    def _children(self) -> Iterator[tuple[int, Kind]]:
        """The processes under `farm up`, with their kinds."""
        if self._up is None or self._up.poll() is not None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._up.pid).children():
                with contextlib.suppress(psutil.Error):
                    kind = _kind(child.cmdline())
                    if kind is not None:
                        yield child.pid, kind

    async def _until_gone(self, within_s: float) -> list[psutil.Process]:
        give_up_at = time.monotonic() + within_s
        while (left := self._marked()) and time.monotonic() < give_up_at:  # noqa: ASYNC110  the kernel has no event
            await asyncio.sleep(0.1)
        return left

    def _marked(self) -> list[psutil.Process]:
        """Every process on this machine that comes from this run."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self._mark:
                    found.append(process)
        return found

    def _log_end(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return " | ".join((self.folder / "up.log").read_text(errors="replace").splitlines()[-8:])
        return ""


def _kind(command: list[str]) -> Kind | None:
    if "api.cli.main" in command:
        name = command[command.index("api.cli.main") + 1]
        return name if name in _CHILDREN else None  # type: ignore[return-value]  # the set holds kinds only
    if "api.cli.fork_server" in command:
        return "fork-server"
    return "redis" if command and command[-1].endswith("redis.conf") else _server_kind(command)


def _server_kind(command: list[str]) -> Kind | None:
    """A Redis server shows its own title: the program and the address that it listens on."""
    return "redis" if command and ("valkey-server" in command[0] or "redis-server" in command[0]) else None


def _ended(process: subprocess.Popen[bytes] | None) -> int | None:
    if process is None:
        return None
    try:
        status = process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    if process.stdout is not None:
        process.stdout.close()
    return status
