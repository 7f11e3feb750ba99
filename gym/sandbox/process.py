"""A sandbox at work: started, spoken to in frames, killed.

The limits are kept inside, by process 1 of the sandbox (`gym.sandbox.inside`); here the answer's size and the wall time
are bounded once more, so that a sandbox that says nothing is killed too. To be used on the event loop that started it:
`bwrap` dies with the thread that did.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import os
import secrets
import signal
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gym.jsontypes import JsonObject
from gym.sandbox import left_over
from gym.sandbox.base import MAX_CODE_CHARS, Mount, Outcome, SandboxFailed, SandboxProvider, SandboxUnavailable, Verdict
from gym.sandbox.limits import Limits
from gym.sandbox.seccomp import filter_program

START_TIMEOUT_S = 60.0
GRACE_S = 30.0  # for a loaded machine, after the wall limit that is kept inside


_MODULES = ("against_tests", "inside")
_LOAD = """
import sys, types
for name, text in MODULES:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
serve = sys.modules["gym.sandbox.inside"].serve
serve_answer = sys.modules["gym.sandbox.against_tests"].serve_answer
"""


@cache
def _source() -> bytes:
    """One program that makes the modules of the sandbox's side, where no file of the farm can be read."""
    folder = Path(__file__).parent
    modules = [(f"gym.sandbox.{name}", (folder / f"{name}.py").read_text()) for name in _MODULES]
    return f"MODULES = {modules!r}{_LOAD}".encode()


class Sandbox:
    """One sandbox, for one rollout; calls one after another. Made by `start_sandbox`."""

    def __init__(
        self, process: asyncio.subprocess.Process, limits: Limits, stop: Sequence[str], note: Path | None
    ) -> None:
        self._process = process
        self._limits = limits
        self._stop = stop
        self._note = note
        self._turn = asyncio.Lock()
        self._closed = False

    @property
    def is_usable(self) -> bool:
        """Whether another call can be made."""
        return not self._closed and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The process on the host that the sandbox ends with."""
        return self._process.pid

    async def run(self, argv: Sequence[str]) -> Outcome:
        """Run a program; `{python}` in `argv` is the sandbox's interpreter.

        Raises ValueError for an argument that is too long, SandboxFailed where the sandbox died.
        """
        for part in argv:
            if len(part) > MAX_CODE_CHARS or "\0" in part:
                raise ValueError(f"a program has at most {MAX_CODE_CHARS} characters, none of which is NUL")
        reply = await self._ask({"op": "run", "argv": list(argv)})
        return Outcome(
            exit_code=reply["exit_code"],
            stopped=reply["stopped"],
            stdout=_text(reply["stdout"]),
            stderr=_text(reply["stderr"]),
            wall_s=reply["wall_s"],
            cpu_s=reply["cpu_s"],
        )

    async def check(self, answer: str, tests: Sequence[str], entry_point: str | None) -> Verdict:
        """Hold an answer against tests; with an `entry_point` their function `check` is called with the answer's.

        Raises SandboxFailed.
        """
        request = {"op": "check", "answer": answer, "tests": list(tests), "entry_point": entry_point}
        reply = await self._ask(request)
        lines = [json.loads(line) for line in _text(reply["verdict"]).splitlines()]
        counts = [line["passed"] for line in lines if "passed" in line]
        return Verdict(
            passed=sum(counts),
            seen=len(counts),
            finished=any("finished" in line for line in lines) and reply["exit_code"] == 0,
            failed=next((line["failed"] for line in lines if "failed" in line), None),
            bad_tests=next((line["bad"] for line in lines if "bad" in line), None),
            stopped=reply["stopped"],
        )

    async def close(self) -> None:
        """Kill everything in it. A second call does nothing; a cancelled one has killed already."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._stop:
            with contextlib.suppress(OSError, TimeoutError):
                devnull = asyncio.subprocess.DEVNULL
                stopping = await asyncio.create_subprocess_exec(*self._stop, stdout=devnull, stderr=devnull)
                async with asyncio.timeout(GRACE_S):
                    await stopping.wait()
        await self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:  # at its end the transport is closed, also where the event loop ends right after
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(1):
                        await pipe.read()
        if self._note is not None:
            self._note.unlink(missing_ok=True)

    async def _ask(self, request: JsonObject) -> JsonObject:
        async with self._turn:
            if not self.is_usable:
                raise SandboxFailed("the sandbox is closed")
            answered = False
            try:
                async with asyncio.timeout(self._limits.wall_s + GRACE_S):
                    await self._send(json.dumps({**request, "limits": self._limits.as_json()}).encode())
                    reply = await self._receive()
                if "broken" in reply:
                    raise SandboxFailed(f"the sandbox could not run it: {reply['broken']}")
                answered = True
            except (TimeoutError, OSError, EOFError, ValueError) as error:
                raise SandboxFailed(f"the sandbox ended or does not answer: {error!r}") from error
            finally:
                if not answered:
                    await self.close()
            return reply

    async def _send(self, body: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101  it was asked for
        self._process.stdin.write(str(len(body)).encode() + b"\n" + body)
        await self._process.stdin.drain()

    async def _receive(self) -> JsonObject:
        assert self._process.stdout is not None  # noqa: S101  it was asked for
        size = int((await self._process.stdout.readuntil(b"\n"))[:12])
        if size > 4 * self._limits.output_bytes + 100_000:
            raise ValueError(f"an answer of {size} bytes")
        reply: Any = json.loads(await self._process.stdout.readexactly(size))
        if not isinstance(reply, dict):
            raise ValueError("an answer that is no object")  # noqa: TRY004  one kind for whatever it says
        return reply

    async def handshake(self) -> None:
        """Send it its program and wait until it is process 1 of its own. Raises SandboxUnavailable."""
        error = b""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._send(_source())
                reply = await self._receive()
            if reply.get("ready") == 1:
                return
            error = b"it has no process namespace of its own"
        except (TimeoutError, OSError, EOFError, ValueError) as failure:
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
    provider: SandboxProvider, limits: Limits, directory: Path | None = None, *, mounts: Sequence[Mount] = ()
) -> Sandbox:
    """A new sandbox, ready, noted in `directory`. Raises SandboxUnavailable, with what the provider said."""
    filter_fd = os.memfd_create("seccomp")
    try:
        try:
            os.write(filter_fd, filter_program())
        except ValueError as error:
            raise SandboxUnavailable(str(error)) from error
        os.lseek(filter_fd, 0, os.SEEK_SET)
        start = provider.start(f"sandbox-{secrets.token_hex(8)}", limits, filter_fd, mounts)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *start.argv,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            pass_fds=(filter_fd,),
            env=dict(start.environment),
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxUnavailable(f"{provider.name}: {error}") from error
    finally:
        os.close(filter_fd)
    try:
        note: Path | None = left_over.note(directory or left_over.pid_directory(), process.pid)
    except OSError:
        note = None
    sandbox = Sandbox(process, limits, start.stop, note)
    await sandbox.handshake()
    return sandbox


def _text(packed: object) -> str:
    try:
        return base64.b64decode(str(packed)).decode(errors="replace")
    except binascii.Error as error:
        raise SandboxFailed("the sandbox sent what cannot be read") from error
