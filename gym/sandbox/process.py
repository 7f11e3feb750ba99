"""A running sandbox: start, exchange of frames, kill.

The limits are enforced inside, by process 1 of the sandbox (`gym.sandbox.inside`). Here the answer's size and the wall
time are bounded once more, so that a silent sandbox is killed too. Use it on the event loop that started it: `bwrap`
dies with the thread that started it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import os
import secrets
import signal
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gym.jsontypes import JsonObject
from gym.processes.subprocesses import start_process
from gym.sandbox import left_over
from gym.sandbox.base import (
    MAX_CODE_CHARS,
    CodeVerdict,
    Launch,
    Mount,
    SandboxEnded,
    SandboxFailed,
    SandboxOutcome,
    SandboxProvider,
    SandboxUnavailable,
)
from gym.sandbox.cgroup import ControlGroup, find_place, new_control_group
from gym.sandbox.limits import SandboxLimits
from gym.sandbox.seccomp import filter_program

START_TIMEOUT_S = 60.0
GRACE_S = 30.0  # for a loaded machine, beyond the wall limit that is enforced inside
logger = logging.getLogger(__name__)
_NO_ANSWER = (TimeoutError, OSError, EOFError, ValueError, RuntimeError, asyncio.LimitOverrunError)


_MODULES = ("against_tests", "usage", "inside")
_LOAD = """
import sys, types
for name, text in MODULES:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
serve_answer = sys.modules["gym.sandbox.against_tests"].serve_answer
"""
_SERVE = """
def serve():
    sys.modules["gym.sandbox.inside"].serve(PROGRAM, FILTER)
