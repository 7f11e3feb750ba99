"""A process that has imported the farm's modules once and forks the farm's processes: `python -m api.cli.fork_server`.

`farm up` starts one and orders its children from it (`api.local.forking`), which so start in the time of a fork and
share the memory of what is imported. It is single-threaded, has no loop, and imports for a role what that needs when
the role is ordered first; the workers' modules at once.

A child is forked twice, so that its parent is `farm up` itself, by then the reaper of what it ordered: it is waited for
and signalled as if it had been started there, and the end of this process means nothing to it. From there on it is what
`farm ROLE` is, down to its command line.

On standard input comes a datagram for each order, with three descriptors: the order (JSON: `arguments` of `farm`,
`environment`, `parent`, `orphan_signal`, `niceness`), where output goes, and what to wait for before going on: a byte
there means go, its end means that nobody wants this child any more. The answer is `ready` once all is imported; the
next datagram says to fork, and the answer to that, the child's id, comes from the child.
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
"""What is imported before a role is forked. A role that is not here cannot be ordered."""


def serve(control: socket.socket) -> list[str]:
    """Fork what is ordered. Returns in a child, with the arguments for `farm`; ends this process with `farm up`."""
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
    """Import what a role needs; what cannot be imported is for the child to complain of."""
    gc.disable()
    for name in MODULES[role]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.enable()
    gc.freeze()  # a collection would write to every object, and so unshare its page


def _fork_twice() -> bool:
    """Whether this is the child; here the process between has ended by then."""
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return False
    if os.fork():
        os._exit(0)
    return True


def _become(order: dict[str, Any], control: socket.socket, output: int, go: int) -> None:
    """Turn a fork into what was ordered, or end it."""
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
    """Let the kernel show another command line for this process; what is left over are slashes before its program."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        begins, ends = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5), counted behind the name
        folder, _, program = words[0].rpartition("/")
        spare = ends - begins - sum(len(word.encode()) + 1 for word in words)
        if spare >= 0:
            line = "\0".join([f"{folder}/{'/' * spare}{program}", *words[1:], ""])
            ctypes.memmove(begins, line.encode(), ends - begins)


def main() -> None:
    """Until `farm up` ends; in a child, until that ends."""
    control = socket.socket(fileno=os.dup(0))
    preload("worker")
    arguments = serve(control)
    from api.cli.main import main as farm

    farm(arguments)


if __name__ == "__main__":
    main()
