"""A small supervisor: named child processes, started together, restarted when they crash, stopped in order.

Invariant: no child outlives its supervisor. Each child leads its own session, so that a Ctrl-C in the terminal reaches
the supervisor alone, which stops the children stage by stage; the kernel signals them if the supervisor dies. This
module knows nothing about the farm.

A crashed child is started again, at once after a long life and otherwise after a pause that doubles up to
`Restarts.longest_pause_s`, without limit. There is one exception, for a child that has never lived for
`Restarts.settled_s`: after `Restarts.first_attempts` failures its configuration cannot work, and `failed` gives the
reason. A SIGKILL comes from outside and does not count as a failure. A child whose first life ends with one of
`ChildSpec.final_statuses` is not started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from api.local.forking import ForkServer, NotForked, Process
from gym.errors import FarmError
from gym.private_files import append_private, make_private
from gym.processes.process_tree import end_with_parent
from gym.processes.subprocesses import start_process

TAIL_LINES = 20
LINE_BYTES = 64 * 1024
LOG_BYTES = 16 * 2**20
OLD_LOGS = 2
OUTPUT_TIMEOUT_S = 1.0


class ChildFailed(FarmError):
    """A child cannot be kept running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """How to run a child and how to stop it."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own environment."""
    dropped: frozenset[str] = frozenset()
    """Variables of the supervisor's environment that the child does not get."""
    stop_stage: int = 0
    """Children of a lower stage are stopped first, those of the same stage together."""
    stop_within_s: float = 10.0
    """Seconds from SIGTERM to SIGKILL."""
    orphan_signal: signal.Signals = signal.SIGTERM
    """Signal that the child gets when the supervisor dies."""
    inherited_fds: tuple[int, ...] = ()
    final_statuses: frozenset[int] = frozenset()
    """Exit statuses which mean, in the first life, however long, that the configuration cannot work."""
    niceness: int = 0
    """Niceness; above 0, the child uses processor time that the others leave."""
    forked: Sequence[str] = ()
    """Order for the fork server, used if there is one, instead of running the command."""


@dataclass(frozen=True, slots=True)
class Restarts:
    """Rules for restarting a child that ended."""

    first_pause_s: float = 0.5
    longest_pause_s: float = 5.0
    settled_s: float = 10.0
    first_attempts: int = 5

    def pause_s(self, quick_deaths: int) -> float:
        """Return the pause before the next start, after this many consecutive lives shorter than `settled_s`."""
        if quick_deaths == 0:
            return 0.0
        return min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(quick_deaths - 1, 30))


class LogFile:
    """Log file that is rotated when full: it is moved to NAME.1, NAME.2, and the oldest is dropped."""

    def __init__(self, path: Path, size_bytes: int = LOG_BYTES, kept: int = OLD_LOGS) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._kept = kept
        self._file: BinaryIO | None = None

    def write(self, line: bytes) -> None:
        """Append one line, which ends with a newline."""
        if self._file is None:
            self._file = append_private(self._path)
        self._file.write(line)
        if self._file.tell() >= self._size_bytes:
            self.close()
            names = [self._path, *(Path(f"{self._path}.{number}") for number in range(1, self._kept + 1))]
            for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
                with contextlib.suppress(FileNotFoundError):
                    newer.replace(older)

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


