"""The first process of a sandbox: it runs programs, watches them and ends all of them. Standard library only.

Its source is sent into the sandbox (`gym.sandbox.process`), where it is process 1 of the process namespace. No signal
from inside affects it. It is not dumpable, so nothing can read its memory or its descriptors. Frames are a length, a
newline and JSON, on descriptors that only it has: its children get the descriptors in `keep` and no other.

Each request has a nonce, which only process 1 sees and each frame of the answer repeats. First comes `began`, before
the program takes its first step: a sandbox that ends after that was ended by the program. After each request every
other process has been killed.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

from gym.sandbox.against_tests import AssertCounts, run_tests, write_all
from gym.sandbox.usage import files_in_use, look

LOOK_EVERY_S = 0.05
PYTHON = sys.executable
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2


def _limit(limits: dict[str, Any]) -> None:
    cpu = int(limits["cpu_s"]) + 1
    most = {
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: limits["pending_signals"],
    }
    if limits["own_user"]:
        most[resource.RLIMIT_NPROC] = limits["processes"] + 1
    for what, value in most.items():
        resource.setrlimit(what, (value, value))


def _close_all_but(keep: Collection[int]) -> None:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  between fork and exec
        if int(name) > 2 and int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _spawn(
    limits: dict[str, Any],
    stdio: tuple[int, int, int],
    start: Callable[[], None],
    *,
    keep: Collection[int] = (),
    wait_for: int | None = None,
) -> int:
    """Fork and call `start` in the child, with these streams and the descriptors `keep`, once `wait_for` has a byte."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write("1000")  # it goes before process 1 does
        if wait_for is not None:
            os.read(wait_for, 1)
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        _close_all_but(keep)
        _limit(limits)
        start()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001  a forked child must not return
        with contextlib.suppress(OSError):
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(127)


def end_all() -> None:
    """Kill every process but this one and reap it, in as many rounds as that takes."""
    while True:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            return


class _Output:
    """Output of a call: at most `room` bytes of its text pipes are kept; other pipes have a reader each."""

    def __init__(self, texts: dict[int, str], others: dict[int, Callable[[bytes], None]], room: int) -> None:
        self.kept: dict[str, bytearray] = {name: bytearray() for name in texts.values()}
        self.room = room
        self._texts = texts
        self._others = others
        self._open = {*texts, *others}

    def take(self, wait_s: float) -> bool:
        """Read the available data. Returns whether there was any."""
        ready = select.select(list(self._open), [], [], wait_s)[0]
        for fd in ready:
            data = os.read(fd, 65536)
            if not data:
                self._open.discard(fd)
                os.close(fd)
            elif fd in self._others:
                self._others[fd](data)
            else:
                self.kept[self._texts[fd]] += data[: max(self.room, 0)]
                self.room -= len(data)
        return bool(ready)

    def close(self) -> None:
        """Read the rest, after all writers have ended, and close the pipes."""
        while self._open and self.room >= 0 and self.take(0):
            pass
        for fd in self._open:
            os.close(fd)


def _over(limits: dict[str, Any], cpu_start: float) -> str | None:
    """Return the limit that is exceeded at this moment."""
    now = look()
    over = {
        "memory": now.memory_bytes > limits["memory_bytes"],
        "files": now.files > limits["files"],
        "cpu": now.cpu_s - cpu_start > limits["cpu_s"],
        "processes": now.processes > limits["processes"] + 1,
    }
    return next((name for name, is_over in over.items() if is_over), None)


def _watch(main: int, output: _Output, limits: dict[str, Any]) -> dict[str, Any]:
    """Read the pipes until the process `main` has ended or a limit is reached, then kill the rest."""
    start, next_look = time.monotonic(), 0.0
    cpu_start = _reaped_cpu_s()
    stopped: str | None = None
    status: int | None = None
    while status is None and stopped is None:
        output.take(0.01 if time.monotonic() - start < 0.5 else LOOK_EVERY_S)
        now = time.monotonic()
        if now >= next_look:
            next_look = now + LOOK_EVERY_S
            stopped = _over(limits, cpu_start)
        if now - start > limits["wall_s"]:
            stopped = "wall"
        if output.room < 0:
            stopped = "output"
        status = _ended(main)
    if stopped is None and files_in_use()[1] > limits["files"]:
        stopped = "files"
    end_all()
    output.close()
    return {
        "exit_code": None if status is None else os.waitstatus_to_exitcode(status),
        "stopped": stopped or ("output" if output.room < 0 else None),
        "wall_s": time.monotonic() - start,
        "cpu_s": _reaped_cpu_s() - cpu_start,
        **output.kept,
    }


