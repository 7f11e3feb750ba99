"""An answer and its tests in two processes of a sandbox, which exchange plain values. Standard library only.

The tests call the answer's functions over a socket and compare the results themselves. So the answer cannot reach the
verdict: it may print "passed", exit, or patch anything without effect.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import socket
from collections.abc import Callable
from typing import Any

MOST_FRAME_BYTES = 16_000_000
_BUILTIN = frozenset(dir(builtins))


def encode(value: Any) -> Any:
    """Encode a plain value as JSON. Raises TypeError for any other value."""
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
    """Decode a plain value that `encode` wrote, into exact built-in types only, even if the sender is not trusted."""
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


class AssertCounts:
    """Reader of the test process's output: one line of JSON for each count, and a last one."""

    def __init__(self) -> None:
        self._passed = self._seen = 0
        self._said: dict[str, Any] = {}
        self._rest = b""

    def take(self, data: bytes) -> None:
        """Read output; an incomplete line waits for its rest."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "passed" in said:
                self._seen += 1
                self._passed += bool(said["passed"])
            else:
                self._said.update(said)

    def as_json(self) -> dict[str, Any]:
        """Return all counts so far."""
        return {"passed": self._passed, "seen": self._seen, "finished": False, "failed": None, "bad": None} | self._said


def write_all(fd: int, data: bytes) -> None:
    """Write all of the data, however little the pipe takes at a time."""
    while data:
        data = data[os.write(fd, data) :]


def _read_line(file: Any) -> bytes:
    line: bytes = file.readline(MOST_FRAME_BYTES)
    if not line.endswith(b"\n"):
        raise EOFError("the answer's process has ended")
    return line


def serve_answer(fd: int) -> None:
    """Serve the tests in the answer's process: run the program that comes first, then the calls to its functions."""
    channel = socket.socket(fileno=fd)
    file = channel.makefile("rb")
    names: dict[str, Any] = {"__name__": "answer"}

    def reply(data: Any) -> None:
        channel.sendall(json.dumps(data).encode() + b"\n")

    try:
        exec(compile(json.loads(file.readline()), "answer", "exec"), names)  # noqa: S102  running it is the purpose of a sandbox
        reply({"value": None})
    except BaseException as error:  # noqa: BLE001  reported to the tests
        reply({"error": type(error).__name__, "text": str(error)[:500]})
        return
    for line in file:
        name, arguments, named = decode(json.loads(line))
        try:
            value = names[name](*arguments, **named)
            reply({"value": encode(value), "arguments": encode(list(arguments))})
        except BaseException as error:  # noqa: BLE001  reported to the tests
            reply({"error": type(error).__name__, "text": str(error)[:500]})


class _BadTests(Exception):
    """Tests that ask for something unsupported here, independent of the answer."""


class _Answer:
    """Proxy for the answer's functions in the tests' process."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._file = channel.makefile("rb")

    def load(self, program: str) -> None:
        """Load the program. Raises what the program raised, or EOFError if its process ended."""
        self._channel.sendall(json.dumps(program).encode() + b"\n")
        self._reply()

    def function(self, name: str) -> Callable[..., Any]:
        """Return a stub of a function.

        Changes that the answer makes to lists, dicts and sets are applied in the tests too.
        """

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


class _AssertCounter(ast.NodeTransformer):
    """Rewriter that counts each `assert` and lets the tests run on after a failed one."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        frame = ast.parse("try: pass\nexcept _bad: raise\nexcept Exception: _count(False)\nelse: _count(True)").body[0]
        assert isinstance(frame, ast.Try)  # noqa: S101  for the type checker
        frame.body = [node]
        return ast.fix_missing_locations(ast.copy_location(frame, node))


def wanted_names(tree: ast.AST) -> set[str]:
    """Return the names that tests read but do not define: those of the answer."""
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
    """Run the tests in their process. Each count is sent at once; the last line says that all tests were run."""

    def send(data: dict[str, Any]) -> None:
        write_all(verdict_fd, json.dumps(data).encode() + b"\n")

    def count(passed: bool) -> None:
        send({"passed": bool(passed)})

    try:
        answer = _Answer(channel)
        try:
            answer.load(request["answer"])
        except Exception as error:  # noqa: BLE001  any exception of the answer
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
                exec(compile(_AssertCounter().visit(tree), "tests", "exec"), names)  # noqa: S102  the row's own tests
            except _BadTests:
                raise
            except Exception:  # noqa: BLE001  a test that raises has failed
                count(False)
        send({"finished": True})
    except _BadTests as error:
        send({"bad": str(error)[:500]})