"""


@cache
def _source() -> str:
    """Return one program that defines the modules inside the sandbox, where no file of the farm can be read."""
    folder = Path(__file__).parent
    modules = [(f"gym.sandbox.{name}", (folder / f"{name}.py").read_text()) for name in _MODULES]
    return f"MODULES = {modules!r}{_LOAD}"


@cache
def _program(system_calls: bytes | None) -> bytes:
    """Return the program of process 1, which applies the filter itself if one is given."""
    return f"PROGRAM = {_source()!r}\nFILTER = {system_calls!r}\nexec(PROGRAM)\n{_SERVE}".encode()


class Sandbox:
    """Sandbox of one rollout, made by `start_sandbox`; calls run one after another."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        limits: SandboxLimits,
        start: Launch,
        note: Path | None,
        scope: ControlGroup | None = None,
    ) -> None:
        self._process = process
        self._scope = scope
        self._limits = limits
        self._start = start
        self._note = note
        self._turn = asyncio.Lock()
        self._closed = False

    @property
    def is_usable(self) -> bool:
        """Whether another call can be made."""
        return not self._closed and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Process id on the host, with whose end the sandbox ends."""
        return self._process.pid

    async def run(self, argv: Sequence[str]) -> SandboxOutcome:
        """Run a program; `{python}` in `argv` is the sandbox's interpreter.

        Raises ValueError for an argument that is too long, SandboxFailed if the sandbox died before the program ran,
        SandboxEnded if it died while the program ran.
        """
        for part in argv:
            if len(part) > MAX_CODE_CHARS or "\0" in part:
                raise ValueError(f"a program has at most {MAX_CODE_CHARS} characters, none of which is NUL")
        reply = await self._ask({"op": "run", "argv": list(argv)})
        return SandboxOutcome(
            exit_code=reply["exit_code"],
            stopped=reply["stopped"],
            stdout=_text(reply["stdout"]),
            stderr=_text(reply["stderr"]),
            wall_s=reply["wall_s"],
            cpu_s=reply["cpu_s"],
        )

    async def check(self, answer: str, tests: Sequence[str], entry_point: str | None) -> CodeVerdict:
        """Run tests on an answer; with an `entry_point` their function `check` is called with the answer's.

        Raises SandboxFailed if the sandbox died before the answer ran, SandboxEnded if it died while the answer ran.
        """
        request = {"op": "check", "answer": answer, "tests": list(tests), "entry_point": entry_point}
        reply = await self._ask(request)
        said = reply["verdict"]
        return CodeVerdict(
            passed=said["passed"],
            seen=said["seen"],
            finished=said["finished"] and reply["exit_code"] == 0,
            failed=said["failed"],
            bad_tests=said["bad"],
            stopped=reply["stopped"],
        )

    async def close(self) -> None:
        """Kill everything in the sandbox. A second call does nothing; a cancelled call has killed already."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._start.stop:
            with contextlib.suppress(OSError, TimeoutError):
                null = asyncio.subprocess.DEVNULL
                stopping = await start_process(
                    self._start.stop, stdin=null, stdout=null, stderr=null, environment=self._start.environment
                )
                async with asyncio.timeout(GRACE_S):
                    await stopping.wait()
        await self._process.wait()
        if self._scope is not None:
            await self._scope.remove()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:  # at its end the transport is closed, also where the event loop ends right after
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(1):
                        await pipe.read()
        if self._note is not None:
            self._note.unlink(missing_ok=True)

    async def _ask(self, request: JsonObject) -> JsonObject:
        """Return the reply to a request, which carries a nonce of its own."""
        async with self._turn:
            if not self.is_usable:
                raise SandboxFailed("the sandbox is closed")
            nonce = secrets.token_hex(16)
            began = answered = False
            try:
                async with asyncio.timeout(self._limits.wall_s + GRACE_S):
                    limits = {**self._limits.as_json(), "own_user": self._start.own_user}
                    await self._send(json.dumps({**request, "limits": limits, "nonce": nonce}).encode())
                    reply = await self._receive(nonce)
                    if "began" in reply:
                        began = True
                        reply = await self._receive(nonce)
                if "broken" in reply:
                    raise ValueError(reply["broken"])
                answered = True
            except _NO_ANSWER as error:
                kind = SandboxEnded if began else SandboxFailed
                raise kind(f"the sandbox ended or does not answer: {error!r}") from error
            finally:
                if not answered:
                    await self.close()
            if reply["stopped"] == "files":
                await self.close()  # they would be there in the next call too
            return reply

    async def _send(self, body: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101  it was asked for
        self._process.stdin.write(str(len(body)).encode() + b"\n" + body)
        await self._process.stdin.drain()

    async def _receive(self, nonce: str | None = None) -> JsonObject:
        assert self._process.stdout is not None  # noqa: S101  it was asked for
        size = int((await self._process.stdout.readuntil(b"\n"))[:12])
        if size > 4 * self._limits.output_bytes + 100_000:
            raise ValueError(f"an answer of {size} bytes")
        reply: Any = json.loads(await self._process.stdout.readexactly(size))
        if not isinstance(reply, dict):
            raise ValueError("an answer that is no object")  # noqa: TRY004  one error for every malformed reply
        if nonce is not None and not secrets.compare_digest(str(reply.pop("nonce", "")), nonce):
            raise ValueError("an answer without the nonce of its request")
        return reply

    async def handshake(self, system_calls: bytes | None = None) -> None:
        """Send the sandbox its program and wait until it runs as process 1. Raises SandboxUnavailable."""
        error = b""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._send(_program(system_calls))
                reply = await self._receive()
            if reply.get("ready") == 1:
                return
            error = b"it has no process namespace of its own"
        except _NO_ANSWER as failure:
            error = f"it ended or did not answer while it started: {failure!r}".encode()
            if self._process.stderr is not None and not isinstance(failure, TimeoutError):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(5):
                        error = await self._process.stderr.read(2000) or error
        except asyncio.CancelledError:
            await self.close()
            raise
        await self.close()
        raise SandboxUnavailable(error.decode(errors="replace").strip()[:500])


async def start_sandbox(
    provider: SandboxProvider,
    limits: SandboxLimits,
    directory: Path | None = None,
    *,
    mounts: Sequence[Mount] = (),
    loopback: bool = False,
) -> Sandbox:
    """Start a sandbox and note it in `directory`; with `loopback` its programs may talk over 127.0.0.1.

    Raises SandboxUnavailable, with the provider's output.
    """
    try:
        system_calls = filter_program(loopback=loopback)
    except ValueError as error:
        raise SandboxUnavailable(str(error)) from error
    filter_fd = os.memfd_create("seccomp")
    scope: ControlGroup | None = None
    process: asyncio.subprocess.Process | None = None
    try:
        os.write(filter_fd, system_calls)
        os.lseek(filter_fd, 0, os.SEEK_SET)
        start = provider.start(f"sandbox-{secrets.token_hex(8)}", limits, filter_fd, mounts)
        pipe = asyncio.subprocess.PIPE
        scope = new_control_group(limits, find_place()) if start.scoped else None
        process = await start_process(
            start.argv,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            keep=(filter_fd,),
            environment=start.environment,
            before_exec=None if scope is None else scope.enter,
        )
    except OSError as error:
        raise SandboxUnavailable(f"{provider.name}: {error}") from error
    finally:
        os.close(filter_fd)
        if scope is not None:
            scope.started()
            if process is None:
                await scope.remove()
    if scope is not None and not scope.holds(process.pid):
        logger.warning("a sandbox did not get into its control group", extra={"action": "no_scope"})
    try:
        note: Path | None = left_over.note(directory or left_over.pid_directory(), process.pid)
    except OSError:
        note = None
    sandbox = Sandbox(process, limits, start, note, scope)
    await sandbox.handshake(None if start.filters else system_calls)
    return sandbox


def _text(packed: object) -> str:
    try:
        return base64.b64decode(str(packed)).decode(errors="replace")
    except binascii.Error as error:
        raise SandboxFailed("the sandbox sent what cannot be read") from error