class SupervisedChild:
    """One child: its current process, its log, and its number of starts."""

    def __init__(self, spec: ChildSpec, log: LogFile) -> None:
        self.spec = spec
        self.log = log
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.starts = 0
        self.process: Process | None = None
        self.task: asyncio.Task[None] | None = None
        self.stopping = False
        self.replacing = False

    @property
    def pid(self) -> int | None:
        """Process id of the current process, if one runs."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    def send(self, sent: signal.Signals) -> None:
        """Signal the child alone; it ends its own children."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(sent)

    def signal_group(self, sent: signal.Signals) -> None:
        """Signal the child and everything it started in its session."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, sent)

    def report(self) -> str:
        """Return its last lines of output."""
        lines = "\n".join(f"  {line}" for line in self.tail) or "  (no output)"
        return f"{self.spec.name} was started {self.starts} times and last said:\n{lines}"


class Supervisor:
    """Supervisor of children, within one event loop in the main thread.

    `failed` is set to a ChildFailed when a child cannot be kept running; the caller then stops the others.
    """

    def __init__(
        self,
        log_dir: Path,
        *,
        echo: bool = False,
        restarts: Restarts = Restarts(),
        fork_server: ForkServer | None = None,
    ) -> None:
        make_private(log_dir)
        self.log_dir = log_dir
        self.children: dict[str, SupervisedChild] = {}
        self.failed: asyncio.Future[ChildFailed] = asyncio.get_running_loop().create_future()
        self._echo = echo
        self._restarts = restarts
        self._fork_server = fork_server
        self.killed = False

    async def start(self, *specs: ChildSpec) -> None:
        """Start the children, all at once, and keep them running."""
        for spec in specs:
            child = SupervisedChild(spec, LogFile(self.log_dir / f"{spec.name}.log"))
            self.children[spec.name] = child
            output = await self._spawn(child)
            child.task = asyncio.create_task(self._keep(child, output), name=f"keep {spec.name}")

    async def stop(self) -> list[str]:
        """Stop all children, stage by stage. Return the names of those that had to be killed.

        While a stage drains, the children of later stages are still kept running.
        """
        overdue: list[str] = []
        for stage in sorted({child.spec.stop_stage for child in self.children.values()}):
            members = [child for child in self.children.values() if child.spec.stop_stage == stage]
            ended = await asyncio.gather(*(self._stop(child) for child in members))
            overdue += [child.spec.name for child, in_time in zip(members, ended, strict=True) if not in_time]
        return overdue

    async def restart(self, names: Sequence[str], *, within_s: float) -> None:
        """Replace the named children by new processes; one that has not ended `within_s` after SIGTERM is killed."""
        chosen = [self.children[name] for name in names]
        before = {child: child.pid for child in chosen if child.pid is not None and not child.stopping}
        for child in before:
            child.replacing = True
            child.send(signal.SIGTERM)
        give_up_at = time.monotonic() + within_s
        while left := [child for child, pid in before.items() if child.pid == pid]:
            if time.monotonic() > give_up_at:
                for child in left:
                    child.signal_group(signal.SIGKILL)
            await asyncio.sleep(0.02)

    def kill(self) -> None:
        """End all children now; `stop` then returns at once."""
        self.killed = True
        for child in self.children.values():
            child.stopping = True
            child.signal_group(signal.SIGKILL)

    async def _stop(self, child: SupervisedChild) -> bool:
        child.stopping = True
        if child.task is None:
            return True
        if child.pid is None:
            child.task.cancel()  # it waits for its next start
        elif not self.killed:
            child.send(signal.SIGTERM)
        _, pending = await asyncio.wait({child.task}, timeout=child.spec.stop_within_s)
        if pending:
            child.signal_group(signal.SIGKILL)
            await asyncio.wait(pending)
        child.log.close()
        return not pending

    async def _spawn(self, child: SupervisedChild) -> asyncio.Task[None]:
        """Start the child; the task ends when its output does."""
        spec = child.spec
        kept = {name: value for name, value in os.environ.items() if name not in spec.dropped}
        output, output_end = os.pipe()
        try:
            child.process = await self._begin(child, {**kept, **spec.environment}, output_end)
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(output_end)
        child.starts += 1
        if child.stopping:
            child.signal_group(signal.SIGKILL)
        return asyncio.create_task(self._forward(child, output), name=f"output of {spec.name}")

    async def _begin(self, child: SupervisedChild, environment: Mapping[str, str], output: int) -> Process:
        spec = child.spec
        if spec.forked and self._fork_server is not None:
            try:
                return await self._fork_server.fork(
                    spec.forked,
                    environment=environment,
                    output=output,
                    orphan_signal=spec.orphan_signal,
                    niceness=spec.niceness,
                )
            except NotForked as error:
                self._fork_server = None
                self._note(child, f"children are started without the fork server from now on: {error}")
        return await start_process(
            spec.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            environment=environment,
            keep=spec.inherited_fds,
            before_exec=end_with_parent(spec.orphan_signal, niceness=spec.niceness),
        )

    async def _keep(self, child: SupervisedChild, output: asyncio.Task[None]) -> None:
        quick_deaths = own_deaths = 0
        settled = False
        while child.process is not None:
            started_at = time.monotonic()
            status = await child.process.wait()
            child.signal_group(signal.SIGKILL)  # other processes left in its session
            await asyncio.wait({output}, timeout=OUTPUT_TIMEOUT_S)
            output.cancel()
            if child.stopping:
                return
            if child.replacing:
                child.replacing = False
                output = await self._spawn(child)
                continue
            if time.monotonic() - started_at >= self._restarts.settled_s:
                settled, quick_deaths = True, 0
            else:
                quick_deaths += 1
            own_deaths += status != -signal.SIGKILL
            hopeless = child.starts == 1 and status in child.spec.final_statuses
            if hopeless or (not settled and own_deaths >= self._restarts.first_attempts):
                if not self.failed.done():
                    self.failed.set_result(ChildFailed(f"{child.report()}\nIt ended with {_ending(status)}."))
                return
            pause_s = self._restarts.pause_s(quick_deaths)
            self._note(child, f"ended with {_ending(status)}; starting it again in {pause_s:.1f} s")
            await asyncio.sleep(pause_s)
            output = await self._spawn(child)

    async def _forward(self, child: SupervisedChild, output: int) -> None:
        """Copy the output to the log until the last writer has closed it."""
        reader = asyncio.StreamReader(limit=LINE_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", buffering=0)
        )
        try:
            await self._read(child, reader)
        finally:
            transport.close()

    async def _read(self, child: SupervisedChild, output: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await output.readuntil(b"\n")
            except asyncio.IncompleteReadError as end:
                if end.partial:
                    self._line(child, end.partial + b"\n")
                return
            except asyncio.LimitOverrunError as too_long:
                line = await output.readexactly(too_long.consumed) + b"\n"
            self._line(child, line)

    def _line(self, child: SupervisedChild, line: bytes) -> None:
        child.log.write(line)
        text = line.decode(errors="replace").rstrip()
        child.tail.append(text)
        if self._echo:
            sys.stderr.write(f"{child.spec.name:<12}| {text}\n")

    def _note(self, child: SupervisedChild, text: str) -> None:
        self._line(child, f"[supervisor] {child.spec.name} {text}\n".encode())
        if not self._echo:
            sys.stderr.write(f"{child.spec.name} {text} (log: {self.log_dir / child.spec.name}.log)\n")


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"signal {signal.Signals(-status).name}"
