"""Fork server: imports the farm's modules once and forks its processes: `python -m api.cli.fork_server`.

`farm up` starts one and orders its children from it (`api.local.forking`). They start in the time of a fork and share
the memory of imported modules. It is single-threaded, has no event loop, and imports the modules of a role when that is
first ordered; the workers' modules at once.

A child is forked twice, so that its parent is `farm up` itself, the subreaper of orphaned descendants. The parent waits
for it and signals it as if it had started it; the end of the fork server does not affect it. From then on it is the
process `farm ROLE`, down to its command line.

Each order is a datagram on standard input with three descriptors: the order (JSON: `arguments` of `farm`,
`environment`, `parent`, `orphan_signal`, `niceness`), the output, and a pipe to wait on before continuing: a byte means
go, end of file means that the child is no longer wanted. The reply is `ready` once all modules are imported. The next
datagram says to fork, and the reply to it, the child's id, comes from the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from api.cli.main import FAMILIES
from gym.processes.process_tree import end_with_parent

ADOPTED_WITHIN_S = 5.0
MOST_DESCRIPTORS = 8
_COMMANDS = (*FAMILIES, "api.cli.main", "api.local.logs", "gym.config", "typer._adapters", "encodings.idna")
_ENVIRONMENTS = tuple(
    f"gym.environments.builtin.{name}"
    for name in ("weather", "stateful_counter", "sql", "reasoning_gym", "equivalence", "essay_similarity", "code")
)
_CELERY = (
    *("celery.app.amqp", "celery.app.events", "celery.app.log", "celery.loaders.app", "celery.fixups.django"),
    *("kombu.transport.redis", "celery.worker.worker", "celery.app.control"),
)
_WORKER = (
    *_COMMANDS,
    *_CELERY,
    *_ENVIRONMENTS,
    "workers.main",
    "celery.apps.worker",
    "celery.worker.consumer",
    "celery.concurrency.thread",
    "celery.worker.control",
)
_SERVER = (
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.loops.uvloop",
    "uvicorn.lifespan.on",
    "uvicorn.middleware.proxy_headers",
    "api.local.serving",
)
MODULES = {
    "worker": _WORKER,
    "judge-worker": _WORKER,
    "dispatcher": (*_COMMANDS, *_CELERY, "workers.dispatch.dispatcher"),
    "proxy": (*_COMMANDS, *_SERVER, "api.proxy.app"),
    "api": (*_COMMANDS, *_SERVER, *_ENVIRONMENTS, "api.app"),
    "flower": (*_COMMANDS, *_CELERY, "api.local.dashboard", "flower.app", "flower.urls", "celery.events.receiver"),
}
"""Modules to import before a role is forked. A role that is not listed cannot be ordered."""


def serve(control: socket.socket) -> list[str]:
    """Fork as ordered. Return the arguments for `farm` in a child; end this process with `farm up`."""
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 16, MOST_DESCRIPTORS)
        if not descriptors:
            sys.exit(0)
        text, output, go = descriptors
        with os.fdopen(text, "rb") as file:
            order = json.load(file)
        preload(order["arguments"][0])
        control.send(b"ready")
        if not control.recv(16):
            sys.exit(0)
        if _fork_twice():
            _become(order, control, output, go)
            arguments: list[str] = order["arguments"]
            return arguments
        os.close(output)
        os.close(go)


def preload(role: str) -> None:
    """Import the modules of a role; a failing import is left for the child to report."""
    gc.disable()
    for name in MODULES[role]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.enable()
    gc.freeze()  # a collection would write to every object, and so unshare its page


def _fork_twice() -> bool:
    """Fork twice. Return True in the child. In the parent, the intermediate process has then ended."""
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return False
    if os.fork():
        os._exit(0)
    return True


def _become(order: dict[str, Any], control: socket.socket, output: int, go: int) -> None:
    """Turn a fork into the ordered process, or end it."""
    _show([sys.executable, "-m", "api.cli.main", *order["arguments"]])
    parent = int(order["parent"])
    give_up_at = time.monotonic() + ADOPTED_WITHIN_S
    while os.getppid() != parent and time.monotonic() < give_up_at:
        time.sleep(0.001)
    os.setsid()
    end_with_parent(signal.Signals(order["orphan_signal"]), niceness=order["niceness"], parent=parent)()
    os.environ.clear()
    os.environ.update(order["environment"])
    try:
        control.send(str(os.getpid()).encode())
        wanted = os.read(go, 1)
    except OSError:
        wanted = b""
    if not wanted:
        os._exit(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for target, source in enumerate((nothing, output, output)):
        os.dup2(source, target)
    for spare in (nothing, output, go):
        os.close(spare)
    control.close()


def _show(words: list[str]) -> None:
    """Make the kernel show another command line for this process; slashes before its program fill the rest."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        begins, ends = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5), counted behind the name
        folder, _, program = words[0].rpartition("/")
        spare = ends - begins - sum(len(word.encode()) + 1 for word in words)
        if spare >= 0:
            line = "\0".join([f"{folder}/{'/' * spare}{program}", *words[1:], ""])
            ctypes.memmove(begins, line.encode(), ends - begins)


def main() -> None:
    """Run until `farm up` ends; in a child, until that ends."""
    control = socket.socket(fileno=os.dup(0))
    preload("worker")
    arguments = serve(control)
    from api.cli.main import main as farm

    farm(arguments)


if __name__ == "__main__":
    main()