def _reaped_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _ended(main: int) -> int | None:
    """Reap all ended processes. Returns the status of `main` if it is among them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return None
        if pid == main:
            return status


def run_command(request: dict[str, Any], begin: Callable[[], None]) -> dict[str, Any]:
    """Run a program to its end."""
    limits = request["limits"]
    null = os.open("/dev/null", os.O_RDWR)
    out_read, out_write = os.pipe()
    error_read, error_write = os.pipe()
    go_read, go_write = os.pipe()
    argv = [PYTHON if part == "{python}" else part for part in request["argv"]]
    stdio = (null, out_write, error_write)
    main = _spawn(limits, stdio, lambda: os.execvp(argv[0], argv), wait_for=go_read)  # noqa: S606  no shell is wanted
    begin()
    os.write(go_write, b"g")
    for fd in (null, out_write, error_write, go_read, go_write):
        os.close(fd)
    return _watch(main, _Output({out_read: "stdout", error_read: "stderr"}, {}, limits["output_bytes"]), limits)


def run_check(request: dict[str, Any], source: str, begin: Callable[[], None]) -> dict[str, Any]:
    """Run tests on an answer. The reply is their verdict."""
    limits = request["limits"]
    null = os.open("/dev/null", os.O_RDWR)
    out_read, out_write = os.pipe()
    verdict_read, verdict_write = os.pipe()
    go_read, go_write = os.pipe()
    tests_end, answer_end = socket.socketpair()
    boot = "import sys; fd = int(sys.argv[1]); names = {'__name__': 'inside'}; exec(sys.argv[2], names); "
    argv = [PYTHON, "-I", "-c", boot + "names['serve_answer'](fd)", str(answer_end.fileno()), source]

    def answer() -> None:
        os.set_inheritable(answer_end.fileno(), True)
        os.execv(argv[0], argv)  # noqa: S606  no shell is wanted

    tests = {name: request[name] for name in ("answer", "tests", "entry_point")}
    main = _spawn(
        limits,
        (null, null, null),
        lambda: run_tests(tests_end, verdict_write, tests),
        keep=(tests_end.fileno(), verdict_write),
    )
    _spawn(limits, (null, out_write, out_write), answer, keep=(answer_end.fileno(),), wait_for=go_read)
    begin()
    os.write(go_write, b"g")
    answer_end.close()
    tests_end.close()
    for fd in (null, out_write, verdict_write, go_read, go_write):
        os.close(fd)
    counts = AssertCounts()
    output = _Output({out_read: "stdout"}, {verdict_read: counts.take}, limits["output_bytes"])
    return {**_watch(main, output, limits), "verdict": counts.as_json()}


def _answer(request: dict[str, Any], source: str, begin: Callable[[], None]) -> dict[str, Any]:
    try:
        return run_check(request, source, begin) if request["op"] == "check" else run_command(request, begin)
    except Exception as error:  # noqa: BLE001  reported to the worker
        end_all()
        return {"broken": f"{type(error).__name__}: {error}"}


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))  # struct sock_fprog


def _apply_filter(libc: ctypes.CDLL, steps: bytes) -> None:
    """Have the kernel refuse system calls to this process and all its descendants. Raises OSError."""
    program = _FilterProgram(len(steps) // 8, steps)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "the filter of system calls cannot be applied")


def serve(source: str, system_calls: bytes | None) -> None:
    """Answer requests until the standard input ends, then end everything."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if system_calls is not None:
        _apply_filter(libc, system_calls)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a signal without a handler does nothing to process 1
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.dup(1)
    _close_all_but((requests.fileno(), replies))
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)

    def send(data: dict[str, Any]) -> None:
        packed = {
            name: base64.b64encode(value).decode() if isinstance(value, bytearray) else value
            for name, value in data.items()
        }
        body = json.dumps(packed).encode()
        write_all(replies, str(len(body)).encode() + b"\n" + body)

    send({"ready": os.getpid()})
    while line := requests.readline():
        left, parts = int(line), b""
        while left and (part := requests.read(left)):
            parts += part
            left -= len(part)
        if left:
            break
        request = json.loads(parts)
        nonce = request.pop("nonce")
        del parts, part
        send({**_answer(request, source, lambda: send({"began": True, "nonce": nonce})), "nonce": nonce})  # noqa: B023
    end_all()
