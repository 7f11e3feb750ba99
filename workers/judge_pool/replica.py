"""One replica: a Ray actor that starts one HTTP server, watches it, and ends with it.

This module is sent to the cluster by value, so it needs nothing but the standard library and `ray` on any node.
Invariant: neither a server nor its child processes outlive its actor. The kernel ends the server when the actor's
process dies, however that happens; then a guard process ends its process group (vLLM's engine).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEALTH_TIMEOUT_S = 2.0
ANSWER_S = 5.0  # limit for a whole answer
ANSWER_BYTES = 4 * 2**20
STOP_S = 10.0
TAIL_BYTES = 4000
_PR_SET_PDEATHSIG = 1
# Waits for the end of a pipe that the actor alone holds. It is an orphan: Ray ends an actor's children with it.
_GUARD = """
import os, signal, sys
if os.fork():
    os._exit(0)
os.read(0, 1)
try:
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
except ProcessLookupError:
    pass
"""
_VLLM_LOAD = re.compile(r"^vllm:num_requests_(running|waiting)(?:\{[^}\n]*\})? ([0-9.e+]+)$", re.MULTILINE)


class ReplicaServer:
    """The actor of a replica. `hides_gpus` hides all GPUs from a server that asked for none: Ray shows them."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, host: str, load_path: str, hides_gpus: bool
    ) -> None:
        import ray

        node = "127.0.0.1" if host in ("127.0.0.1", "localhost") else str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # Ray's
        port = _free_port(host)
        self._load_path = load_path
        self._key = environment.get("FARM_JUDGE_KEY") or environment.get("VLLM_API_KEY")
        self._url = f"http://{node}:{port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FARM_", "RAY_"))}
        kept.pop("PYTHONPATH", None)  # the interpreter is another one
        given = {**kept, **environment}
        if hides_gpus:
            given["CUDA_VISIBLE_DEVICES"] = ""
        self.gpus = given.get("CUDA_VISIBLE_DEVICES")
        self._log = os.memfd_create("judge-log") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
        words = [word.replace("{host}", host).replace("{port}", str(port)) for word in command]
        parent = os.getpid()
        libc = ctypes.CDLL(None)

        def tie() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)

        self._server = subprocess.Popen(  # noqa: S603  the settings give the command
            words,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=given,
            start_new_session=True,
            preexec_fn=tie,  # noqa: PLW1509  a system call and nothing else
        )
        self._tether = _guard(self._server.pid)

    def report(self) -> dict[str, Any]:
        """Return the server's state, description and load. Each look is bounded by HEALTH_TIMEOUT_S."""
        ended = self._server.poll()
        found: dict[str, Any] = {
            "url": self._url,
            "pid": self._server.pid,
            "gpus": self.gpus,
            "ready": False,
            "ended": ended,
            "in_flight": 0,
            "waiting": 0,
        }
        if ended is not None:
            return found | {"tail": self._tail()}
        try:
            self._get("/health")
            found["ready"] = True
            text = self._get(self._load_path).decode(errors="replace")
        except (OSError, ValueError):
            return found
        if text.startswith("{"):
            told = json.loads(text)
            return found | {
                name: told[name] for name in ("in_flight", "waiting", "capacity", "version", "model") if name in told
            }
        for name, number in _VLLM_LOAD.findall(text):
            found["in_flight" if name == "running" else "waiting"] += int(float(number))
        return found

    def stop(self) -> None:
        """End the server: by SIGTERM, then by SIGKILL."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(STOP_S)
                return

    def _get(self, path: str) -> bytes:
        request = urllib.request.Request(self._url + path)  # noqa: S310  our own server
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        with urllib.request.urlopen(request, timeout=HEALTH_TIMEOUT_S) as answer:  # noqa: S310  likewise
            give_up_at = time.monotonic() + ANSWER_S
            data = b""
            while piece := answer.read1(65536):
                data += piece
                if len(data) > ANSWER_BYTES or time.monotonic() > give_up_at:
                    raise ValueError(f"{path} is answered with more than {ANSWER_BYTES} bytes or {ANSWER_S:g} s")
            return data

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            log = Path(f"/proc/self/fd/{self._log}").read_bytes()
            return log[-TAIL_BYTES:].decode(errors="replace")
        return ""


def _guard(group: int) -> int:
    """Have a process group killed when this process ends; the returned descriptor must stay open until then."""
    watched, tether = os.pipe()
    try:
        subprocess.run(  # noqa: S603  this interpreter
            [sys.executable, "-I", "-S", "-c", _GUARD, str(group)],
            stdin=watched,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
        )
    finally:
        os.close(watched)
    return tether


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
