"""The first process of a sandbox: it starts what it is asked to, watches it and ends all of it. Standard library only.

Its source is sent into the sandbox (`gym.sandbox.process`), where it is process 1 of the process namespace: nothing in
there can signal it, and as it is not dumpable nothing can read its memory or its pipes. Frames are a length, a newline
and JSON, on its own standard streams, which no other process has. After each request every process but itself has been
killed.
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
from collections.abc import Callable
from typing import Any

from gym.sandbox.against_tests import run_tests, write_all

LOOK_EVERY_S = 0.05
PYTHON = sys.executable


def _limit(limits: dict[str, Any]) -> None:
    cpu = int(limits["cpu_s"]) + 1
    for what, most in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"] + 1),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(what, (most, most))


def _spawn(limits: dict[str, Any], stdio: tuple[int, int, int], start: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        _limit(limits)
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        start()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001  a forked child must not return
        with contextlib.suppress(OSError):
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(127)


def _usage() -> tuple[int, int, float]:
    """Processes beside this one, their memory in bytes that is no file's, and their CPU seconds."""
    processes, memory, ticks = 0, 0, 0
    for name in os.listdir("/proc"):  # noqa: PTH208  hot
        if not name.isdigit() or name == "1":
            continue
        processes += 1
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{name}/status", "rb") as file:  # noqa: PTH123  hot
                for line in file:
                    if line.startswith((b"RssAnon:", b"RssShmem:")):
                        memory += int(line.split()[1]) * 1024
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123  hot
                ticks += sum(int(part) for part in file.read().rpartition(b")")[2].split()[11:15])
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    return processes, memory, ticks / os.sysconf("SC_CLK_TCK") + reaped.ru_utime + reaped.ru_stime


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


def _watch(main: int, pipes: dict[int, str], limits: dict[str, Any]) -> dict[str, Any]:
    """Read the pipes until the process `main` has ended or a limit is reached; kills all that is left."""
    kept: dict[str, bytearray] = {name: bytearray() for name in pipes.values()}
    start, next_look = time.monotonic(), 0.0
    cpu_before = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_start = cpu_before.ru_utime + cpu_before.ru_stime
    stopped: str | None = None
    status: int | None = None
    room = limits["output_bytes"]

    def take(wait_s: float) -> bool:
        nonlocal room
        ready = select.select(list(pipes), [], [], wait_s)[0]
        for fd in ready:
            data = os.read(fd, 65536)
            if not data:
                del pipes[fd]
                os.close(fd)
                continue
            kept[pipes[fd]] += data[: max(room, 0)]
            room -= len(data)
        return bool(ready)

    while status is None and stopped is None:
        take(0.01 if time.monotonic() - start < 0.5 else LOOK_EVERY_S)
        now = time.monotonic()
        if now >= next_look:
            next_look = now + LOOK_EVERY_S
            processes, memory, cpu_s = _usage()
            over = {
                "memory": memory > limits["memory_bytes"],
                "cpu": cpu_s - cpu_start > limits["cpu_s"],
                "processes": processes > limits["processes"] + 1,
            }
            stopped = next((name for name, is_over in over.items() if is_over), None)
        if now - start > limits["wall_s"]:
            stopped = "wall"
        if room < 0:
            stopped = "output"
        try:
            while status is None:
                pid, ended = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == main:
                    status = ended
        except ChildProcessError:
            break
    end_all()
    while pipes and room >= 0 and take(0):
        pass
    for fd in pipes:
        os.close(fd)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "exit_code": None if status is None else os.waitstatus_to_exitcode(status),
        "stopped": stopped or ("output" if room < 0 else None),
        "wall_s": time.monotonic() - start,
        "cpu_s": after.ru_utime + after.ru_stime - cpu_start,
        **kept,
    }


def run_command(request: dict[str, Any]) -> dict[str, Any]:
    """Run a program to its end."""
    limits = request["limits"]
    null = os.open("/dev/null", os.O_RDWR)
    out_read, out_write = os.pipe()
    error_read, error_write = os.pipe()
    argv = [PYTHON if part == "{python}" else part for part in request["argv"]]
    main = _spawn(limits, (null, out_write, error_write), lambda: os.execvp(argv[0], argv))  # noqa: S606  no shell is wanted
    for fd in (null, out_write, error_write):
        os.close(fd)
    return _watch(main, {out_read: "stdout", error_read: "stderr"}, limits)


def run_check(request: dict[str, Any], source: str) -> dict[str, Any]:
    """Hold an answer against tests; `verdict` has a line of JSON for each count."""
    limits = request["limits"]
    null = os.open("/dev/null", os.O_RDWR)
    out_read, out_write = os.pipe()
    verdict_read, verdict_write = os.pipe()
    tests_end, answer_end = socket.socketpair()
    boot = "import sys; fd = int(sys.argv[1]); names = {'__name__': 'inside'}; exec(sys.argv[2], names); "
    argv = [PYTHON, "-I", "-c", boot + "names['serve_answer'](fd)", str(answer_end.fileno()), source]

    def answer() -> None:
        os.set_inheritable(answer_end.fileno(), True)
        os.execv(argv[0], argv)  # noqa: S606  no shell is wanted

    _spawn(limits, (null, out_write, out_write), answer)
    answer_end.close()
    main = _spawn(limits, (null, null, null), lambda: run_tests(tests_end, verdict_write, request))
    tests_end.close()
    for fd in (null, out_write, verdict_write):
        os.close(fd)
    return _watch(main, {out_read: "stdout", verdict_read: "verdict"}, limits)


def serve(source: str) -> None:
    """Answer requests until the standard input ends, then end everything."""
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)

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
        try:
            send(run_check(request, source) if request["op"] == "check" else run_command(request))
        except OSError as error:
            end_all()
            send({"broken": str(error)})
    end_all()
