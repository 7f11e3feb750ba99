"""A whole farm and a mock model as child processes, on free ports: for the demo and for tests.

Both end with the `with` block, and with the process that opened it, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from api.local.up import ADDRESSES_FILE, READY_TIMEOUT_S, NotReady
from gym.policy import PolicySpec
from gym.private_files import append_private, make_private
from gym.processes.process_tree import end_with_parent

MODEL_NAME = "mock"
MODEL_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0
TAIL_LINES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFarm:
    """Addresses of a farm and its mock model. The default policy of batches is the mock model."""

    url: str
    proxy_url: str
    flower_url: str | None
    model_url: str
    data_dir: Path
    process: subprocess.Popen[bytes]
    """The process `farm up`."""

    @property
    def redis_url(self) -> str:
        """URL of the farm's own embedded Redis, with all rights."""
        return (self.data_dir / "redis" / "url").read_text()

    @property
    def policy(self) -> PolicySpec:
        """Return the mock model as a policy of another name."""
        return mock_policy(self.model_url)


@contextlib.contextmanager
def local_farm(
    data_dir: Path,
    *,
    options: Sequence[str] = (),
    model_options: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> Iterator[LocalFarm]:
    """Start both, wait until a batch can be submitted, and stop both at the end.

    `options` are arguments of `farm up`, `model_options` of `farm mock-model`, `settings` are `FARM_…` variables; none
    are inherited from this process. Raises NotReady with the output of `farm up`.
    """
    make_private(data_dir)
    model_port = free_port()
    model_url = f"http://127.0.0.1:{model_port}"
    policies = {"policy": mock_policy(model_url).model_dump(mode="json", exclude_none=True)}
    given = {"FARM_POLICIES": json.dumps(policies), **(settings or {})}
    ports = ["--api-port", "0", "--proxy-port", "0", "--flower-port", "0"]
    with contextlib.ExitStack() as running:
        model = farm_process(
            "mock-model", ["--port", str(model_port), *model_options], given, data_dir / "mock-model.log"
        )
        running.callback(_stop, model)
        up = farm_process("up", ["--data-dir", str(data_dir), *ports, *options], given, data_dir / "up.log")
        running.callback(_stop, up)
        url = _ready_line(up, data_dir / "up.log")
        _wait_for_model(model, model_url, data_dir / "mock-model.log")
        addresses = json.loads((data_dir / ADDRESSES_FILE).read_text())
        yield LocalFarm(
            url=url,
            proxy_url=addresses["proxy"],
            flower_url=addresses["flower"],
            model_url=model_url,
            data_dir=data_dir,
            process=up,
        )


def farm_process(
    command: str, options: Sequence[str], settings: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start `farm COMMAND` in its own session, which ends with this process; `settings` are added to its environment.

    Its output is appended to the log. Only for `up`, standard output is a pipe for the caller.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    with append_private(log) as errors:
        return subprocess.Popen(  # noqa: S603 - this program
            [sys.executable, "-m", "api.cli.main", command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if command == "up" else errors,
            stderr=errors,
            env={**kept, **settings},
            start_new_session=True,
            preexec_fn=end_with_parent(signal.SIGTERM),  # noqa: PLW1509 - a system call and nothing else
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _ready_line(up: subprocess.Popen[bytes], log: Path) -> str:
    assert up.stdout is not None  # noqa: S101 - it is a pipe
    readable, _, _ = select.select([up.stdout], [], [], 2 * READY_TIMEOUT_S)
    line = up.stdout.readline().decode() if readable else ""
    word, _, url = line.strip().partition(" ")
    if word != "ready":
        raise NotReady(f"`farm up` did not become ready:\n{_tail(log)}")
    return url


def _wait_for_model(model: subprocess.Popen[bytes], url: str, log: Path) -> None:
    give_up_at = time.monotonic() + MODEL_TIMEOUT_S
    while time.monotonic() < give_up_at and model.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):  # noqa: S310 - loopback
            return
        time.sleep(0.05)
    raise NotReady(f"`farm mock-model` does not answer at {url}:\n{_tail(log)}")


def mock_policy(model_url: str) -> PolicySpec:
    """Return the policy of a mock model."""
    return PolicySpec(base_urls=[f"{model_url}/v1"], model=MODEL_NAME)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
