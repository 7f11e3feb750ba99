"""The first process of a sandbox: it starts what it is asked to, watches it and ends all of it. Standard library only.

Its source is sent into the sandbox, where it is process 1 of the process namespace: nothing in there can signal it,
and as it is not dumpable nothing can read its memory or its pipes. Frames are a length, a newline and JSON, on its own
standard streams, which no other process has. After each request every process but itself has been killed.

A check runs the answer and its tests in two processes. The tests call the answer's functions by plain values over a
socket and compare what comes back themselves, so that an answer can say "passed", leave, or patch what it likes: the
verdict is made, and sent, where it has no hands.
"""

from __future__ import annotations

import ast
import base64
import builtins
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

LOOK_EVERY_S = 0.05
MOST_FRAME_BYTES = 16_000_000
PYTHON = sys.executable
_BUILTIN = frozenset(dir(builtins))


def encode(value: Any) -> Any:
    """A plain value as JSON. Raises TypeError for any other."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return {"i": hex(value)}
    if isinstance(value, float):
        return {"r": float(value)}
    if isinstance(value, str):
        return {"u": str(value)}
    if isinstance(value, bytes | bytearray):
        return {"b": value.hex()}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    kinds: tuple[tuple[Any, str], ...] = ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "f"))
    for kind, tag in kinds:
        if isinstance(value, kind):
            return {tag: [encode(each) for each in value]}
    if isinstance(value, dict):
        return {"d": [[encode(key), encode(each)] for key, each in value.items()]}
    raise TypeError(f"a value of type {type(value).__name__} cannot pass between the tests and the answer")


def decode(data: Any) -> Any:
    """The plain value that `encode` wrote; exact built-in types only, whoever wrote it."""
    if data is None or isinstance(data, bool):
        return data
    ((tag, held),) = data.items()
    simple: dict[str, Callable[[Any], Any]] = {
        "i": lambda text: int(text, 16),
        "r": float,
        "u": str,
        "b": bytes.fromhex,
        "c": lambda parts: complex(*parts),
        "d": lambda pairs: {decode(key): decode(each) for key, each in pairs},
    }
    if tag in simple:
        return simple[tag](held)
    kinds: dict[str, Any] = {"l": list, "t": tuple, "s": set, "f": frozenset}
    return kinds[tag](decode(each) for each in held)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _read_line(file: Any) -> bytes:
    line: bytes = file.readline(MOST_FRAME_BYTES)
    if not line.endswith(b"\n"):
        raise EOFError("the answer's process has ended")
    return line


def serve_answer(fd: int) -> None:
    """In the answer's process: run the program that comes first, then the calls to its functions."""
    channel = socket.socket(fileno=fd)
    file = channel.makefile("rb")
    names: dict[str, Any] = {"__name__": "answer"}

    def reply(data: Any) -> None:
        channel.sendall(json.dumps(data).encode() + b"\n")

    try:
        exec(compile(json.loads(file.readline()), "answer", "exec"), names)  # noqa: S102  that is what a sandbox is for
        reply({"value": None})
    except BaseException as error:  # noqa: BLE001  told to the tests
        reply({"error": type(error).__name__, "text": str(error)[:500]})
        return
    for line in file:
        name, arguments, named = decode(json.loads(line))
        try:
            value = names[name](*arguments, **named)
            reply({"value": encode(value), "arguments": encode(list(arguments))})
        except BaseException as error:  # noqa: BLE001  told to the tests
            reply({"error": type(error).__name__, "text": str(error)[:500]})


class _BadTests(Exception):
    """The tests ask for what cannot be done here, whatever the answer is."""


class _Answer:
    """The answer's functions as the tests see them."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._file = channel.makefile("rb")

    def load(self, program: str) -> None:
        """Raises what the program raised, or EOFError where its process ended."""
        self._channel.sendall(json.dumps(program).encode() + b"\n")
        self._reply()

    def function(self, name: str) -> Callable[..., Any]:
        """A stand-in; lists, dicts and sets that the answer changed are changed for the tests too."""

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                request = json.dumps(encode((name, list(arguments), named)))
            except TypeError as error:
                raise _BadTests(f"{name}: {error}") from error
            self._channel.sendall(request.encode() + b"\n")
            reply = self._reply()
            for mine, theirs in zip(arguments, decode(reply["arguments"]), strict=True):
                if type(mine) is type(theirs) and type(mine) is list:
                    mine[:] = theirs
                elif type(mine) is type(theirs) and type(mine) in (dict, set):
                    mine.clear()
                    mine.update(theirs)
            return decode(reply["value"])

        return call

    def _reply(self) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(_read_line(self._file))
        if "error" in reply:
            kind = getattr(builtins, str(reply["error"]), RuntimeError)
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                kind = RuntimeError
            try:
                raised = kind(str(reply.get("text")))
            except TypeError:
                raised = RuntimeError(str(reply.get("text")))
            raise raised
        return reply


class _Counted(ast.NodeTransformer):
    """Each `assert` is counted, and one that fails does not end the others."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        frame = ast.parse("try: pass\nexcept _bad: raise\nexcept Exception: _count(False)\nelse: _count(True)").body[0]
        assert isinstance(frame, ast.Try)  # noqa: S101  for the type checker
        frame.body = [node]
        return ast.fix_missing_locations(ast.copy_location(frame, node))


def wanted_names(tree: ast.AST) -> set[str]:
    """The names that tests read and do not make themselves: those of the answer."""
    read: set[str] = set()
    made: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
    return read - made - _BUILTIN


def run_tests(channel: socket.socket, verdict_fd: int, request: dict[str, Any]) -> None:
    """In the tests' process: each count goes out at once, the last line says that all was gone through."""

    def send(data: dict[str, Any]) -> None:
        _write_all(verdict_fd, json.dumps(data).encode() + b"\n")

    def count(passed: bool) -> None:
        send({"passed": bool(passed)})

    try:
        answer = _Answer(channel)
        try:
            answer.load(request["answer"])
        except Exception as error:  # noqa: BLE001  whatever the answer raised
            send({"failed": f"the answer does not load: {type(error).__name__}: {error}"[:500]})
            return
        names: dict[str, Any] = {"__name__": "tests", "_count": count, "_bad": _BadTests}
        trees = [ast.parse(text) for text in request["tests"]]
        for tree in trees:
            for name in wanted_names(tree):
                names.setdefault(name, answer.function(name))
        if entry := request.get("entry_point"):
            trees.append(ast.parse(f"check({entry})"))
            names[entry] = answer.function(entry)
        for tree in trees:
            try:
                exec(compile(_Counted().visit(tree), "tests", "exec"), names)  # noqa: S102  the row's own tests
            except _BadTests:
                raise
            except Exception:  # noqa: BLE001  a test that raises has failed
                count(False)
        send({"finished": True})
    except _BadTests as error:
        send({"bad": str(error)})


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
        _write_all(replies, str(len(body)).encode() + b"\n" + body)

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
